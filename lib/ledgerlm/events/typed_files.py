"""Parquet and Delta: files of one schema are read together, and types become text or stay times."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_type

from ledgerlm.config import nearest
from ledgerlm.errors import SpecError
from ledgerlm.events.columns import BLOCK, DAMAGED, FAULT, FILE_BLOCK, FILE_PATH, FINER, PATH, PAYLOAD, PLACE
from ledgerlm.events.csv_files import Part, by_names
from ledgerlm.events.file_heads import resolved
from ledgerlm.events.files import Found, partition_value
from ledgerlm.events.quality import Reason, said
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.lake.source_tables import rows_at

_EXACT = float(1 << 53)  # up to it a whole double is exactly one integer
_THREADS = 16
_NANOS = "write the times with coerce_timestamps='us', or as microseconds"


def delta_part(
    spark: SparkSession, path: str, needed: Collection[str], *, rows: DataFrame | None = None, empty: bool = False
) -> Iterator[Part]:
    """A Delta table. Its rows have no place: how they lie in its files changes with each OPTIMIZE.

    Args:
        spark: session.
        path: folder, URL or name in a catalog.
        needed: columns that it must have.
        rows: rows with its columns, in place of those of its newest version.
        empty: it may have no row.

    Raises:
        SpecError: for a missing column, or a table without rows.
    """
    read = rows_at(spark, path) if rows is None else rows
    check_columns(read.columns, needed, path)
    if rows is None and not empty:
        check_rows(read, path)
    yield _part(read, [Found(path=path, size=1)], {}, {}, (), table=path)


def check_rows(rows: DataFrame, path: str) -> None:
    """Refuses a table without rows.

    Raises:
        SpecError: naming it.
    """
    if rows.isEmpty():
        raise SpecError(f"{path}: no rows in the table; where it may have none, say 'empty: true' at its entry")


def parquet_parts(
    spark: SparkSession, file: FileSpec, files: Sequence[Found], needed: Collection[str], zone: str = "UTC"
) -> Iterator[Part]:
    """The files of a Parquet entry, by schema. Folders `key=value` give columns of text.

    Args:
        spark: session.
        file: the entry.
        files: from `found_files`.
        needed: columns that each file must have, by their names in it.
        zone: of the data.

    Raises:
        SpecError: for a file that is no Parquet, a missing column, files without a row, or times of 96 bits of which
            nobody says what they mean.
    """
    files = [one for one in files if one.size]
    if not files:
        raise SpecError(f"no rows in {file.glob}: its files are empty; give another path, or leave the entry out")
    groups = by_schema(files, file) if all(one.local for one in files) else {None: list(files)}
    for schema, found in groups.items():
        names = {name for one in found for name, _ in one.partitions}
        reader = spark.read.option("recursiveFileLookup", "true").option("mergeSchema", str(schema is None).lower())
        if schema is not None:
            check_columns([*schema.columns.names, *names], needed, found[0].path)
            _refuse_unclear(schema, file, needed, found[0].path, zone)
            if schema.nanos or schema.clocks:
                reader = reader.schema(_with_whole_numbers(schema, found[0].path))
        try:
            rows = reader.parquet(*(one.pattern for one in found))
        except AnalysisException as error:
            hint = f"; {_NANOS}" if "NANOS" in str(error) else ""
            said = str(error).splitlines()[0]
            raise SpecError(f"{found[0].path}: cannot be read as Parquet: {said}{hint}") from error
        check_columns([*rows.columns, *names], needed, found[0].path)
        folders = {name: partition_value(name, FILE_PATH) for name in sorted(names)}
        yield _part(rows, found, folders, _instants(schema), needed, local=_local_times(schema, file))


class _Schema(NamedTuple):
    """What a Parquet file holds.

    Nanoseconds and times of day (`clocks`) have no type in Spark. `old` are times of 96 bits, which Arrow shows as
    nanoseconds and Spark reads.
    """

    columns: pa.Schema
    nanos: tuple[str, ...]
    clocks: tuple[str, ...]
    old: tuple[str, ...]


def by_schema(files: Sequence[Found], file: FileSpec) -> dict[_Schema | None, list[Found]]:
    """The files by what their footers say that they hold.

    Raises:
        SpecError: for a file that is no Parquet, or files without a row.
    """

    def footer(one: Found) -> tuple[_Schema, int]:
        try:
            found = pq.ParquetFile(one.path)
        except (pa.ArrowException, OSError) as error:
            raise SpecError(
                f"{one.path} is no Parquet file ({error}); mend it, or name it under 'leave_out'"
            ) from error
        stored = [found.schema.column(place) for place in range(len(found.schema))]
        nanos = (one.path for one in stored if one.physical_type == "INT64" and "nanoseconds" in str(one.logical_type))
        clocks = [one.name for one in found.schema_arrow if pa.types.is_time(one.type)]
        nanos = (name for name in nanos if name not in clocks)
        old = (one.path for one in stored if one.physical_type == "INT96")
        columns = found.schema_arrow.remove_metadata()
        return _Schema(columns, tuple(nanos), tuple(clocks), tuple(old)), found.metadata.num_rows

    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(footer, files))
    if not any(rows for _, rows in footers) and not file.empty:
        raise SpecError(f"{files[0].path}: no rows in {file.glob}; give another path, or leave the entry out")
    groups: dict[_Schema | None, list[Found]] = {}
    known: dict[str, _Schema] = {}
    for one, (schema, _) in zip(files, footers, strict=True):
        groups.setdefault(known.setdefault(str(schema), schema), []).append(one)
    return groups


def _instants(schema: _Schema | None) -> dict[str, bool]:
    """Columns of nanoseconds, and whether they are instants rather than times without a zone."""
    if schema is None:
        return {}
    return {name: schema.columns.field(name).type.tz is not None for name in schema.nanos}


def _local_times(schema: _Schema | None, file: FileSpec) -> tuple[str, ...]:
    """Columns of 96 bits that hold what a clock showed."""
    return schema.old if schema is not None and file.int96 == "local" else ()


def _refuse_unclear(schema: _Schema, file: FileSpec, needed: Collection[str], path: str, zone: str) -> None:
    """Refuses needed columns that Spark cannot read, or that may mean two things."""
    wanted = {resolved(name, schema.columns.names, path) for name in needed}
    for name in schema.clocks:
        if name in wanted:
            raise SpecError(f"{path}: column '{name}' is a time of day, which Spark cannot read; write it as text")
    for name in schema.old:
        if name in wanted and file.int96 is None and zone != "UTC":
            raise SpecError(
                f"{path}: column '{name}' holds times of 96 bits, which do not say whether they are instants (as Spark "
                f"and Hive write them) or what a clock in {zone} showed (as Impala does); say 'int96: instants' or "
                "'int96: local' at the entry"
            )


def _with_whole_numbers(schema: _Schema, path: str) -> T.StructType:
    """The schema for Spark, with nanoseconds as whole numbers, and without times of day."""
    own: dict[str, T.DataType] = dict.fromkeys(schema.nanos, T.LongType()) | dict.fromkeys(
        schema.old, T.TimestampType()
    )
    try:
        return T.StructType(
            [
                T.StructField(one.name, own[one.name] if one.name in own else from_arrow_type(one.type))
                for one in schema.columns
                if one.name not in schema.clocks
            ]
        )
    except PySparkException as error:
        raise SpecError(f"{path}: nanoseconds beside a column of a type of its own ({error}); {_NANOS}") from error


def check_columns(names: Collection[str], needed: Collection[str], place: str) -> None:
    """Refuses files that lack a column.

    Raises:
        SpecError: naming the column and the nearest one.
    """
    for name in needed:
        if resolved(name, names, place) is None:
            raise SpecError(f"{place} has no column '{name}': {nearest(name, names)}")


def _part(
    rows: DataFrame,
    files: Sequence[Found],
    folders: dict[str, Column],
    nanos: dict[str, bool],
    needed: Collection[str],
    *,
    local: Collection[str] = (),
    table: str | None = None,
) -> Part:
    stored = {name: F.col(f"`{name.replace('`', '``')}`") for name in rows.columns}
    wanted = {resolved(name, rows.columns, files[0].path) for name in needed}
    finer = F.lit(False)
    for name, instant in nanos.items():
        if name in wanted:
            finer = finer | F.coalesce(F.pmod(stored[name], F.lit(1000)) != 0, F.lit(False))
        whole = stored[name] - F.pmod(stored[name], F.lit(1000))
        micros = F.timestamp_micros((whole.cast("decimal(20,0)") / 1000).cast("long"))
        stored[name] = micros if instant else micros.cast("timestamp_ntz")
    for name in local:
        stored[name] = stored[name].cast("timestamp_ntz")  # the session's zone is UTC, so as it stands in the file
    columns = stored | folders
    damaged = F.lit(None).cast("string")
    for name, value in stored.items():
        if isinstance(rows.schema[name].dataType, T.BinaryType):
            text = value.cast("string")
            damaged = F.when(~F.is_valid_utf8(text), said(name, F.make_valid_utf8(text))).otherwise(damaged)
    placed = {name: F.col(f"v{place}") for place, name in enumerate(columns)}
    # Names that differ in case alone, or hold dots, are told apart by their place.
    payload = F.to_json(F.struct(*(value.alias(name) for name, value in columns.items())))
    return Part(
        rows=rows.select(
            *(value.alias(f"v{place}") for place, value in enumerate(columns.values())),
            payload.alias(PAYLOAD),
            F.when(damaged.isNotNull(), Reason.BAD_UTF8.value).alias(FAULT),
            damaged.alias(DAMAGED),
            finer.alias(FINER),
            *_places(payload, table),
        ),
        columns=placed,
        row=by_names(placed),
        files=files,
        names=rows.columns,
    )


def _places(payload: Column, table: str | None) -> list[Column]:
    """PATH, BLOCK and PLACE; in a table rows stand by their content, whatever file they lie in."""
    path, block = (F.lit(table), F.xxhash64(payload)) if table is not None else (F.col(FILE_PATH), F.col(FILE_BLOCK))
    return [path.alias(PATH), block.alias(BLOCK), F.monotonically_increasing_id().alias(PLACE)]


def as_text(column: Column, kind: T.DataType) -> Column:
    """A typed value as text: whole numbers print as integers (codes of a column with gaps), NaN is absent."""
    if isinstance(kind, T.StringType):
        return column
    if isinstance(kind, T.DecimalType):
        whole = column == F.floor(column)
        return F.when(whole, F.floor(column).cast("string")).otherwise(column.cast("string"))
    if isinstance(kind, T.FractionalType):
        whole = (F.abs(column) <= _EXACT) & (column == F.floor(column))
        text = F.when(whole, column.try_cast("long").cast("string")).otherwise(column.cast("string"))
        return F.when(~F.isnan(column), text)
    if isinstance(kind, T.StructType | T.ArrayType | T.MapType):
        return F.to_json(column)
    return column.cast("string")
