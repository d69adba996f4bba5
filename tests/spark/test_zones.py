"""Hours, weekdays, days and ends of histories are those of a clock in the zone of the data."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.baselines.agg import Agg, AggConf, what_is_summed
from ledgerlm.baselines.folding import Partials
from ledgerlm.baselines.sequence.histories import choose, observe
from ledgerlm.baselines.sequence.settings import FieldsConf
from ledgerlm.errors import ConfigError
from ledgerlm.events.clock import in_zone
from ledgerlm.events.condition import Condition
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.ingest import ingest_events
from ledgerlm.events.labels import first_events, labels_of
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_times import TimeSpec
from ledgerlm.events.times import CLOCK_CHOICES, DOUBLED, LOSSY, SKIPPED, TIME, timed
from ledgerlm.heads.guessing import GuessConf
from ledgerlm.text.documents import SerializeConf, tell_histories


def read(spark: SparkSession, folder: Path, times: list[str], **keys: Any) -> tuple[DataFrame, DataSetSpec]:
    """Events of one client at these times."""
    rows = "".join(f"{place},a,{time},{place},x\n" for place, time in enumerate(times))
    (folder / "e.csv").write_text("id,client,time,amount,weekday\n" + rows)
    content: dict[str, Any] = {
        "name": "small",
        "source": {"path": str(folder), "files": [{"glob": "e.csv"}]},
        "client": "client",
        "event_id": {"columns": ["id"]},
        "amount": {"column": "amount"},
        "fields": [{"name": "kind", "column": "weekday"}],
    }
    spec = DataSetSpec.model_validate(content | keys)
    return ingest_events(spark, spec).events.cache(), spec


def texts(events: DataFrame, spec: DataSetSpec, **conf: Any) -> list[str]:
    clients = events.select("client_id", F.lit("train").alias("split")).distinct()
    end = end_of_data(events, spec.time).time
    told = tell_histories(events, clients, SerializeConf(**conf), spec=spec, end=end)
    return [row.text for row in told.tables["documents"].frame.collect()]


def codes(events: DataFrame, spec: DataSetSpec) -> dict[str, tuple[str, ...]]:
    as_of = events.select("client_id", F.lit("2030-01-01").cast("timestamp").alias("as_of")).distinct()
    partials = Partials.of(events, what_is_summed(AggConf(), spec, events), keep=lambda frame: frame)
    return Agg.fit(partials.histories(as_of), AggConf(), partials.summed).codes


def test_hours_and_weekdays_are_those_of_the_zone(spark: SparkSession, tmp_path: Path) -> None:
    zone = {"column": "time", "zone": "America/New_York"}
    # 1 May was a Wednesday; in UTC both are on Thursday. In December the offset is another.
    times = ["2024-05-01 21:30:00", "2024-05-01 23:00:00", "2024-12-02 09:00:00"]
    events, spec = read(spark, tmp_path, times, time=zone)
    [text] = texts(events, spec)
    assert [line.split("|")[:3] for line in text.split("\n")[1:] if line] == [
        ["+0d", "Wed", "21h"],
        ["+0d", "Wed", "23h"],
        ["+215d", "Mon", "9h"],
    ]
    [exact] = texts(events, spec, format="lines")
    assert "2024-05-01 21:30" in exact
    assert codes(events, spec)["hour"] == ("21", "23", "9")
    assert codes(events, spec)["weekday"] == ("4", "2")
    chosen = observe(events, choose(spec, FieldsConf())).select(F.explode("codes").alias("c")).select("c.*")
    assert {row.code for row in chosen.where("field = 'hour'").collect()} == {"21", "23", "9"}
    assert str(end_of_data(events, spec.time).time) == "2024-12-03 00:00:00-05:00"
    events.unpersist()


def test_rows_may_have_zones_of_their_own(spark: SparkSession, tmp_path: Path) -> None:
    good = {"Asia/Tokyo": "00:00", "+02:00": "07:00", "": "13:00", "+0530": "03:30", "UTC+3": "06:00", "GMT-3": "12:00",
            "Z": "09:00", "+5": "04:00", "UTC": "09:00"}  # fmt: skip
    bad = ["Mars/Base", "IST", "CST", "CET", "+530", "+99:00"]
    rows = [f"i{zone},a,2024-05-01 09:00:00,1,{zone}" for zone in (*good, *bad)]
    rows += ["iown,a,2024-05-01 09:00:00Z,1,Mars/Base", "inone,a,9 o'clock,1,Mars/Base"]
    (tmp_path / "z.csv").write_text("id,client,time,amount,where\n" + "\n".join(rows))
    content: dict[str, Any] = {
        "name": "small",
        "source": {"path": str(tmp_path), "files": [{"glob": "z.csv"}]},
        "client": "client",
        "event_id": {"columns": ["id"]},
        "time": {"column": "time", "zone": "America/New_York", "zone_column": "where"},
        "fields": [{"name": "amount_text", "column": "amount"}],
    }
    result = ingest_events(spark, DataSetSpec.model_validate(content))
    found = result.events.selectExpr("substring(event_id, 2) id", "cast(event_time as string) t").collect()
    assert {row.id: row.t[11:16] for row in found} == {**good, "own": "09:00"}
    assert {(row.reason, row.detail) for row in result.quarantine.collect()} == {
        *(("bad_time", f"where: {zone}") for zone in bad),
        ("bad_time", "time: 9 o'clock"),
    }


@pytest.mark.parametrize("form", ["timestamp", "yyyy-MM-dd"])
def test_dates_are_the_datas_own_whatever_zone_their_row_has(spark: SparkSession, tmp_path: Path, form: str) -> None:
    zones = ["Asia/Tokyo", "Pacific/Honolulu", "", "Mars/Base"]
    times = [f"2018-11-0{3 + place},{zone}" for place, zone in enumerate(zones)]
    rows = "".join(f"{place},a,{time},x\n" for place, time in enumerate(times))
    # A time of day beside them is one of its row's zone.
    rows += "4,a,2018-11-08 09:00:00,Asia/Tokyo,x\n" if form == "timestamp" else ""
    (tmp_path / "d.csv").write_text("id,client,time,where,kind\n" + rows)
    time = {"column": "time", "format": form, "zone": "America/Sao_Paulo", "zone_column": "where"}
    files = {"path": str(tmp_path), "files": [{"glob": "d.csv"}]}
    content = {"name": "small", "client": "client", "event_id": {"columns": ["id"]}, "fields": [{"name": "kind"}]}
    spec = DataSetSpec.model_validate(content | {"source": files, "time": time})
    result = ingest_events(spark, spec)
    events = result.events.cache()
    found = {row.event_id: row.t for row in events.selectExpr("event_id", "cast(event_time as string) t").collect()}
    # On 4 November 2018 the clock of Sao Paulo began at one; the day is that day nevertheless, and nothing is lost.
    days = ["2018-11-03 03:00:00", "2018-11-04 03:00:00", "2018-11-05 02:00:00", "2018-11-06 02:00:00"]
    assert found == {str(place): day for place, day in enumerate(days)} | (
        {"4": "2018-11-08 00:00:00"} if form == "timestamp" else {}
    )
    assert result.counts().choices == {}
    [text] = texts(events.where("event_id < 4"), spec)
    assert [line.split("|")[1] for line in text.split("\n")[1:] if line] == ["Sat", "Sun", "Mon", "Tue"]
    midnights = spec.model_copy(update={"time": spec.time.model_copy(update={"clock": True})})
    said = ingest_events(spark, midnights)
    found = {
        row.event_id: row.t for row in said.events.selectExpr("event_id", "cast(event_time as string) t").collect()
    }
    assert found["0"] == "2018-11-02 15:00:00", "midnights that are times have the zone of their row"
    assert [row.detail for row in said.quarantine.collect()] == ["where: Mars/Base"]
    events.unpersist()


def test_dates_stay_dates_and_have_no_hour(spark: SparkSession, tmp_path: Path) -> None:
    times = ["2024-05-01", "2024-06-01"]
    for form in ({}, {"format": "yyyy-MM-dd"}):
        events, spec = read(spark, tmp_path, times, time={"column": "time", "zone": "Europe/Berlin"} | form)
        [text] = texts(events, spec)
        assert [line.split("|")[:3] for line in text.split("\n")[1:] if line] == [
            ["+0d", "Wed", "x"],
            ["+31d", "Sat", "x"],
        ]
        [exact] = texts(events, spec, format="lines")
        assert "2024-06-01" in exact
        assert "00:00" not in exact
        assert set(codes(events, spec)) == {"kind", "weekday"}
        events.unpersist()
    # Said outright, midnights are times.
    events, spec = read(spark, tmp_path, times, time={"column": "time", "clock": True})
    assert texts(events, spec)[0].count("|0h|") == 2
    events.unpersist()


def test_a_field_of_the_data_wins_over_what_is_computed(spark: SparkSession, tmp_path: Path) -> None:
    fields = [{"name": "weekday"}]
    events, spec = read(spark, tmp_path, ["2024-05-01 10:00:00"], time={"column": "time"}, fields=fields)
    assert codes(events, spec)["weekday"] == ("x",)
    events.unpersist()


def test_as_of_without_a_zone_is_in_the_data_s(spark: SparkSession, tmp_path: Path) -> None:
    times = ["2024-05-31 23:30:00", "2024-06-01 00:30:00"]
    (tmp_path / "l.csv").write_text("client,y,when\na,1,2024-06-01\na,0,2024-05-31 23:30:00\n")
    label = {"name": "y", "kind": "binary", "file": {"glob": "l.csv"}, "id": "client", "column": "y"}
    events, spec = read(
        spark,
        tmp_path,
        times,
        time={"column": "time", "zone": "Europe/Berlin"},
        labels=[label | {"as_of": {"column": "when"}}, label | {"name": "z", "as_of": "2024-06-01"}],
        as_of="2024-06-01",
    )
    labelled = labels_of(spark, spec, first_events(events))
    found = labelled.labels.selectExpr("task", "label", "cast(as_of as string) t").collect()
    at = "2024-05-31 22:00:00"  # midnight in Berlin, in UTC
    # The first event is no history of a label at its own instant; of z both rows of one client disagree.
    assert ("y", 1.0, at) in {tuple(row) for row in found}
    assert {row.t for row in found} == {at}
    [text] = texts(events.where(F.col("event_time") < F.lit(at).cast("timestamp")), spec)
    assert text.count("|23h|") == 1
    assert spec.as_of is not None
    assert spec.as_of.isoformat() == "2024-06-01T00:00:00+02:00"
    events.unpersist()


def test_hours_that_the_clock_skips_are_read_later_and_counted(spark: SparkSession, tmp_path: Path) -> None:
    def choices(times: list[str], **time: Any) -> tuple[dict[str, int], list[str]]:
        rows = "".join(
            f"{place},a,{one},{hour},x\n" for place, (one, _, hour) in enumerate(t.partition("#") for t in times)
        )
        (tmp_path / "s.csv").write_text("id,client,time,hour,weekday\n" + rows)
        content = {
            "name": "small",
            "source": {"path": str(tmp_path), "files": [{"glob": "s.csv"}]},
            "client": "client",
            "event_id": {"columns": ["id"]},
            "time": {"column": "time"} | time,
            "fields": [{"name": "kind", "column": "weekday"}],
        }
        result = ingest_events(spark, DataSetSpec.model_validate(content))
        found = result.events.selectExpr("cast(event_time as string) t").orderBy("event_id").collect()
        return dict(result.counts().choices), [row.t[5:16] for row in found]

    said = "times that the clock of their zone skipped"
    night = ["2024-03-31 01:30:00", "2024-03-31 02:30:00", "2024-03-31 03:30:00", "2024-03-31 02:30:00+00:00"]
    berlin = ["03-31 00:30", "03-31 01:30", "03-31 01:30", "03-31 02:30"]
    assert choices(night, zone="Europe/Berlin") == ({said: 1}, berlin)
    pattern = {"format": "yyyy-MM-dd HH:mm:ss", "zone": "Europe/London"}
    assert choices(night[:3], **pattern)[0] == {said: 1}
    assert choices(night, zone="UTC")[0] == {}
    hours = [f"2024-03-31#{hour}" for hour in (1, 2, 3)]
    assert choices(hours, format="yyyy-MM-dd", hour="hour", zone="Europe/Berlin")[0] == {said: 1}
    autumn = ["2024-10-27 01:59:59", "2024-10-27 02:00:00", "2024-10-27 02:59:59", "2024-10-27 03:00:00"]
    earlier = ["10-26 23:59", "10-27 00:00", "10-27 00:59", "10-27 02:00", "10-27 01:30", "10-27 09:00"]
    others = ["2024-10-27 02:30:00+01:00", "2024-10-27 10:00:00.1234567"]
    twice, cut = CLOCK_CHOICES[DOUBLED], CLOCK_CHOICES[LOSSY]
    assert choices([*autumn, *others], zone="Europe/Berlin") == ({twice: 2, cut: 1}, earlier)


def test_what_a_time_loses_is_marked(spark: SparkSession) -> None:
    fine, fraction = "2024-05-01 10:00:00.123456", "yyyyMMdd HH:mm:ss.SSSSSSSSS"
    howe, paulo = {"zone": "Australia/Lord_Howe"}, {"zone": "America/Sao_Paulo"}
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {fine: "", fine + "000": "", fine + "789": LOSSY, fine + "0001Z": LOSSY, "2024-05-01 10:00:60": LOSSY}),
        ({"format": fraction}, {f"20240501 10:00:00.{one}": LOSSY for one in ("123456789", "000000001")}),
        ({"format": fraction}, {"20240501 10:00:00.123456000": ""}),
        ({"format": "HH:mm:ss dd.MM.yyyy"}, {"10:00:60 01.05.2024": LOSSY, "10:00:59 01.05.2024": ""}),
        ({"format": "days_clock", "origin": "2024-01-01"}, {"1 10:00:60": LOSSY, "1 10:00:00": ""}),
        ({"format": "epoch"}, {"1714550400.1234567": LOSSY, "1714550400.123456": "", "1714550400": ""}),
        ({"format": "epoch_ms"}, {"1714550400123.4567": LOSSY, "1714550400123.456": ""}),
        ({"format": "epoch_us"}, {"1714550400123456.5": LOSSY, "1714550400123456": ""}),
        ({"format": "epoch_ns"}, {"1714550400123456789": LOSSY, "1714550400123456000": ""}),
        # On Lord Howe the clock is put back by half an hour.
        (
            howe,
            {"2024-04-07 01:29": "", "2024-04-07 01:30": DOUBLED, "2024-04-07 01:59": DOUBLED, "2024-04-07 02:00": ""},
        ),
        # A day is no time that the clock could skip.
        (paulo, {"2018-11-04": "", "2018-11-04 00:30": SKIPPED}),
        (paulo | {"format": "yyyy-MM-dd"}, {"2018-11-04": ""}),
    ]
    frames: list[DataFrame] = []
    expected: dict[tuple[int, str], set[str]] = {}
    for place, (form, values) in enumerate(cases):
        rows = spark.createDataFrame([(place, one) for one in values], "place int, text string")
        frames.append(timed(rows, F.col("text"), T.StringType(), TimeSpec(column="t", **form)))
        expected |= {(place, one): {flag} - {""} for one, flag in values.items()}
    found = reduce(DataFrame.unionByName, frames).collect()
    assert {(row.place, row.text): {flag for flag in CLOCK_CHOICES if row[flag]} for row in found} == expected
    assert [(row.place, row.text) for row in found if row[TIME] is None] == []
    # A day of Sao Paulo that begins at one: its two o'clock is two.
    day = spark.createDataFrame([("2018-11-04", hour) for hour in (0, 2)], "text string, hour int")
    time = TimeSpec(column="t", format="yyyy-MM-dd", hour="hour", zone="America/Sao_Paulo")
    hours = timed(day, F.col("text"), T.StringType(), time, hours=F.col("hour"))
    assert [tuple(row) for row in hours.selectExpr(f"cast({TIME} as string)", SKIPPED).collect()] == [
        ("2018-11-04 03:00:00", True),
        ("2018-11-04 04:00:00", False),
    ]


def test_conditions_see_the_clock_of_the_zone(spark: SparkSession) -> None:
    before = "(timestamp '2024-05-31 21:59:00', 'before', date '2024-05-31')"
    after = "(timestamp '2024-05-31 22:00:00', 'after', null)"
    rows = spark.sql(f"SELECT * FROM VALUES {before}, {after} AS t (as_of, name, day)")
    conf = in_zone(GuessConf(task="t", where=Condition("as_of < '2024-06-01'")), "Europe/Berlin")
    assert [row.name for row in conf.where.rows(rows).collect()] == ["before"]
    assert GuessConf.model_validate(conf.model_dump() | {"where": "name = 'after'"}).where == "name = 'after'"
    told = Condition("hour(as_of) = 0 AND day IS NULL", "Europe/Berlin").rows(rows).collect()
    assert [tuple(row) for row in told] == [
        tuple(row) for row in rows.where("name = 'after'").collect()
    ]  # as they were
    marked = Condition("day < '2024-06-01'", "Europe/Berlin").marked(rows, "early")
    assert [(row.name, row.early) for row in marked.orderBy("as_of").collect()] == [("before", True), ("after", None)]
    with pytest.raises(ConfigError, match=r"goal x: when: 'nothing = 1' is no condition over as_of, name, day"):
        Condition("nothing = 1").marked(rows, "x", "goal x: when")


def test_texts_tell_what_a_condition_of_the_zone_keeps(spark: SparkSession, tmp_path: Path) -> None:
    zone = {"column": "time", "zone": "America/New_York"}
    events, spec = read(spark, tmp_path, ["2024-05-01 21:30:00", "2024-05-01 23:00:00"], time=zone)
    conf = in_zone(SerializeConf.model_validate({"only": "hour(event_time) < 23"}), spec.time.zone)
    [text] = texts(events, spec, only=conf.only)
    assert [line.split("|")[2] for line in text.split("\n")[1:] if line] == ["21h"]
    events.unpersist()
