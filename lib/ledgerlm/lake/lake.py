"""Delta tables under one root: reads at a version, and writes that a rerun does not repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.config import nearest
from ledgerlm.errors import DataError
from ledgerlm.lake.schemas import TABLES, Table

# Ray reads these tables through Arrow, which refuses deletion vectors and column mapping. Wide columns come last
# or not at all in the statistics: a minimum of a vector or a text helps nobody and costs each commit.
_PROPERTIES = {
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    "delta.dataSkippingNumIndexedCols": "4",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """Identity of one write: Delta drops a second commit with the same `app_id` and a version not above the last."""

    app_id: str
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a write left behind.

    Attributes:
        version: Delta version of the table that holds the rows.
        rows: rows of this write.
    """

    version: int
    rows: int


class Lake:
    """The tables of one pipeline, each a folder below `root` (a local path or any file system Spark knows)."""

    def __init__(self, root: str, spark: SparkSession) -> None:
        self.root = root.rstrip("/")
        self.spark = spark

    def path(self, table: str) -> str:
        """Where the table lies.

        Raises:
            DataError: for a table that no schema describes.
        """
        if table not in TABLES:
            raise DataError(f"no table '{table}': {nearest(table, TABLES)}")
        return f"{self.root}/{table}"

    def exists(self, table: str) -> bool:
        """Whether the table has been written."""
        return bool(DeltaTable.isDeltaTable(self.spark, self.path(table)))

    def version(self, table: str) -> int:
        """Newest version of the table."""
        return int(self._last_commit(table)["version"])

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """The table, at a version or at its newest.

        Raises:
            DataError: when the table is not there, naming what writes it.
        """
        if not self.exists(table):
            raise DataError(f"no table {table} at {self.path(table)}; run the stage that writes it first")
        reader = self.spark.read.format("delta")
        return (reader if version is None else reader.option("versionAsOf", version)).load(self.path(table))

    def write(
        self, table: str, frame: DataFrame, *, run_id: str, transaction: Transaction, where: str | None = None
    ) -> Written:
        """Replaces the table, or the slice that `where` names, in one commit.

        Args:
            frame: the rows; columns beyond the table's schema are refused unless the table is open.
            run_id: run that writes.
            transaction: identity of the write; the same one again leaves the table as it is.
            where: SQL condition of the slice to replace, which every row of `frame` must meet.

        Raises:
            DataError: when columns are missing or unknown.
        """
        definition = TABLES[table]
        rows = conform(definition, frame.withColumn("run_id", F.lit(run_id)))
        self._prepare(definition, rows.schema, whole=where is None)
        writer = (
            rows.write.format("delta")
            .mode("overwrite")
            .option("txnAppId", transaction.app_id)
            .option("txnVersion", transaction.version)
        )
        if where:
            writer = writer.option("replaceWhere", where)
        writer.save(self.path(table))
        commit = self._last_commit(table)
        return Written(version=int(commit["version"]), rows=int(commit["operationMetrics"].get("numOutputRows", 0)))

    def rows(self, table: str, version: int | None = None) -> int:
        """Rows of the table, counted from Delta's statistics."""
        return self.read(table, version).count()

    def _prepare(self, definition: Table, schema: T.StructType, *, whole: bool) -> None:
        """Creates the table with its NOT NULL and CHECK constraints, or gives it the columns of another data set."""
        path = self.path(definition.name)
        fixed = set(definition.schema.fieldNames())
        own = [T.StructField(field.name, field.dataType) for field in schema if field.name not in fixed]
        wanted = T.StructType([*definition.columns, *own, definition.schema["run_id"]])
        there = self.exists(definition.name)
        if there and (not whole or _same(self.read(definition.name).schema, wanted)):
            return
        builder = DeltaTable.replace(self.spark) if there else DeltaTable.createIfNotExists(self.spark)
        builder = builder.location(path).addColumns(wanted)
        for key, value in _PROPERTIES.items():
            builder = builder.property(key, value)
        for name, condition in definition.checks.items():
            builder = builder.property(f"delta.constraints.{name}", condition)
        builder.execute()

    def _last_commit(self, table: str) -> Mapping[str, Any]:
        row = DeltaTable.forPath(self.spark, self.path(table)).history(1).first()
        if row is None:
            raise DataError(f"table {table} at {self.path(table)} has no history; delete the folder and run again")
        commit: dict[str, Any] = row.asDict(recursive=True)
        return commit


def conform(table: Table, frame: DataFrame) -> DataFrame:
    """Selects and casts the columns of `table` in order, then the further columns if the table is open.

    Raises:
        DataError: naming the missing or unknown columns.
    """
    fixed = [column.name for column in table.schema]
    missing = [name for name in fixed if name not in frame.columns and not table.schema[name].nullable]
    unknown = [name for name in frame.columns if name not in fixed]
    if missing:
        raise DataError(f"table {table.name}: rows lack the columns {', '.join(missing)}")
    if unknown and not table.open:
        raise DataError(f"table {table.name}: unknown columns {', '.join(unknown)}; its columns are {', '.join(fixed)}")
    chosen = [
        (F.col(column.name) if column.name in frame.columns else F.lit(None)).cast(column.dataType).alias(column.name)
        for column in table.schema
        if column.name != "run_id"
    ]
    return frame.select(*chosen, *unknown, "run_id")


def _same(one: T.StructType, other: T.StructType) -> bool:
    return [(field.name, field.dataType.simpleString()) for field in one] == [
        (field.name, field.dataType.simpleString()) for field in other
    ]
