"""Labels are those of their rows, or nobody's: what the data do not cover, and what contradicts itself, is counted."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.errors import DataError
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.labels import Labelled, first_events, labels_of
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_times import TimeSpec

EVENTS = (
    "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), currency string, "
    "mcc string"
)
BERLIN = {"column": "time", "zone": "Europe/Berlin"}


def events_of(spark: SparkSession, *rows: tuple[str, str, int | str | None, str], currency: str = "EUR") -> DataFrame:
    """Rows of client, time in UTC, amount, code."""
    made = [
        (client, str(place), dt.datetime.fromisoformat(f"{time}+00:00"), 0,
         None if amount is None else Decimal(amount), currency, code)
        for place, (client, time, amount, code) in enumerate(rows)
    ]  # fmt: skip
    return spark.createDataFrame(made, EVENTS)


def spec_of(*labels: dict[str, Any], **keys: Any) -> DataSetSpec:
    content: dict[str, Any] = {
        "name": "small",
        "source": {"files": [{"glob": "e.csv"}]},
        "amount": {"column": "amount"},
        "fields": [{"name": "mcc"}],
        "labels": labels,
    }
    return DataSetSpec.model_validate(content | keys)


def told(labelled: Labelled) -> dict[tuple[str, str, str], float]:
    rows = labelled.labels.selectExpr("client_id", "task", "cast(as_of as string) t", "label").collect()
    return {(row.client_id, row.task, row.t): row.label for row in rows}


def test_computed_labels_follow_a_grid_in_the_zone_of_the_data(spark: SparkSession) -> None:
    events = events_of(
        spark,
        ("a", "2024-02-10 10:00:00", 1, "x"),
        # Midnight in Berlin, then a minute before it: the first belongs to March, the second to February.
        ("a", "2024-02-29 23:00:00", 10, "x"),
        ("a", "2024-02-29 22:59:00", 100, "x"),
        # On 31 March the clock goes forward: 30 days from 1 March end at 22:00 UTC on 30 March.
        ("a", "2024-03-30 22:59:00", 1000, "y"),
        ("a", "2024-03-30 23:00:00", 5000, "x"),
        ("b", "2024-03-15 12:00:00", None, "x"),
        ("b", "2024-04-30 12:00:00", 7, "y"),
    )
    grid = {"every": "month", "from": "2024-02-01"}
    label = {"name": "spend", "kind": "regression", "future": {"days": 30}, "as_of": grid}
    some = label | {"name": "some", "only": {"mcc": ["y"]}, "as_of": grid | {"to": "2024-04-15"}}
    between = label | {"name": "less", "between": [0, 100]}
    counted = label | {"name": "busy", "kind": "binary", "thresholds": [2], "future": {"days": 30, "value": "events"}}
    spec = spec_of(label, some, between, counted, time=BERLIN)
    labelled = labels_of(spark, spec, first_events(events), events)
    found = told(labelled)
    march, april = "2024-02-29 23:00:00", "2024-03-31 22:00:00"
    assert {key: value for key, value in found.items() if key[1] == "spend"} == {
        ("a", "spend", march): 1010.0,
        ("a", "spend", april): 0.0,
        ("b", "spend", april): 7.0,
    }, "of February nobody has a history; the last days that the data cover end on 1 May"
    assert {key: value for key, value in found.items() if key[1] == "some"} == {
        ("a", "some", march): 1000.0,
        ("a", "some", april): 0.0,
        ("b", "some", april): 7.0,
    }
    assert {key[2]: value for key, value in found.items() if key[:2] == ("a", "less")} == {april: 0.0}
    assert {key[2]: value for key, value in found.items() if key[:2] == ("a", "busy")} == {march: 1.0, april: 0.0}
    [aside] = labelled.quarantine.collect()
    assert (aside.reason, aside.detail) == ("label_outside", "task less: 1010.0")


def test_sums_meet_thresholds_digit_by_digit(spark: SparkSession) -> None:
    day = "2024-02-10 10:00:00"
    tenths = [("a", f"2024-03-02 1{hour}:00:00", "0.1", "x") for hour in range(8)]
    many = [("b", f"2024-03-02 1{hour}:00:00", value, "x") for hour, value in enumerate(("1.1", "2.2", "-2.5"))]
    rows = [*((one, day, "5", "x") for one in "ab"), *tenths, *many, ("c", "2024-06-10 10:00:00", "5", "x")]
    events = events_of(spark, *rows)
    label = {"name": "spends", "kind": "binary", "future": {"days": 10}, "thresholds": [0.8], "as_of": "2024-03-01"}
    found = told(labels_of(spark, spec_of(label), first_events(events), events))
    assert {key[0]: value for key, value in found.items()} == {"a": 1.0, "b": 1.0}, "in doubles a has .7999999999999999"


def test_what_the_data_do_not_cover_has_no_label(spark: SparkSession) -> None:
    days = [(one, f"2024-0{month}-15 10:00:00", 5, "x") for one in "ab" for month in range(1, 7)]
    alone = ("a", "2099-01-01 10:00:00", 5, "x")
    label = {"name": "spend", "kind": "regression", "future": {"days": 30}}
    dates = {"in_time": "2024-05-01", "too_late": "2024-06-01"}
    spec = spec_of(*(label | {"name": name, "as_of": day} for name, day in dates.items()))
    for rows in (days, [*days, alone]):
        events = events_of(spark, *rows)
        end = end_of_data(events, spec.time)
        assert (end.time, end.beyond) == (dt.datetime(2024, 6, 16), len(rows) - len(days))
        labelled = labels_of(spark, spec, first_events(events), events)
        assert {key[:2]: value for key, value in told(labelled).items()} == {("a", "in_time"): 5, ("b", "in_time"): 5}
        counts = labelled.by_task()
        assert (counts["in_time"].censored, counts["too_late"].censored) == (0, 2)
        assert (counts["too_late"].rows, counts["too_late"].out) == (0, 0)
    stated = spec_of(*spec.model_dump(exclude_unset=True, by_alias=True)["labels"],
                     time={"column": "event_time", "end": "2024-07-01"})  # fmt: skip
    labelled = labels_of(spark, stated, first_events(events), events)
    assert len(told(labelled)) == 4
    assert end_of_data(events, stated.time).beyond == 1
    begins_late = spec_of(label | {"as_of": {"every": "month", "from": "2024-06-01"}})
    with pytest.raises(DataError, match="no instant from 2024-06-01 on has its 30 days before the end of the data"):
        labels_of(spark, begins_late, first_events(events), events)


def test_the_end_of_the_data_is_the_last_event_unless_it_stands_alone(spark: SparkSession) -> None:
    def end(*days: str) -> str:
        events = events_of(spark, *(("a", f"{day} 10:00:00", 1, "x") for day in days))
        return str(end_of_data(events, TimeSpec(column="t", zone="Europe/Berlin")).time)

    early = ["2020-01-01", "2020-06-01", "2020-12-01"]
    assert end(*early, "2021-11-30") == "2021-12-01 00:00:00+01:00"
    assert end(*early, "2022-01-01") == "2020-12-02 00:00:00+01:00"
    assert end(*early, "2022-01-01", "2022-01-02") == "2022-01-03 00:00:00+01:00", "two of five are the data's own"
    assert end("2020-01-01", "2030-01-01") == "2030-01-02 00:00:00+01:00"


def test_labels_of_events_without_an_amount_are_counted(spark: SparkSession) -> None:
    events = events_of(
        spark,
        *((one, f"2024-0{month}-02 10:00:00", None if one == "b" else 5, "x") for one in "ab" for month in (1, 3, 5)),
    )
    spec = spec_of({"name": "spend", "kind": "regression", "future": {"days": 30}, "as_of": "2024-03-01"})
    labelled = labels_of(spark, spec, first_events(events), events)
    assert {key[0]: value for key, value in told(labelled).items()} == {"a": 5.0, "b": 0.0}
    assert labelled.counts().unpriced == 1


def test_currencies_are_not_added_up_in_labels(spark: SparkSession) -> None:
    one = events_of(spark, ("a", "2024-01-02 10:00:00", 5, "x"), ("a", "2024-03-02 10:00:00", 10, "x"))
    both = one.union(events_of(spark, ("a", "2024-03-03 10:00:00", 10_000, "x"), currency="JPY"))
    events = both.union(events_of(spark, ("a", "2024-05-03 10:00:00", 1, "x")))
    label = {"name": "spend", "kind": "regression", "future": {"days": 30}, "as_of": "2024-03-01"}
    amount = {"column": "amount", "currency_column": "currency"}
    with pytest.raises(DataError, match=r"several currencies \(EUR, JPY\) cannot be added up; give rates"):
        labels_of(spark, spec_of(label, amount=amount), first_events(events), events)
    spec = spec_of(label | {"only": {"currency": ["JPY"]}}, amount=amount)
    yen = labels_of(spark, spec, first_events(events), events)
    assert list(told(yen).values()) == [10_000.0]


@pytest.mark.parametrize(("rule", "kept"), [("absent", {}), ("least", {"a": 0.0}), ("most", {"a": 1.0})])
def test_labels_that_contradict_each_other(
    spark: SparkSession, tmp_path: Path, rule: str, kept: dict[str, float]
) -> None:
    (tmp_path / "l.csv").write_text("client,y\na,1\na,0\na,1\nb,1\nb,1\nb,x\n")
    label = {"name": "y", "kind": "binary", "file": {"glob": "l.csv"}, "id": "client", "column": "y"}
    source = {"path": str(tmp_path), "files": [{"glob": "e.csv"}]}
    spec = spec_of(label | {"conflicts": rule}, as_of="2024-06-01", source=source)
    firsts = first_events(events_of(spark, ("a", "2024-01-01 10:00:00", 1, "x"), ("b", "2024-01-01 10:00:00", 1, "x")))
    labelled = labels_of(spark, spec, firsts)
    assert {key[0]: value for key, value in told(labelled).items()} == kept | {"b": 1.0}
    counts = labelled.counts()
    contradicting = {"absent": 3, "least": 2, "most": 1}[rule]
    assert (counts.rows, counts.quarantined) == (6, contradicting + 1)
    found = labelled.quarantine.where("reason = 'conflicting_label'").collect()
    assert len(found) == contradicting
    assert {row.detail for row in found} <= {"task y: 0", "task y: 1"}


def test_instants_of_labels_that_the_clock_changed_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    times = {"a": "2024-03-31 02:30", "b": "2024-10-27 02:30", "c": "2024-10-27 02:30+01:00", "d": "2024-10-27",
             "e": "2024-05-01 10:00:00.1234567", "f": "2024-05", "g": "2024-05-01 10:00 IST"}  # fmt: skip
    (tmp_path / "l.csv").write_text("client,y,at\n" + "".join(f"{one},1,{time}\n" for one, time in times.items()))
    label = {"name": "y", "kind": "regression", "file": {"glob": "l.csv"}, "id": "client", "column": "y"}
    source = {"path": str(tmp_path), "files": [{"glob": "e.csv"}]}
    spec = spec_of(label | {"as_of": {"column": "at"}}, time=BERLIN, source=source)
    events = events_of(spark, *((one, "2024-01-01 10:00:00", 1, "x") for one in times))
    labelled = labels_of(spark, spec, first_events(events), events)
    assert {client: at for client, _, at in told(labelled)} == {
        "a": "2024-03-31 01:30:00", "b": "2024-10-27 00:30:00", "c": "2024-10-27 01:30:00", "d": "2024-10-26 22:00:00",
        "e": "2024-05-01 08:00:00.123456",
    }  # fmt: skip
    counts = labelled.counts()
    assert (counts.skipped, counts.doubled, counts.lossy) == (1, 1, 1)
    assert {(row.reason, row.detail) for row in labelled.quarantine.collect()} == {
        ("bad_time", "task y: at: 2024-05"),
        ("bad_time", "task y: at: 2024-05-01 10:00 IST"),
    }
