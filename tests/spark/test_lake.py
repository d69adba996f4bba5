"""Delta tables: constraints hold, slices are replaced alone, a repeated transaction changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.lake.lake import Lake, Transaction

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


def transaction(version: int) -> Transaction:
    return Transaction(app_id="test", version=version)


def test_slice_is_replaced_alone_and_a_repeated_write_is_dropped(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("documents", documents(spark, "json", range(4)), run_id=RUN, transaction=transaction(1))
    where = "format = 'compact'"
    first = lake.write(
        "documents", documents(spark, "compact", range(3)), run_id=RUN, transaction=transaction(2), where=where
    )
    again = lake.write(
        "documents", documents(spark, "compact", range(9)), run_id=RUN, transaction=transaction(2), where=where
    )
    assert (first.rows, again.version) == (3, first.version)
    counts = {row["format"]: row["count"] for row in lake.read("documents").groupBy("format").count().collect()}
    assert counts == {"json": 4, "compact": 3}
    lake.write("documents", documents(spark, "compact", range(5)), run_id=RUN, transaction=transaction(3), where=where)
    assert lake.rows("documents") == 9
    assert lake.rows("documents", first.version) == 7


def test_row_outside_its_slice_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        lake.write(
            "documents",
            documents(spark, "json", range(2)),
            run_id=RUN,
            transaction=transaction(1),
            where="format = 'compact'",
        )


def test_constraints_hold(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    future = documents(spark, "json", range(2)).withColumn("last_event_time", F.col("as_of"))
    with pytest.raises(Exception, match="no_future"):
        lake.write("documents", future, run_id=RUN, transaction=transaction(1))
    nobody = documents(spark, "json", range(2)).withColumn("client_id", F.lit(None).cast("string"))
    with pytest.raises(Exception, match=r"DELTA_NOT_NULL_CONSTRAINT_VIOLATED|NOT NULL"):
        lake.write("documents", nobody, run_id=RUN, transaction=transaction(2))


def test_columns_are_checked(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    with pytest.raises(DataError, match="lack the columns text"):
        lake.write("documents", documents(spark, "json", range(2)).drop("text"), run_id=RUN, transaction=transaction(1))
    more = documents(spark, "json", range(2)).withColumn("colour", F.lit("red"))
    with pytest.raises(DataError, match="unknown columns colour"):
        lake.write("documents", more, run_id=RUN, transaction=transaction(1))
    with pytest.raises(DataError, match="did you mean 'documents'"):
        lake.read("document")


def test_open_table_takes_the_columns_of_another_data_set(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    clients = spark.createDataFrame([("1", "train", "x")], "client_id string, split string, age string")
    lake.write("clients", clients, run_id=RUN, transaction=transaction(1))
    other = spark.createDataFrame([("2", "test", "y")], "client_id string, split string, region string")
    lake.write("clients", other, run_id=RUN, transaction=transaction(2))
    stored = lake.read("clients")
    assert stored.columns == ["client_id", "split", "region", "run_id"]
    assert not stored.schema["client_id"].nullable


def test_another_engine_reads_the_table(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), spark)
    lake.write("documents", documents(spark, "json", range(4)), run_id=RUN, transaction=transaction(1))
    table = DeltaTable(lake.path("documents")).to_pyarrow_table()
    assert sorted(table["client_id"].to_pylist()) == ["0", "1", "2", "3"]
    assert set(table["run_id"].to_pylist()) == {RUN}
