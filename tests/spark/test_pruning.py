"""Rows of past nights: which of them somebody still asks for, and that taking the others away undoes no record."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.heads.vectors import newest_vectors
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.pruning import KINDS, Needed, gone_states, past_scores, past_vectors
from ledgerlm.runs.maintenance import retired
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records, StageRecord, TableRecord

PART = {"feature_set": ("agg",)}


def day(number: int) -> dt.datetime:
    return dt.datetime(2025, 1, number, tzinfo=dt.UTC)


def pairs(spark: SparkSession, *found: tuple[str, int]) -> DataFrame:
    rows = [(client, f"2025-01-{number:02d} 00:00:00") for client, number in found]
    return spark.createDataFrame(rows, "client_id string, time string").select(
        "client_id", F.col("time").cast("timestamp").alias("as_of")
    )


def features(spark: SparkSession, *found: tuple[str, int], feature_set: str = "agg") -> DataFrame:
    made = F.create_map(F.lit("x"), F.dayofmonth("as_of").cast("float")).alias("features")
    return pairs(spark, *found).select("client_id", "as_of", F.lit(feature_set).alias("feature_set"), made)


def told(rows: DataFrame) -> set[tuple[str, int]]:
    return {(row["client_id"], row["as_of"].day) for row in rows.select("client_id", "as_of").collect()}


def needed(spark: SparkSession, nights: list[int], seen: int, *asked: tuple[str, int]) -> Needed:
    return Needed(nights=[day(one) for one in nights], seen=day(seen), asked=pairs(spark, *asked))


def by(attempt: str, stage: str = "bank/aggregate") -> Author:
    return Author(attempt=attempt, stage=stage, run_id=f"run-{attempt}")


def test_a_vector_stays_while_it_serves_a_time_that_is_asked(spark: SparkSession) -> None:
    there = features(
        spark,
        *(("moves", number) for number in (1, 2, 3, 4, 5, 6, 7)),
        *(("quiet", number) for number in (1, 2)),
        ("once", 1),
    )
    asks = needed(spark, [4, 6], 6, ("moves", 2), ("quiet", 9))
    past = past_vectors(there, KINDS["features"], asks)
    # 2 is a label's, 4 and 6 are of kept nights, 7 of one that has not ended.
    assert told(past) == {("moves", 1), ("moves", 3), ("moves", 5), ("quiet", 1)}
    left = there.join(past, ["client_id", "as_of"], how="left_anti")
    for night in (4, 6, 7, 9):
        before, after = (newest_vectors(rows, "features", day(night)).collect() for rows in (there, left))
        assert sorted(before) == sorted(after), night


def test_a_vector_of_another_kind_makes_none_past(spark: SparkSession) -> None:
    there = features(spark, ("a", 1)).unionByName(features(spark, ("a", 5), feature_set="other"))
    assert told(past_vectors(there, KINDS["features"], needed(spark, [6], 6))) == set()


def test_scores_stay_of_kept_nights_of_labels_and_of_nights_to_come(spark: SparkSession) -> None:
    there = pairs(spark, *(("a", number) for number in range(1, 8))).select(
        "client_id", F.lit("churn").alias("task"), "as_of", F.lit("h").alias("head_id")
    )
    assert told(past_scores(there, needed(spark, [3, 5], 5, ("a", 2), ("b", 1)))) == {("a", 1), ("a", 4)}


def test_a_state_goes_with_the_last_window_of_its_client_that_holds_its_text(spark: SparkSession) -> None:
    states = spark.createDataFrame([("a", "t1"), ("a", "t2"), ("b", "t1")], "client_id string, text_hash string")
    states = states.withColumns({"backbone_id": F.lit("m"), "definition_id": F.lit("d")})
    windows = spark.createDataFrame([("a", "t1"), ("a", "t1"), ("b", "t2")], "client_id string, text_hash string")
    gone = {(row["client_id"], row["text_hash"]) for row in gone_states(states, windows).collect()}
    assert gone == {("a", "t2"), ("b", "t1")}


def test_pruned_rows_are_gone_and_their_stage_stands(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("features", features(spark, ("a", 1), ("a", 2), ("b", 1)), by=by("first"), part=PART)
    other = features(spark, ("a", 1), feature_set="other")
    lake.write("features", other, by=by("else", "study/aggregate"), part={"feature_set": ("other",)})
    state = lake.history.state("features", PART)
    gone = features(spark, ("a", 1)).unionByName(other).drop("features")
    lake.prune("features", gone, by=by("upkeep", "bank/maintain"), part=PART)
    rows = {(row["client_id"], row["as_of"].day, row["feature_set"]) for row in lake.read("features").collect()}
    assert rows == {("a", 2, "agg"), ("b", 1, "agg"), ("a", 1, "other")}, "rows of another slice stay"
    assert lake.history.state("features", PART) == state, "the newest commit of the rows is their stage's"
    assert lake.history.rows("features") is None, "how many are left, the commits do not say"
    newest = lake.history.newest("features")
    assert newest is not None and newest.neutral and newest.stage == "bank/maintain"
    done = lake.history.by("features", "first", PART)
    assert done is not None and done.attempt == "first", "an attempt that goes on finds what it had written"


def test_what_was_there_before_an_attempt_is_found_behind_upkeep(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("features", features(spark, ("a", 1)), by=by("one"), part=PART)
    lake.write("features", features(spark, ("a", 1), ("a", 2)), by=by("two"), part=PART)
    lake.prune("features", features(spark, ("a", 1)).drop("features"), by=by("upkeep"), part=PART)
    spark.sql(f"OPTIMIZE {lake.home.identifier('features')}")
    found = {name: lake.history.before("features", name) for name in ("one", "two", "three")}
    versions = {name: None if one is None else one.version for name, one in found.items()}
    newest = lake.version("features")
    assert versions == {"one": newest, "two": 0, "three": newest}, "another's rows are no attempt's own"
    assert lake.history.before("clients", "one") is None


def test_what_a_stage_wrote_under_settings_that_it_has_no_longer_goes(spark: SparkSession, tmp_path: Path) -> None:
    """Rows of other pipelines, and of a stage whose attempt was killed, stay."""
    (tmp_path / "spec.yaml").write_text(
        "name: bank\nclient: who\nsource: {path: ., files: [{glob: '*.csv'}]}\ntime: {column: at, format: yyyy-MM-dd}\n"
        "fields: [{name: mcc}]\n"
    )
    stages = "stages: {ingest: {}, aggregate: {}, publish: {}}"
    (tmp_path / "bank.yaml").write_text(f"pipeline: bank\ndata: spec.yaml\nout: {tmp_path}/out\n{stages}\n")
    pipeline = load_pipeline(str(tmp_path / "bank.yaml"))
    records, lake = Records(pipeline.out), Lake(str(tmp_path / "lake"), spark)
    for run, kind in (("old", "agg-1"), ("new", "agg-2"), ("elsewhere", "agg-3")):
        author = Author(attempt=run, stage="bank/aggregate", run_id=run)
        written = lake.write(
            "features",
            features(spark, ("a", 1), ("b", 1), feature_set=kind),
            by=author,
            part={"feature_set": (kind,)},
        )
        if run != "elsewhere":
            (pipeline.out / "runs" / run).mkdir(parents=True)
    part = {"feature_set": ("agg-2",)}
    table = TableRecord(version=written.version, rows=2, slice=part, state=lake.history.state("features", part))
    record = StageRecord(
        name="aggregate", job="aggregate", engine="spark", definition="d", attempt="new", done=True, run_id="new"
    )
    record = replace(record, tables={"features": table})
    records.save(record)
    left = retired(pipeline, records, lake, "features")
    assert left is not None and {row["feature_set"] for row in left.collect()} == {"agg-1"}
    assert retired(pipeline, records, lake, "scores") is None, "no stage writes any"
    records.save(replace(record, attempt="newer", done=False))
    assert retired(pipeline, records, lake, "features") is None
