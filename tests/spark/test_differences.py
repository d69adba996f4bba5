"""Differences are applied in one commit, leave all other rows in place, and are not applied twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.session import setting
from ledgerlm.lake.differences import CHANGE, applied, differences
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake

KEY = ("client_id", "batch")
COLUMNS = "client_id string, batch long, earliest timestamp, appended long, corrected long, deleted long"


def by(attempt: str) -> Author:
    return Author(attempt=attempt, stage="test/ingest", run_id="run-1")


def rows(spark: SparkSession, *found: tuple[str, int | None, int]) -> DataFrame:
    frame = spark.createDataFrame([(one, batch, count) for one, batch, count in found], "c string, b long, n long")
    return frame.select(
        F.col("c").alias("client_id"),
        F.col("b").alias("batch"),
        F.lit("2024-01-01").cast("timestamp").alias("earliest"),
        F.col("n").alias("appended"),
        F.lit(0).cast("long").alias("corrected"),
        F.lit(0).cast("long").alias("deleted"),
    )


def held(frame: DataFrame) -> set[tuple[str, int | None, int]]:
    return {(row["client_id"], row["batch"], row["appended"]) for row in frame.collect()}


def test_differences_name_what_is_new_changed_and_gone_and_nothing_else(spark: SparkSession) -> None:
    old = rows(spark, ("a", 1, 5), ("b", 1, 5), ("c", None, 5), ("d", None, 5))
    new = rows(spark, ("a", 1, 5), ("b", 1, 6), ("c", None, 5), ("e", 1, 7))
    found = differences(old, new, KEY, ("appended",))
    kinds = {(row["client_id"], row["batch"]): row[CHANGE] for row in found.collect()}
    assert kinds == {("b", 1): "update", ("d", None): "delete", ("e", 1): "insert"}
    assert held(applied(old, found, KEY)) == held(new)


@pytest.fixture(params=["folder", "catalog", "folder serverless", "catalog serverless"])
def lake(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> Iterator[Lake]:
    """A lake in a folder or a catalog, in a session that takes a signature for SQL, or takes none."""
    where, _, strict = request.param.partition(" ")
    if strict:
        request.getfixturevalue(strict)
    yield Lake(str(tmp_path) if where == "folder" else "spark_catalog.nights", spark)
    spark.sql("DROP SCHEMA IF EXISTS spark_catalog.nights CASCADE")


def test_applied_differences_leave_the_table_as_if_it_were_written_anew(spark: SparkSession, lake: Lake) -> None:
    old = rows(spark, ("a", 1, 5), ("b", 1, 5), ("d", 1, 5))
    first = lake.apply("changes", differences(rows(spark), old, KEY, ("appended",)), by=by("1"))
    assert (first.rows, held(lake.read("changes"))) == (3, held(old))
    new = rows(spark, ("a", 1, 5), ("b", 1, 6), ("e", 1, 7))
    found = differences(lake.read("changes"), new, KEY, ("appended",))
    second = lake.apply("changes", found, by=by("2"))
    assert (second.rows, second.repeated, held(lake.read("changes"))) == (3, False, held(new))
    assert second.state is not None and second.state.attempt == "2"
    assert setting(spark, "spark.databricks.delta.commitInfo.userMetadata", "none") == "none", "put back"
    again = lake.apply("changes", found, by=by("2"))
    assert (again.repeated, again.version, lake.version("changes")) == (True, second.version, second.version)


def test_new_rows_alone_are_appended_and_no_difference_is_no_commit(spark: SparkSession, lake: Lake) -> None:
    lake.write("changes", rows(spark, ("a", 1, 5)), by=by("1"))
    more = differences(rows(spark, ("a", 1, 5)), rows(spark, ("a", 1, 5), ("b", 1, 5)), KEY, ("appended",))
    lake.apply("changes", more, by=by("2"))
    newest = (
        spark.sql(f"DESCRIBE HISTORY {lake.home.identifier('changes')}").orderBy("version", ascending=False).first()
    )
    assert newest is not None
    assert (newest["operation"], lake.history.rows("changes"), lake.rows("changes")) == ("WRITE", None, 2)
    none = differences(lake.read("changes"), lake.read("changes"), KEY, ("appended",))
    before = lake.version("changes")
    assert lake.apply("changes", none, by=by("3")).version == lake.version("changes") == before
