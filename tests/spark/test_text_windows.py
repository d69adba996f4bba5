"""Windows: anchored at periods, filled from the oldest event, cut where a time is asked, in part as in full."""

from __future__ import annotations

import datetime as dt
from datetime import UTC
from typing import Any

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.lake import conform
from ledgerlm.lake.schemas import WINDOWS
from ledgerlm.text.check import check_windows, sum_up_windows
from ledgerlm.text.serialize import DocumentConf, serialize
from ledgerlm.text.windows import WindowConf, windows

SPEC = DataSetSpec.model_validate({"name": "small", "fields": [{"name": "what"}]})
CONF = DocumentConf(fields=("pause", "what"))
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, what string"


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


# The table's order is not the time's; b and c stand at one instant.
ROWS = [
    ("one", "3", at("2024-02-01 00:30"), 0, "d"),
    ("one", "2", at("2024-01-31 23:30"), 1, "c"),
    ("one", "1", at("2024-01-31 23:30"), 0, "b"),
    ("one", "9", at("2024-01-05 12:00"), 0, "a"),
    ("one", "4", at("2024-04-02 00:00"), 0, "e"),
    ("two", "1", at("2024-02-10 00:00"), 0, "z"),
]


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(ROWS, EVENTS).cache()


def cut(spark: SparkSession, *asked: tuple[str, str]) -> DataFrame:
    return spark.createDataFrame([(c, at(t)) for c, t in asked], "client_id string, as_of timestamp")


def told(frame: DataFrame, client: str = "one") -> dict[tuple[str, int], str]:
    """Period and place to the lines of a whole window."""
    rows = frame.where((F.col("client_id") == client) & F.col("cut_at").isNull()).collect()
    return {(str(row.period), row.place): ",".join(row.text.split("\n")[1:]) for row in rows}


def ordered(frame: DataFrame) -> list[Row]:
    rows = frame.collect()
    return sorted(rows, key=lambda row: (row.client_id, row.period, row.place, row.cut_at is not None, row.cut_at))


def test_windows_are_filled_from_the_oldest_event_of_a_period(events: DataFrame) -> None:
    found = windows(events, SPEC, CONF, WindowConf(period="month", events=2))
    assert told(found) == {
        ("2024-01-01", 0): "+0m|a,+26d|b",
        ("2024-01-01", 1): "+0m|c",
        ("2024-02-01", 0): "+1h|d",  # since c, over the border of the month
        ("2024-04-01", 0): "+60d|e",
    }
    assert told(found, "two") == {("2024-02-01", 0): "+0m|z"}
    quarters = windows(events, SPEC, CONF, WindowConf(period="quarter", events=3))
    assert told(quarters) == {
        ("2024-01-01", 0): "+0m|a,+26d|b,+0m|c",
        ("2024-01-01", 1): "+1h|d",
        ("2024-04-01", 0): "+60d|e",
    }
    assert set(told(windows(events, SPEC, CONF, WindowConf(period="year")))) == {("2024-01-01", 0)}
    assert set(told(windows(events, SPEC, CONF, WindowConf(period="none", events=4)))) == {
        ("1970-01-01", 0),
        ("1970-01-01", 1),
    }


def test_a_period_begins_where_a_clock_in_the_zone_of_the_data_says(spark: SparkSession, events: DataFrame) -> None:
    zoned = SPEC.model_copy(update={"time": SPEC.time.model_copy(update={"zone": "America/New_York"})})
    found = windows(events, zoned, CONF, WindowConf(events=8))
    assert set(told(found)) == {("2024-01-01", 0), ("2024-04-01", 0)}
    assert told(found)["2024-01-01", 0] == "+0m|a,+26d|b,+0m|c,+1h|d"
    # In February of the data's clock is what began in January of UTC.
    early = zoned.model_copy(update={"time": SPEC.time.model_copy(update={"zone": "Asia/Tokyo"})})
    assert told(windows(events, early, CONF, WindowConf(events=8)))["2024-02-01", 0] == "+26d|b,+0m|c,+1h|d"
    since = spark.createDataFrame([("one", at("2024-01-31 23:30"))], "client_id string, earliest timestamp")
    part = windows(events, early, CONF, WindowConf(events=8), since=since)
    assert set(told(part)) == {("2024-02-01", 0), ("2024-04-01", 0)}


def test_rows_have_the_columns_of_their_table_and_say_what_they_hold(events: DataFrame) -> None:
    frame = windows(events, SPEC, CONF, WindowConf(events=2))
    assert conform(WINDOWS, frame.withColumn("run_id", F.lit("r"))).columns[:-1] == frame.columns
    first = ordered(frame)[0]
    assert (first.client_id, first.format, first.windowing, first.serializer) == (
        "one",
        "compact",
        "month:2",
        "compact/2",
    )
    assert (first.first_event_time, first.last_event_time) == (
        at_naive("2024-01-05 12:00"),
        at_naive("2024-01-31 23:30"),
    )
    assert (first.event_count, first.token_estimate, first.cut_at) == (2, 2 + 2 * 2, None)
    assert 0 <= first.bucket < 64 and len(first.text_hash) == 64
    # All events in one window make the document, to the byte.
    whole = windows(events, SPEC, CONF, WindowConf(period="none", events=99)).where("client_id = 'one'").first()
    document = serialize(events, None, at("2025-01-01"), SPEC, CONF).where("client_id = 'one'").first()
    assert whole is not None and document is not None
    assert (whole.text, whole.text_hash) == (document.text, document.input_hash)
    assert (whole.event_count, whole.token_estimate) == (document.event_count_used, document.token_estimate)


def at_naive(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def test_a_time_that_is_asked_cuts_the_window_it_falls_into(spark: SparkSession, events: DataFrame) -> None:
    asked = cut(
        spark,
        ("one", "2024-01-05 12:00"),  # at the first event: nothing is before it
        ("one", "2024-01-20 00:00"),
        ("one", "2024-01-31 23:30"),  # at the last events, which do not count
        ("one", "2024-01-31 23:30"),
        ("one", "2024-01-31 23:31"),  # between windows: whole ones tell all
        ("two", "2024-01-20 00:00"),
        ("none", "2024-01-20 00:00"),
    )
    frame = windows(events, SPEC, CONF, WindowConf(events=8), cuts=asked)
    whole = frame.where("cut_at IS NULL")
    assert ordered(whole) == ordered(windows(events, SPEC, CONF, WindowConf(events=8)))
    cuts = ordered(frame.where("cut_at IS NOT NULL"))
    assert [(row.client_id, str(row.cut_at), row.text, row.event_count) for row in cuts] == [
        ("one", "2024-01-20 00:00:00", "pause|what\n+0m|a", 1),
        ("one", "2024-01-31 23:30:00", "pause|what\n+0m|a", 1),
    ]
    assert all(row.last_event_time < row.cut_at and row.token_estimate == 4 for row in cuts)
    # Two windows hold events of one instant: a time at it cuts the older one, and of the younger one no event counts.
    tied = windows(events, SPEC, CONF, WindowConf(events=2), cuts=cut(spark, ("one", "2024-01-31 23:30")))
    assert [(row.place, row.text) for row in ordered(tied.where("cut_at IS NOT NULL"))] == [(0, "pause|what\n+0m|a")]


def many(spark: SparkSession, count: int = 400) -> DataFrame:
    """Seven clients with events over two years, some at one instant."""
    return spark.range(count).selectExpr(
        "concat('c', id % 7) AS client_id",
        "concat('e', id) AS event_id",
        "timestamp_seconds(1672531200 + pmod(xxhash64(id div 3), 730) * 86400) AS event_time",
        "id % 3 AS event_seq",
        "concat('w', id % 5) AS what",
    )


@pytest.mark.parametrize("settings", [{"period": "month", "events": 2}, {"period": "none", "events": 5}, {}])
def test_windows_since_a_time_are_those_of_the_full_call(spark: SparkSession, settings: dict[str, Any]) -> None:
    events, windowing = many(spark), WindowConf(**settings)
    asked = cut(spark, *((f"c{n}", f"2023-{m:02d}-15 00:00") for n in range(7) for m in range(1, 13)))
    since = {"c1": at("2023-07-20 10:00"), "c4": at("2022-01-01"), "c6": at("2030-01-01")}
    frame = spark.createDataFrame(list(since.items()), "client_id string, earliest timestamp")
    part = ordered(windows(events, SPEC, CONF, windowing, cuts=asked, since=frame))
    first_day = {
        client: dt.date(1970, 1, 1) if windowing.period == "none" else time.date().replace(day=1)
        for client, time in since.items()
    }
    full = ordered(windows(events, SPEC, CONF, windowing, cuts=asked))
    assert part == [row for row in full if row.client_id in since and row.period >= first_day[row.client_id]]
    assert {row.client_id for row in part} >= {"c1", "c4"}
    if windowing.period == "month":
        assert len(part) < sum(row.client_id in since for row in full)
        assert any(row.cut_at for row in part)


def test_a_late_event_changes_its_window_and_the_one_after_alone(spark: SparkSession) -> None:
    events = many(spark).where("client_id = 'c1'")
    late = spark.createDataFrame([("c1", "late", at("2023-07-31 23:59"), 0, "late")], EVENTS)
    before = {key(row): row.text for row in windows(events, SPEC, CONF, WindowConf()).collect()}
    after = {key(row): row.text for row in windows(events.unionByName(late), SPEC, CONF, WindowConf()).collect()}
    assert before.keys() == after.keys()
    changed = sorted(one for one in after if after[one] != before[one])
    assert [str(period) for period, _ in changed] == ["2023-07-01", "2023-08-01"]
    assert before[changed[1]].split("\n")[2:] == after[changed[1]].split("\n")[2:]


def key(row: Row) -> tuple[dt.date, int]:
    return row.period, row.place


def test_rows_do_not_depend_on_the_order_of_events_or_partitions(spark: SparkSession) -> None:
    events, asked = many(spark), cut(spark, ("c1", "2023-07-20 10:00"))
    one = ordered(windows(events, SPEC, CONF, WindowConf(events=4), cuts=asked))
    other = events.repartition(7, "what").orderBy(F.xxhash64("event_id"))
    assert ordered(windows(other, SPEC, CONF, WindowConf(events=4), cuts=asked.repartition(3))) == one


def test_no_python_one_shuffle_of_the_events_and_one_sort(spark: SparkSession, events: DataFrame) -> None:
    asked = cut(spark, ("one", "2024-01-20 00:00"))
    for cuts, exchanges in ((None, 1), (asked, 1 + 1)):  # a small one brings the times there, and makes them distinct
        frame = windows(events, SPEC, CONF, WindowConf(), cuts=cuts)
        plan = frame._jdf.queryExecution().executedPlan().toString()
        assert "Python" not in plan and "lambda" not in plan
        assert plan.count("Exchange hashpartitioning") == exchanges
        assert plan.count("Sort [") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "json"}, "does not tell each event in one line"),
        ({"format": "xml"}, "take one of compact, lines, table"),
        ({"format": "published"}, "ranks its codes by all training clients"),
        ({"max_events": 100}, "max_events cut documents"),
    ],
)
def test_settings_that_windows_cannot_obey_are_refused(
    events: DataFrame, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        windows(events, SPEC, DocumentConf(**settings), WindowConf())


def faults(frame: DataFrame, events: DataFrame, windowing: WindowConf) -> dict[str, str]:
    checked = check_windows(frame, events, spec=SPEC, windowing=windowing)
    return {str(row.period): row.fault for row in checked.where("fault IS NOT NULL AND client_id = 'one'").collect()}


def test_the_check_finds_events_that_are_lost_or_told_twice(spark: SparkSession, events: DataFrame) -> None:
    windowing = WindowConf(events=2)
    good = windows(events, SPEC, CONF, windowing, cuts=cut(spark, ("one", "2024-01-20 00:00"))).cache()
    assert sum_up_windows(check_windows(good, events, spec=SPEC, windowing=windowing)) == {
        "clients_with_events": 2,
        "events": 6,
        "windows": 5,
        "cut_windows": 1,
        "tokens": 5 * 2 + 6 * 2,
    }
    january, second = F.col("period") == dt.date(2024, 1, 1), F.col("place") == 1
    changed = {
        "missing": good.where(~january),
        "lost": good.where(~(january & second)),
        "doubled": good.unionByName(good.where(january & second)),
        "text": good.withColumn("text", F.when(january, F.concat("text", F.lit("\n+0m|x"))).otherwise(F.col("text"))),
        "places": good.withColumn("place", F.when(january, F.col("place") + 1).otherwise(F.col("place"))),
    }
    for fault, frame in changed.items():
        assert faults(frame, events, windowing) == {"2024-01-01": fault}, fault
    assert faults(good, events.where("event_id <> '4'"), windowing) == {"2024-04-01": "unknown"}
    # Not filled from the oldest: the first window holds one event, the second two.
    turned = good.withColumn("place", F.when(january, 1 - F.col("place")).otherwise(F.col("place")))
    assert faults(turned, events, windowing) == {"2024-01-01": "places"}
    with pytest.raises(DataError, match="fault 'lost', client one, period 2024-01-01"):
        sum_up_windows(check_windows(changed["lost"], events, spec=SPEC, windowing=windowing))
    good.unpersist()
