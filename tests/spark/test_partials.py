"""Monthly partials: by hand, and the same features bit by bit whichever road they come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from math import log, log1p
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import Agg, AggConf, what_is_summed
from ledgerlm.baselines.folding import LARGEST, Partials
from ledgerlm.baselines.partials import STEPS_OF_ONE, Summed, after, changed_partials, month_partials
from ledgerlm.errors import ConfigError
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.differences import CHANGE

SCHEMA = (
    "client_id string, event_id string, event_time timestamp, event_seq long, amount string, currency string, "
    "dept string, quantity double"
)
SUMMED = Summed(
    categorical=("dept", "currency"),
    numeric=("quantity",),
    by_code=("log_amount", "amount", "log_days", "quantity"),
    amounts=True,
    currencies=True,
    hour=True,
    weekday=True,
)
PLAIN = Summed(
    categorical=("dept",),
    numeric=(),
    by_code=("log_amount",),
    amounts=True,
    currencies=False,
    hour=False,
    weekday=False,
)
Event = tuple[str, datetime, str | None, str | None, str | None, float | None]


def frame(spark: SparkSession, rows: Sequence[Event], scale: str = "decimal(18,4)") -> DataFrame:
    """Rows of client, time, amount, currency, dept, quantity."""
    made = [(row[0], f"e{place}", row[1], 0, *row[2:]) for place, row in enumerate(rows)]
    return spark.createDataFrame(made, SCHEMA).withColumn("amount", F.col("amount").cast(scale))


def as_it_is(rows: DataFrame) -> DataFrame:
    """A `keep` that keeps nothing."""
    return rows


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def asked(spark: SparkSession, *pairs: tuple[str, datetime]) -> DataFrame:
    return spark.createDataFrame(list(pairs), "client_id string, as_of timestamp")


def drawn(spark: SparkSession, seed: int = 7) -> DataFrame:
    """Eight clients over fourteen months: gaps of months, equal instants, nulls, negative amounts, three currencies."""
    rng, rows = random.Random(seed), list[Event]()
    for client in range(8):
        for _ in range(60):
            time = moment("2023-11-01") + timedelta(minutes=rng.randrange(14 * 30 * 1440 // (1 + client % 3)))
            # Every seventh event comes at the very beginning of a month in New York.
            time = time if rng.randrange(7) else time.replace(day=1, hour=5, minute=0)
            amount = None if rng.randrange(9) == 0 else str(rng.randrange(-999_999, 9_999_999) / 1000)
            currency = rng.choice(["EUR", "EUR", "JPY", None])
            dept = rng.choice(["X", "Y", "Z", None, "W"])
            rows.append((f"c{client}", time, amount, currency, dept, rng.choice([None, 0.1, 0.3, 1e9, -2.5])))
    return frame(spark, rows)


TIMES = [
    moment(one)
    for one in (
        "2023-12-01 00:00",
        "2024-03-01 05:00",
        "2024-03-17 11:13",
        "2024-06-01 00:00",
        "2024-06-30 18:30",
        "2024-10-31 23:59",
        "2024-11-01 00:00",
        "2026-01-01 00:00",
    )
]


def bits(rows: DataFrame) -> list[str]:
    """Rows with every bit."""
    columns = [F.to_json(F.struct(F.col(name))) for name in sorted(rows.columns) if name != "features"]
    listed = [F.to_json(F.sort_array(F.map_entries("features")))] if "features" in rows.columns else []
    return sorted(repr(row) for row in rows.select(*columns, *listed).collect())


@pytest.mark.parametrize(
    "zone", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("UTC", "Asia/Kolkata")), "America/New_York"]
)
def test_features_are_the_same_bit_by_bit_whichever_road_they_come(spark: SparkSession, zone: str) -> None:
    summed = SUMMED.model_copy(update={"zone": zone})
    events = drawn(spark).repartition(5).cache()
    pairs = (
        events.select("client_id").distinct().crossJoin(spark.createDataFrame([(t,) for t in TIMES], "as_of timestamp"))
    )
    partials = Partials.of(events, summed, keep=DataFrame.cache)
    histories = partials.histories(pairs)
    model = Agg.fit(histories, AggConf(), summed)
    assert set(model.currencies) == {"EUR", "JPY", "-"}
    folded = bits(model.transform(histories, pairs))
    # From events alone: each history is a client of its own, whose events end before its time, so that none is cut.
    apart = F.concat("client_id", F.lit("@"), F.col("as_of").cast("string"))
    own = events.join(pairs, "client_id").where("event_time < as_of").withColumn("client_id", apart).drop("as_of")
    whole = Partials.of(own.coalesce(1), summed, keep=as_it_is)
    renamed = pairs.withColumn("client", F.col("client_id")).withColumn("client_id", apart)
    found = model.transform(whole.histories(renamed), renamed.select("client_id", "as_of"))
    back = F.split("client_id", "@")[0].alias("client_id")
    assert bits(found.select(back, "as_of", "features")) == folded
    # In another order and other parts, the partials themselves are the same.
    again = month_partials(events.orderBy(F.rand(3)).repartition(7, "dept"), summed)
    assert bits(again) == bits(partials.rows)
    events.unpersist()


def test_a_month_by_hand(spark: SparkSession) -> None:
    events = frame(
        spark,
        [
            ("a", moment("2024-01-31 12:00"), "10", None, "X", None),
            ("a", moment("2024-03-01 00:00"), "-20", None, "X", None),
            ("a", moment("2024-03-04 00:00"), None, None, None, None),
            ("a", moment("2024-03-05 12:00"), "5.25", None, "Y", None),
        ],
    )
    first, second = month_partials(events, PLAIN).orderBy("month").collect()
    assert (first.month, second.month) == (date(2024, 1, 1), date(2024, 3, 1))
    assert (first.event_before, second.event_before) == (None, datetime(2024, 1, 31, 12))
    assert (second.first_event_time, second.last_event_time) == (datetime(2024, 3, 1), datetime(2024, 3, 5, 12))
    assert (first.event_count, second.event_count) == (1, 3)
    [total] = second.totals
    logs = [round(x * STEPS_OF_ONE) for x in (-log(21), log(6.25))]
    gaps = [round(log1p(days) * STEPS_OF_ONE) for days in (29.5, 3, 1.5)]
    for steps, values in zip(total.steps, (logs, gaps), strict=True):
        assert (steps.events, steps.sum) == (len(values), sum(values))
        assert steps.high * 2**31 + steps.low == sum(value**2 for value in values)
    [amount] = total.doubles
    assert (amount.events, amount.sum, amount.mean) == (2, -14.75, -7.375)
    assert amount.spread == 2 * 12.625**2
    assert total.times == [datetime(2024, 3, 1), datetime(2024, 3, 4), datetime(2024, 3, 5, 12)]
    assert total.amounts == [-20.0, None, 5.25]
    assert [(one.field, one.code, one.events, one.steps[0].sum) for one in second.groups] == [
        ("dept", "-", 1, 0),
        ("dept", "X", 1, logs[0]),
        ("dept", "Y", 1, logs[1]),
    ]


@pytest.mark.parametrize(
    ("zone", "month"), [("UTC", 5), ("America/New_York", 4), ("Asia/Kolkata", 5), ("Pacific/Auckland", 5)]
)
def test_months_are_those_of_the_datas_clock(spark: SparkSession, zone: str, month: int) -> None:
    events = frame(spark, [("a", moment("2024-05-01 02:00"), "1", None, "X", None)])
    [row] = month_partials(events, PLAIN.model_copy(update={"zone": zone})).collect()
    assert row.month == date(2024, month, 1)


def test_a_time_that_cuts_no_month_reads_no_event(spark: SparkSession) -> None:
    rows: list[Event] = [("a", moment(f"2024-0{month}-15 10:00"), "5", None, "X", None) for month in (1, 2, 3)]
    rows.append(("a", moment("2024-02-20 10:00"), "7", None, "X", None))
    events = frame(spark, rows)
    made = month_partials(events, PLAIN)
    unread = events.withColumn("amount", F.raise_error(F.lit("an event was read")).cast("decimal(18,4)"))
    partials = Partials(rows=made, events=unread, summed=PLAIN, keep=as_it_is)
    firsts = asked(spark, *(("a", moment(f"2024-0{month}-01")) for month in (1, 2, 3, 4, 5)))
    counts = partials.histories(firsts).groupBy("as_of").agg(F.sum("event_count").alias("events")).orderBy("as_of")
    assert [row.events for row in counts.collect()] == [1, 3, 4, 4]
    # Nor does one behind the last event of its month, nor one before the first.
    assert partials.histories(asked(spark, ("a", moment("2024-02-10")), ("a", moment("2024-02-21")))).count() == 3
    with pytest.raises(Exception, match="an event was read"):
        partials.histories(asked(spark, ("a", moment("2024-02-18")))).collect()


def test_differences_are_the_months_from_the_change_on(spark: SparkSession) -> None:
    events = drawn(spark).cache()
    standing = month_partials(events, SUMMED).cache()
    late: list[Event] = [("c1", moment("2024-03-15 10:00"), "12.5", "EUR", "X", 1.0)]
    gone = events.where("client_id = 'c2'").orderBy("event_time").limit(1).select("event_id")
    now = events.join(gone, "event_id", "left_anti")
    now = now.unionByName(frame(spark, late).withColumn("event_id", F.lit("late")))
    first = events.where("client_id = 'c2'").agg(F.min("event_time").alias("earliest"))
    dirty = first.select(F.lit("c2").alias("client_id"), "earliest").unionByName(
        spark.createDataFrame([("c1", late[0][1])], "client_id string, earliest timestamp")
    )
    found = changed_partials(now, standing, dirty, SUMMED, keep=DataFrame.cache)
    assert bits(after(standing, found)) == bits(month_partials(now, SUMMED))
    touched = {(row.client_id, str(row.month)): row[CHANGE] for row in found.collect()}
    assert {client for client, _ in touched} == {"c1", "c2"}
    # The month of the late event, and the next one if its first event now comes after another.
    assert {month for client, month in touched if client == "c1"} <= {"2024-03-01", "2024-04-01"}
    assert touched["c1", "2024-03-01"] == "update"
    events.unpersist(), standing.unpersist()


def folded(spark: SparkSession, rows: Sequence[Event], summed: Summed, scale: str = "decimal(18,4)") -> dict[str, Any]:
    partials = Partials.of(frame(spark, rows, scale), summed, keep=as_it_is)
    pairs = asked(spark, ("a", moment("2025-01-01")))
    histories = partials.histories(pairs)
    [row] = Agg.fit(histories, AggConf(), summed).transform(histories, pairs).collect()
    return dict(row.features)


def test_the_largest_numbers_stay_within_range(spark: SparkSession) -> None:
    largest = "99999999999999.9999"
    times = [moment("2024-01-01") + timedelta(hours=20 * place) for place in range(300)]
    rows: list[Event] = [("a", time, largest, None, "X", 3e38) for time in times]
    summed = PLAIN.model_copy(update={"numeric": ("quantity",), "by_code": ("log_amount", "amount")})
    found = folded(spark, rows, summed)
    assert found["quantity:sum"] == pytest.approx(LARGEST)
    assert found["quantity:mean"] == pytest.approx(3e38)
    assert found["amount:sum"] == pytest.approx(3e16)
    assert found["dept=X:log_amount:mean"] == pytest.approx(log(1e14))
    # Numbers that are all the same do not deviate, over eight months as in one.
    assert not [name for name in found if name.endswith(("amount:std", "quantity:std"))]
    finest: list[Event] = [("a", time, "99999999999999999999.123456789012345678", None, "X", None) for time in times]
    assert folded(spark, finest, PLAIN, "decimal(38,18)")["amount:sum"] == pytest.approx(3e22)


def test_small_deviations_of_large_numbers_are_seen(spark: SparkSession) -> None:
    amounts = ["1000000000000.01", "1000000000000.02", "1000000000000.04"]
    rows: list[Event] = [("a", moment(f"2024-0{place + 1}-01"), one, None, "X", 1e9 + place)
                         for place, one in enumerate(amounts)]  # fmt: skip
    found = folded(spark, rows, PLAIN.model_copy(update={"numeric": ("quantity",)}))
    assert found["amount:std"] == pytest.approx(0.0152752523, rel=1e-2)  # doubles of that size have four digits more
    assert found["quantity:std"] == pytest.approx(1.0)
    steps = [round(log1p(float(one)) * STEPS_OF_ONE) for one in amounts]
    assert len(set(steps)) == 1
    assert "log_amount:std" not in found


def test_a_number_by_code_that_there_is_none_of_is_refused(spark: SparkSession) -> None:
    spec = DataSetSpec.model_validate({"name": "small", "fields": [{"name": "dept"}], "amount": {"column": "amount"}})
    with pytest.raises(ConfigError, match="by_code: no number quantum; there are amount, log_amount, log_days"):
        what_is_summed(AggConf(by_code=("quantum",)), spec, drawn(spark))
