"""Delta tables: constraints hold, slices are replaced alone, a repeated transaction changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake

RUN = "run-1"


def documents(spark: SparkSession, text_format: str, ids: range) -> DataFrame:
    return spark.range(ids.start, ids.stop).select(
        F.col("id").cast("string").alias("client_id"),
        F.lit("2020-01-01").cast("timestamp").alias("as_of"),
        F.lit(text_format).alias("format"),
        F.lit("text").alias("text"),
        F.lit(1).alias("event_count_used"),
        F.lit(0).alias("event_count_cut"),
        F.lit("2019-01-01").cast("timestamp").alias("last_event_time"),
        F.lit(3).alias("token_estimate"),
        F.lit("hash").alias("input_hash"),
        F.lit("s/1").alias("serializer"),
    )


def by(attempt: int) -> Author:
    return Author(attempt=str(attempt), stage="test/documents", run_id=RUN)


def test_slice_is_replaced_alone_and_a_repeated_write_is_dropped(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("documents", documents(spark, "json", range(4)), by=by(1))
    part = {"format": ("compact",)}
    first = lake.write("documents", documents(spark, "compact", range(3)), by=by(2), part=part)
    again = lake.write("documents", documents(spark, "compact", range(9)), by=by(2), part=part)
    assert (first.rows, again.version, again.rows, again.repeated) == (3, first.version, 3, True)
    counts = {row["format"]: row["count"] for row in lake.read("documents").groupBy("format").count().collect()}
    assert counts == {"json": 4, "compact": 3}
    lake.write("documents", documents(spark, "compact", range(5)), by=by(3), part=part)
    assert lake.rows("documents") == 9
    assert lake.rows("documents", first.version) == 7


def test_rows_are_told_by_the_commits_where_these_know_them(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    for attempt, (name, count) in enumerate([("json", 2), ("compact", 3), ("compact", 5)]):
        lake.write("documents", documents(spark, name, range(count)), by=by(attempt), part={"format": (name,)})
    spark.sql(f"OPTIMIZE delta.`{tmp_path}/documents`")
    assert lake.history.rows("documents") == lake.rows("documents") == 7
    lake.write("documents", documents(spark, "json", range(4)), by=by(3))
    assert lake.history.rows("documents") == lake.rows("documents") == 4
    lake.write("documents", documents(spark, "compact", range(1)), by=by(4), part={"format": ("compact",)})
    assert lake.history.rows("documents") is None, "how many of the four were replaced, the commits do not say"
    spark.sql(f"DELETE FROM delta.`{tmp_path}/documents` WHERE client_id = '0'")
    assert lake.history.rows("documents") is None
    assert lake.history.rows("clients") == 0


def test_row_outside_its_slice_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    compact = documents(spark, "compact", range(2))
    with pytest.raises(Exception, match="a row outside the slice that is written: format is json"):
        lake.write("documents", documents(spark, "json", range(2)), by=by(1), part={"format": ("compact",)})
    lake.write("documents", compact, by=by(1), part={"format": ("compact",)})
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        lake.write(
            "documents",
            documents(spark, "json", range(2)),
            by=by(2),
            part={"format": ("compact",)},
        )


def test_constraints_hold(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    future = documents(spark, "json", range(2)).withColumn("last_event_time", F.col("as_of"))
    with pytest.raises(Exception, match="no_future"):
        lake.write("documents", future, by=by(1))
    nobody = documents(spark, "json", range(2)).withColumn("client_id", F.lit(None).cast("string"))
    with pytest.raises(Exception, match="client_id_not_null"):
        lake.write("documents", nobody, by=by(2))


def test_columns_are_checked(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    with pytest.raises(DataError, match="lack the columns text"):
        lake.write("documents", documents(spark, "json", range(2)).drop("text"), by=by(1))
    more = documents(spark, "json", range(2)).withColumn("colour", F.lit("red"))
    with pytest.raises(DataError, match="unknown columns colour"):
        lake.write("documents", more, by=by(1))
    with pytest.raises(DataError, match="did you mean 'documents'"):
        lake.read("document")


def test_open_table_takes_the_columns_of_another_data_set(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    clients = spark.createDataFrame([("1", "train", "x")], "client_id string, split string, age string")
    lake.write("clients", clients, by=by(1))
    other = spark.createDataFrame([("2", "test", "y")], "client_id string, split string, region string")
    lake.write("clients", other, by=by(2))
    stored = lake.read("clients")
    assert stored.columns == ["client_id", "split", "region", "run_id"]


def test_another_engine_reads_the_table(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("documents", documents(spark, "json", range(4)), by=by(1))
    table = DeltaTable(lake.path("documents")).to_pyarrow_table()
    assert sorted(table["client_id"].to_pylist()) == ["0", "1", "2", "3"]
    assert set(table["run_id"].to_pylist()) == {RUN}


def test_slices_hold_any_text(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    odd = "o'clock \\ `x` \" -- ; DROP"
    for attempt, name in enumerate([odd, "plain", odd]):
        lake.write("documents", documents(spark, name, range(2)), by=by(attempt), part={"format": (name,)})
    counts = {row["format"]: row["count"] for row in lake.read("documents").groupBy("format").count().collect()}
    assert counts == {odd: 2, "plain": 2}


def test_empty_slice_that_stays_empty_is_known_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    """Delta commits nothing then, and that is no write that was lost."""
    lake = Lake(str(tmp_path), spark)
    lake.write("documents", documents(spark, "json", range(2)), by=by(1), part={"format": ("json",)})
    empty = documents(spark, "compact", range(0))
    written = lake.write("documents", empty, by=by(2), part={"format": ("compact",)})
    assert (written.version, written.rows, written.state) == (0, 0, None)
    lake.write("documents", documents(spark, "compact", range(3)), by=by(3), part={"format": ("compact",)})
    gone = lake.write("documents", empty, by=by(4), part={"format": ("compact",)})
    assert gone.rows == 0
    assert gone.state == lake.history.state("documents", {"format": ("compact",)})
    assert lake.rows("documents") == 2


def test_one_commit_a_write_and_never_an_empty_table(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    clients = spark.createDataFrame([("1", "train", "x")], "client_id string, split string, age string")
    lake.write("clients", clients, by=by(1))
    lake.write("clients", clients.withColumnRenamed("age", "region"), by=by(2))
    assert [commit.rows for commit in lake.history.commits("clients")] == [1, 1]
    assert [lake.rows("clients", version) for version in (0, 1)] == [1, 1]


def test_history_asked_of_spark_is_that_of_the_log(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    for attempt in (1, 2):
        lake.write("documents", documents(spark, "json", range(2)), by=by(attempt), part={"format": ("json",)})
    asked = list(lake.history._asked("documents"))
    assert asked == list(lake.history.commits("documents"))
    assert list(lake.history._asked("labels")) == []


@pytest.fixture
def catalog(spark: SparkSession) -> Iterator[Lake]:
    """A schema of Spark's own catalog."""
    yield Lake("spark_catalog.bank", spark)
    spark.sql("DROP SCHEMA IF EXISTS spark_catalog.bank CASCADE")


def test_a_lake_in_a_catalog_is_the_same_lake(spark: SparkSession, catalog: Lake) -> None:
    """By name alone: no path, no CREATE OR REPLACE TABLE, which a catalog that manages its tables refuses."""
    assert not catalog.exists("documents")
    catalog.write("documents", documents(spark, "json", range(4)), by=by(1), part={"format": ("json",)})
    first = catalog.write("documents", documents(spark, "compact", range(3)), by=by(2), part={"format": ("compact",)})
    again = catalog.write("documents", documents(spark, "compact", range(9)), by=by(2), part={"format": ("compact",)})
    assert (first.rows, again.version, again.repeated) == (3, first.version, True)
    catalog.write("documents", documents(spark, "json", range(1)), by=by(3), part={"format": ("json",)})
    assert catalog.rows("documents") == 4
    assert catalog.rows("documents", first.version) == 7
    touched = catalog.history.state("documents", {"format": ("compact",)})
    assert touched == first.state
    with pytest.raises(Exception, match="no_future"):
        late = documents(spark, "x", range(2)).withColumn("last_event_time", F.col("as_of"))
        catalog.write("documents", late, by=by(4), part={"format": ("x",)})
    operations = spark.sql("DESCRIBE HISTORY spark_catalog.bank.documents").select("operation").distinct().collect()
    assert {row["operation"] for row in operations} == {"CREATE TABLE", "WRITE"}


def test_open_table_of_a_catalog_takes_new_columns_and_keeps_old_ones_empty(spark: SparkSession, catalog: Lake) -> None:
    clients = spark.createDataFrame([("1", "train", "x")], "client_id string, split string, age string")
    catalog.write("clients", clients, by=by(1))
    other = spark.createDataFrame([("2", "test", "y")], "client_id string, split string, region string")
    catalog.write("clients", other, by=by(2))
    (row,) = catalog.read("clients").collect()
    assert (row["client_id"], row["age"], row["region"]) == ("2", None, "y")
    changed = spark.createDataFrame([("2", "test", 1)], "client_id string, split string, region int")
    with pytest.raises(DataError, match=r"columns region have another type now.*DROP TABLE"):
        catalog.write("clients", changed, by=by(3))


def test_a_table_of_a_catalog_that_has_no_row_is_no_lost_write(spark: SparkSession, catalog: Lake) -> None:
    empty = spark.createDataFrame([], "field string, code string, description string")
    assert catalog.write("dictionaries", empty, by=by(1)).rows == 0
    assert catalog.write("dictionaries", empty, by=by(2)).rows == 0
    assert catalog.rows("dictionaries") == 0
