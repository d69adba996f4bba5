"""Inputs of the heads that read events: external factors, metadata, and nothing from after as_of."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.baselines.sequence.histories import SeenColumns
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.recurrent.inputs import (
    Sources,
    context_names,
    head_rows,
    holiday_calendar,
    learn_shape,
    observed_events,
    read_series,
)
from ledgerlm.heads.recurrent.settings import HolidaysConf, InputsConf, SeriesConf

AS_OF = datetime(2024, 12, 20, tzinfo=UTC)
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), mcc string"
CONF = InputsConf(
    metadata=("region",),
    metadata_numbers=("tenure",),
    holidays=HolidaysConf(countries=("GB", "IE"), home="country", ahead_days=10),
    series=SeriesConf(path="unused", columns=("rate",), lag_days=2),
)
CHOSEN = SeenColumns(
    categorical=("mcc",), numeric=("amount", "holiday", "days_to_holiday", "rate"), hour=False, weekday=False
)


def event(client: str, number: int, time: datetime, mcc: str) -> tuple[object, ...]:
    return (client, f"{client}{number}", time, number, Decimal(10), mcc)


def sources(spark: SparkSession, rows: list[tuple[object, ...]]) -> Sources:
    days = [date(2024, 12, 1) + timedelta(days=n) for n in range(40)]
    series = spark.createDataFrame([(day, float(day.day)) for day in days], "_day date, rate double")
    people = [("a", "train", "north", "3", "GB"), ("b", "train", "south", None, "IE"), ("c", "test", "west", "9", "GB")]
    return Sources(
        events=spark.createDataFrame(rows, EVENTS),
        clients=spark.createDataFrame(
            people, "client_id string, split string, region string, tenure string, country string"
        ),
        dictionaries=spark.createDataFrame(
            [("mcc", "1", "food"), ("mcc", "R1", "food")], "field string, code string, description string"
        ),
        days=(date(2024, 12, 1), date(2025, 1, 31)),
        series=series,
    )


def keys(spark: SparkSession, *clients: str) -> DataFrame:
    return spark.createDataFrame([(client, AS_OF) for client in clients], "client_id string, as_of timestamp")


def test_arrays_know_the_day_the_client_and_no_future(spark: SparkSession) -> None:
    christmas_eve = datetime(2024, 12, 10, 12, tzinfo=UTC)
    rows = [
        event("a", 0, christmas_eve, "1"), event("a", 1, AS_OF - timedelta(days=3), "2"),
        event("b", 0, AS_OF - timedelta(days=1), "R1"), event("c", 0, AS_OF - timedelta(days=1), "9"),
        event("a", 2, AS_OF, "leak"), event("b", 1, AS_OF + timedelta(days=5), "leak"),
    ]  # fmt: skip
    given = sources(spark, rows)
    observed = observed_events(given, CHOSEN, CONF)
    shape = learn_shape(keys(spark, "a", "b"), observed, given, CHOSEN, CONF)
    # Codes are read by their meaning, so both banks' codes of food are one; the test client taught nothing.
    assert sorted(shape.fields.codes["mcc"]) == ["2", "food"]
    assert sorted(shape.context.codes["region"]) == ["north", "south"]
    found = {
        row["client_id"]: row for row in head_rows(keys(spark, "a", "b", "c"), observed, given, shape, CONF).collect()
    }
    a = found["a"]
    assert a["event_count_used"] == 2
    numbers = np.array(a["numbers"]).reshape(2, 5)
    # 10 December: 15 days to Christmas; the rate that was known is that of the 8th.
    np.testing.assert_allclose(numbers[0][:4], [np.log(11), 0, np.log(16), np.log(9)], rtol=1e-5)
    names = context_names(CONF)
    raw = {
        client: dict(zip(names, np.array(row["context"]) * shape.context.std + shape.context.mean, strict=True))
        for client, row in found.items()
    }
    assert raw["a"]["log_days_since_last"] == pytest.approx(np.log(4), abs=1e-4)
    assert raw["a"]["tenure"] == pytest.approx(3, abs=1e-4)
    assert raw["b"]["tenure"] == pytest.approx(0, abs=1e-4)
    assert raw["a"]["holidays_coming"] == pytest.approx(2, abs=1e-4)  # Christmas and Boxing Day
    assert raw["a"]["rate"] == pytest.approx(18, abs=1e-4)
    assert found["c"]["metadata"] == [1]  # a region that no training client lives in
    assert found["b"]["codes"] == [2 + shape.fields.codes["mcc"].index("food")]


def test_only_some_events_are_read(spark: SparkSession) -> None:
    rows = [event("a", n, AS_OF - timedelta(days=5 - n), str(n % 2)) for n in range(4)]
    given, conf = sources(spark, rows), CONF.model_copy(update={"only": "mcc = '1'"})
    observed = observed_events(given, CHOSEN, conf)
    shape = learn_shape(keys(spark, "a"), observed, given, CHOSEN, conf)
    assert shape.fields.codes["mcc"] == ("food",)
    found = head_rows(keys(spark, "a"), observed, given, shape, conf).collect()
    assert [row["event_count_used"] for row in found] == [2]


def test_a_leak_planted_after_as_of_changes_nothing(spark: SparkSession) -> None:
    rows = [event("a", n, AS_OF - timedelta(days=9 - n), str(n % 2)) for n in range(5)]
    rows += [event("b", n, AS_OF - timedelta(days=9 - n), str(n % 2)) for n in range(5)]
    leak = [event(client, 50 + n, AS_OF + timedelta(minutes=n), "told") for client in "ab" for n in range(20)]
    arrays = []
    for given in (sources(spark, rows), sources(spark, rows + leak)):
        observed = observed_events(given, CHOSEN, CONF)
        shape = learn_shape(keys(spark, "a", "b"), observed, given, CHOSEN, CONF)
        found = head_rows(keys(spark, "a", "b"), observed, given, shape, CONF).orderBy("client_id").collect()
        arrays.append((shape, [row.asDict() for row in found]))
    assert arrays[0] == arrays[1]


def test_holidays_by_country_and_a_repeated_day_are_told(spark: SparkSession, tmp_path: Path) -> None:
    calendar = holiday_calendar(spark, ["GB", "IE"], date(2024, 12, 24), date(2025, 1, 2))
    closed = {(row["country"], row["day"].day) for row in calendar.where("holiday = 1").collect()}
    assert closed == {("GB", 25), ("GB", 26), ("GB", 1), ("IE", 25), ("IE", 26), ("IE", 1)}
    with pytest.raises(ConfigError, match="no calendar of XX"):
        holiday_calendar(spark, ["XX"], date(2024, 1, 1), date(2024, 1, 2))
    (tmp_path / "series.csv").write_text("date,rate\n2024-01-01,1\n2024-01-01,2\n")
    conf = SeriesConf(path="series.csv", columns=("rate",))
    with pytest.raises(DataError, match="stands twice"):
        read_series(spark, conf, (tmp_path / "series.csv").as_uri())
    for line, odd in (('2024-01-02,"1,5"', "'1,5'"), ("02.01.2024,1", "'02.01.2024'"), (",1", "'an empty date'")):
        (tmp_path / "odd.csv").write_text(f"date,rate\n2024-01-01,\n{line}\n")
        with pytest.raises(DataError, match=odd):
            read_series(spark, conf, (tmp_path / "odd.csv").as_uri())
    with pytest.raises(DataError, match="no column price"):
        read_series(spark, conf.model_copy(update={"columns": ("price",)}), (tmp_path / "series.csv").as_uri())
