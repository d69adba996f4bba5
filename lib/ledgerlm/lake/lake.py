"""Delta tables of one home: reads at a version, and writes of a whole table or a slice in one commit.

Everything goes through DataFrames and SQL, so that a Spark Connect session serves as well as a classic one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.config import nearest
from ledgerlm.engines.frames import with_columns
from ledgerlm.engines.session import change, put_back
from ledgerlm.engines.watching import described
from ledgerlm.errors import DataError
from ledgerlm.lake.differences import CHANGE, DELETE, INSERT, applied, without
from ledgerlm.lake.history import Author, History, State
from ledgerlm.lake.home import Home
from ledgerlm.lake.schemas import TABLES, Table, stored_type
from ledgerlm.lake.slices import WHOLE, Slice, literal, predicate

# Ray reads these tables through Arrow, which refuses deletion vectors and column mapping. Wide columns come last
# or not at all in the statistics: a minimum of a vector or a text helps nobody and costs each commit.
_PROPERTIES = {
    "delta.enableDeletionVectors": "false",
    "delta.columnMapping.mode": "none",
    "delta.dataSkippingNumIndexedCols": "4",
}
_SIGNATURE = "spark.databricks.delta.commitInfo.userMetadata"
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a write left behind.

    Attributes:
        version: Delta version of the table that holds the rows.
        rows: rows of this write.
        state: newest commit of the slice; as a rule the one of this write. Delta commits nothing where an empty slice
            stays empty: then it is what was there before, or None.
        repeated: this attempt had written them before; the frame was not looked at.
    """

    version: int
    rows: int
    state: State | None
    repeated: bool = False


def _named(write: Callable[Concatenate[Lake, str, P], Written]) -> Callable[Concatenate[Lake, str, P], Written]:
    """Lets Spark's own page say which table is written."""

    @wraps(write)
    def named(lake: Lake, table: str, /, *args: P.args, **kwargs: P.kwargs) -> Written:
        with described(lake.spark, f"write {table}"):
            return write(lake, table, *args, **kwargs)

    return named


class Lake:
    """The tables of one home.

    Args:
        root: a folder (any URL that Spark knows, or a path of this machine), or `catalog.schema`; see `Home.parse`.
        spark: session, classic or Connect.
    """

    def __init__(self, root: str, spark: SparkSession) -> None:
        self.home = Home.parse(root)
        self.spark = spark
        self.history = History(self.home, lambda: spark)

    def path(self, table: str) -> str:
        """Where the table lies, as a URL or its name in the catalog.

        Raises:
            DataError: for a table that no schema describes.
        """
        if table not in TABLES:
            raise DataError(f"no table '{table}': {nearest(table, TABLES)}")
        return self.home.path(table)

    def exists(self, table: str) -> bool:
        """Whether the table has been written."""
        self.path(table)
        return self.history.newest(table) is not None

    def version(self, table: str) -> int:
        """Newest version of the table.

        Raises:
            DataError: when the table is not there.
        """
        newest = self.history.newest(table)
        if newest is None:
            raise DataError(f"no table {table} at {self.path(table)}; run the stage that writes it first")
        return newest.version

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """The table, at a version or at its newest.

        Raises:
            DataError: when the table is not there.
        """
        newest = self.version(table)
        # A version is always named: a frame that is computed twice must not see another commit the second time.
        reader = self.spark.read.format("delta").option("versionAsOf", newest if version is None else version)
        return reader.table(self.path(table)) if self.home.is_catalog else reader.load(self.path(table))

    def rows(self, table: str, version: int | None = None) -> int:
        """Rows of the table, counted from Delta's statistics."""
        return self.read(table, version).count()

    @_named
    def write(self, table: str, frame: DataFrame, *, by: Author, part: Slice = WHOLE) -> Written:
        """Replaces the table, or a slice of it, in one commit: readers see the rows before or the rows after.

        Nothing is written when the newest commit of the slice is this attempt's own: a stage that was killed goes on.

        Args:
            frame: the rows; columns beyond the table's schema are refused unless the table is open.
            by: who writes; stands in the commit.
            part: the slice to replace; every row of `frame` must belong to it.

        Raises:
            DataError: columns are missing or unknown; a slice of a table whose columns another version of ledgerlm
                made; or another run wrote the slice at the same time.
        """
        path = self.path(table)
        done = self.history.by(table, by.attempt, part)
        if done is not None:
            return Written(version=done.version, rows=done.rows, state=self.history.state(table, part), repeated=True)
        definition, before = TABLES[table], self.history.newest(table)
        rows = conform(definition, frame.withColumn("run_id", F.lit(by.run_id)))
        there = None if before is None else self.read(table, before.version).schema
        if part and there is not None:
            self._refuse_other_columns(table, there, rows.schema)
        rows = rows if there is not None else _inside(rows, part)
        writer = rows.write.format("delta").mode("overwrite").option("userMetadata", by.signature(part))
        if self.home.is_catalog:
            self._into_catalog(definition, rows, there, by, part)
        else:
            fits = there is None or (_holds(there, rows.schema) and _holds(rows.schema, there))
            _into_folder(writer, path, fits=fits, part=part, first=_properties(definition) if there is None else {})
        written, newest = self.history.by(table, by.attempt, part), self.history.newest(table)
        if written is not None:
            return Written(version=written.version, rows=written.rows, state=self.history.state(table, part))
        # Neutral: a catalog creates a table in a commit of its own, and nothing follows where there is no row.
        if newest is None or not (newest == before or newest.neutral):
            raise DataError(
                f"table {table} at {path}: the commit of stage {by.stage} was overwritten at once by another; "
                "let one run at a time work on a lake, then run again"
            )
        return Written(version=newest.version, rows=0, state=self.history.state(table, part))

    @_named
    def apply(self, table: str, differences: DataFrame, *, by: Author, part: Slice = WHOLE) -> Written:
        """Applies differences to a table, or to a slice of it, in one commit; all other rows stay where they are.

        New rows alone are appended; where rows change or go, Delta merges by the table's key. Nothing is written when
        there is no difference, or when this attempt has written before.

        Args:
            differences: columns of the table's schema and CHANGE, at most one row a key; kept, since they are counted
                first.
            by: who writes; stands in the commit.
            part: the slice that is written; every row must belong to it.

        Returns:
            What was left behind; `rows` are the differences.

        Raises:
            DataError: columns are missing or unknown, or another run wrote the slice at the same time.
        """
        done = self.history.by(table, by.attempt, part)
        counts = {row[CHANGE]: row["count"] for row in differences.groupBy(CHANGE).count().collect()}
        total, before = sum(counts.values()), self.history.newest(table)
        if done is not None:
            return Written(version=done.version, rows=total, state=self.history.state(table, part), repeated=True)
        if before is None:
            return self.write(table, differences.where(F.col(CHANGE) != DELETE).drop(CHANGE), by=by, part=part)
        if not total:
            return Written(version=before.version, rows=0, state=self.history.state(table, part))
        rows = conform(TABLES[table], differences.withColumn("run_id", F.lit(by.run_id)), carried=(CHANGE,))
        self._refuse_other_columns(table, self.read(table, before.version).schema, rows.drop(CHANGE).schema)
        if counts.keys() == {INSERT}:
            self._append(table, rows.drop(CHANGE), by, part)
        else:
            self._merge(table, rows, by, part)
        written = self.history.by(table, by.attempt, part)
        if written is None:
            raise DataError(
                f"table {table} at {self.path(table)}: the commit of stage {by.stage} was overwritten at once by "
                "another; let one run at a time work on a lake, then run again"
            )
        return Written(version=written.version, rows=total, state=self.history.state(table, part))

    def prune(
        self, table: str, gone: DataFrame, *, by: Author, part: Slice = WHOLE, key: Sequence[str] | None = None
    ) -> None:
        """Takes rows of a slice away for which nobody asks any more, in one commit; stages that wrote it stand on.

        Args:
            gone: the key columns of the rows.
            by: who does so; stands in the commit.
            part: the slice; rows of `gone` outside it stay.
            key: columns by which rows of `gone` are told; left out, those of the table.
        """
        key, signature = key or TABLES[table].key, by.signature(part, pruned=True)
        on = _same(key) + (f" AND {predicate(part, 't')}" if part else "")
        if not self._merged(table, gone.select(*key), on, "WHEN MATCHED THEN DELETE", signature):
            self._rewrite(table, without(self._inside(table, part), gone, key), part, signature)

    def blank(self, table: str, columns: Sequence[str], text: str, patterns: Sequence[str], *, by: Author) -> None:
        """Empties columns of the rows whose text matches, in one commit; stages that wrote them stand on.

        Args:
            columns: text columns that may be null.
            text: SQL expression of the text that is searched.
            patterns: regular expressions.
            by: who does so; stands in the commit.
        """
        rows = self.spark.createDataFrame([(list(patterns),)], "_patterns array<string>")
        signature, on = by.signature(WHOLE, pruned=True), f"exists(_patterns, one -> {text} RLIKE one)"
        emptied = ", ".join(f"t.`{name}` = NULL" for name in columns)
        if not self._merged(table, rows, on, f"WHEN MATCHED THEN UPDATE SET {emptied}", signature):
            marked = self.read(table).crossJoin(F.broadcast(rows)).withColumn("_found", F.expr(on))
            blank = {name: F.when(~F.col("_found"), F.col(name)) for name in columns}
            self._rewrite(table, with_columns(marked, blank).drop("_patterns", "_found"), WHOLE, signature)

    def _refuse_other_columns(self, table: str, there: T.StructType, wanted: T.StructType) -> None:
        if not _holds(there, wanted):
            raise DataError(
                f"table {table} at {self.path(table)} has other columns ({', '.join(there.fieldNames())}) than this "
                "version of ledgerlm writes; move the lake away and run again"
            )

    def _append(self, table: str, rows: DataFrame, by: Author, part: Slice) -> None:
        signature = by.signature(part, applied=True)
        if self.home.is_catalog:
            rows.writeTo(self.home.identifier(table)).option("userMetadata", signature).append()
        else:
            writer = rows.write.format("delta").mode("append").option("userMetadata", signature)
            writer.save(self.path(table))

    def _merge(self, table: str, rows: DataFrame, by: Author, part: Slice) -> None:
        clauses = (
            f"WHEN MATCHED AND s.{CHANGE} = '{DELETE}' THEN DELETE WHEN MATCHED THEN UPDATE SET * "
            f"WHEN NOT MATCHED AND s.{CHANGE} <> '{DELETE}' THEN INSERT *"
        )
        signature = by.signature(part, applied=True)
        on = _same(TABLES[table].key) + (f" AND {predicate(part, 't')}" if part else "")
        if not self._merged(table, rows, on, clauses, signature):
            self._rewrite(table, applied(self._inside(table, part), rows, TABLES[table].key), part, signature)

    def _merged(self, table: str, rows: DataFrame, on: str, clauses: str, signature: str) -> bool:
        """Merges rows (`s`) into a table (`t`) where `on` holds; False where the session takes no signature.

        SQL takes what goes into its commit from the session alone.
        """
        try:
            before = change(self.spark, {_SIGNATURE: signature})
        except PySparkException:
            return False
        view = f"ledgerlm_{table}_differences"
        rows.createOrReplaceTempView(view)
        try:
            self.spark.sql(f"MERGE INTO {self.home.identifier(table)} t USING {view} s ON {on} {clauses}")
        finally:
            put_back(self.spark, before)
        self.spark.catalog.dropTempView(view)
        return True

    def _inside(self, table: str, part: Slice) -> DataFrame:
        rows = self.read(table)
        return rows.where(predicate(part)) if part else rows

    def _rewrite(self, table: str, rows: DataFrame, part: Slice, signature: str) -> None:
        """Does by writing a slice anew what a merge would do: a DataFrame's writer signs on serverless compute too."""
        if self.home.is_catalog:
            kept = F.expr(predicate(part)) if part else F.lit(True)
            rows.writeTo(self.home.identifier(table)).option("userMetadata", signature).overwrite(kept)
            return
        writer = rows.write.format("delta").mode("overwrite").option("userMetadata", signature)
        _into_folder(writer, self.path(table), fits=True, part=part, first={})

    def create(self, table: Table, properties: Mapping[str, str]) -> None:
        """Creates an empty table where it is missing.

        Args:
            table: it; one that `write` fills creates itself.
            properties: table properties beside those that all tables have.
        """
        self._create(table, table.schema, properties)

    def _create(self, table: Table, columns: T.StructType, properties: Mapping[str, str]) -> None:
        if self.home.is_catalog:
            self._schema_there()
        told = _properties(table) | dict(properties)
        listed = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in told.items())
        typed = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in columns)
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.home.identifier(table.name)} ({typed}) USING delta "
            f"TBLPROPERTIES ({listed})"
        )

    def _schema_there(self) -> None:
        """Creates the catalog's schema where it is missing."""
        schema = self.home.root
        if self.spark.catalog.databaseExists(schema):
            return
        name = ".".join(f"`{part}`" for part in schema.split("."))
        try:
            self.spark.sql(f"CREATE SCHEMA IF NOT EXISTS {name}")
        except PySparkException as error:
            raise DataError(
                f"lake: there is no schema {schema}, and it cannot be created ({str(error).splitlines()[0]}); let "
                f"somebody who may do so run CREATE SCHEMA {name}"
            ) from error

    def _into_catalog(
        self, definition: Table, rows: DataFrame, there: T.StructType | None, by: Author, part: Slice
    ) -> None:
        """Writes by name alone: a catalog that manages its tables lets nobody replace one, or reach its files.

        Columns of another data set are added; those that the data no longer have stay, and are null.
        """
        name = self.home.identifier(definition.name)
        if there is None:
            self._create(definition, rows.schema, {})
            there = rows.schema
        new = [field for field in rows.schema if field.name not in there.fieldNames()]
        if new:
            added = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in new)
            self.spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({added})")
            there = T.StructType([*there.fields, *new])
        given = {field.name: field.dataType for field in rows.schema}
        changed = [field.name for field in there if given.get(field.name, field.dataType) != field.dataType]
        if changed:
            raise DataError(
                f"table {name}: columns {', '.join(changed)} have another type now, which a catalog's table cannot "
                f"take; drop the table (DROP TABLE {name}) and run again"
            )
        aligned = rows.select(
            *(F.col(f.name) if f.name in given else F.lit(None).cast(f.dataType).alias(f.name) for f in there)
        )
        kept = F.expr(predicate(part)) if part else F.lit(True)
        aligned.writeTo(name).option("userMetadata", by.signature(part)).overwrite(kept)


def _same(key: Sequence[str]) -> str:
    """That a row of a table (`t`) and one that is merged into it (`s`) have one key."""
    return " AND ".join(f"t.`{name}` <=> s.`{name}`" for name in key)


def _inside(rows: DataFrame, part: Slice) -> DataFrame:
    """The rows; one that does not belong to the slice fails the write, as `replaceWhere` has it where a table is."""
    checked = {
        name: F.when(F.col(name).isin(list(values)), F.col(name)).otherwise(
            F.raise_error(F.concat(F.lit(f"a row outside the slice that is written: {name} is "), F.col(name)))
        )
        for name, values in part.items()
    }
    return with_columns(rows, checked)


def _into_folder(writer: DataFrameWriter, path: str, *, fits: bool, part: Slice, first: Mapping[str, str]) -> None:
    if part:
        writer = writer.option("replaceWhere", predicate(part))
    elif not fits:
        writer = writer.option("overwriteSchema", "true")
    for key, value in first.items():
        writer = writer.option(key, value)
    writer.save(path)


def _properties(table: Table) -> dict[str, str]:
    """Table properties with the CHECK constraints, which a first write takes along in its own commit."""
    required = {
        f"{column.name}_not_null": f"`{column.name}` IS NOT NULL" for column in table.schema if not column.nullable
    }
    checks = {f"delta.constraints.{name}": text for name, text in (required | table.checks).items()}
    return _PROPERTIES | checks


def conform(table: Table, frame: DataFrame, carried: Sequence[str] = ()) -> DataFrame:
    """Selects and casts the columns of `table` in order, then the further columns if the table is open.

    Args:
        table: the table.
        frame: rows for it.
        carried: columns that are none of the table's and come last.

    Raises:
        DataError: naming the missing or unknown columns.
    """
    fixed, given = [column.name for column in table.schema], frame.schema
    missing = [name for name in fixed if name not in frame.columns and not table.schema[name].nullable]
    unknown = [name for name in frame.columns if name not in (*fixed, *carried)]
    if missing:
        raise DataError(f"table {table.name}: rows lack the columns {', '.join(missing)}")
    if unknown and not table.open:
        raise DataError(f"table {table.name}: unknown columns {', '.join(unknown)}; its columns are {', '.join(fixed)}")
    chosen = [
        (
            F.col(column.name).cast(stored_type(column, given[column.name].dataType))
            if column.name in frame.columns
            else F.lit(None).cast(column.dataType)
        ).alias(column.name)
        for column in table.schema
        if column.name != "run_id"
    ]
    return frame.select(*chosen, *unknown, "run_id", *carried)


def _holds(one: T.StructType, other: T.StructType) -> bool:
    """Whether `one` has every column of `other`, with the same type."""
    types = {field.name: field.dataType.simpleString() for field in one}
    return all(types.get(field.name) == field.dataType.simpleString() for field in other)
