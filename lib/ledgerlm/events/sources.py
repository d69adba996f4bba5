"""Reads files so that no row is lost: each raw row stays at hand, and a damaged one carries its fault.

Text formats are read line by line. A quoted CSV value therefore cannot hold a line break: both halves of such a row go
to quarantine as `unclosed_quote`. Lines end with LF, CR LF or CR; blank lines are no rows.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.config import nearest
from ledgerlm.errors import SpecError
from ledgerlm.events.quality import Reason, present, recoded
from ledgerlm.events.spec import DataSetSpec, FileSpec, SourceSpec, is_url

PAYLOAD, FAULT, FILE = "_payload", "_fault", "source_file"
"""Columns that `read_file` adds: the raw row, why it is damaged (or null), and where it stood."""

# The CSV parser keeps room for this many columns and fails beyond, so longer lines must not reach it.
_MOST_COLUMNS = 20_000
_JSON_SAMPLE = 1_000
_BOM = "\ufeff"
_EXACT = 1e15  # below it a whole double is exactly the integer that it prints as


def read_file(
    spark: SparkSession,
    file: FileSpec,
    source: SourceSpec,
    *,
    needed: Mapping[str, str],
    optional: Collection[str] = (),
    numbers: Collection[str] = (),
    times: Collection[str] = (),
) -> DataFrame:
    """Reads the columns that a spec needs of one file entry.

    Args:
        spark: session in UTC.
        file: the entry.
        source: its `path` and what to say when nothing is there.
        needed: column, as the spec names it, to the spec's key that asks for it.
        optional: columns that may be absent (they are null then).
        numbers: columns whose decimal and thousands signs are made plain.
        times: columns that stay timestamps or dates if the file has them so.

    Returns:
        The needed columns as text (times may be typed); `_payload` string: the raw row, base64 after `base64:` where
        it is no UTF-8, JSON for Parquet and Delta; `_fault` string; `source_file`: last two parts of the path.

    Raises:
        SpecError: when nothing is at the path, or a column is missing; names the nearest.
    """
    path = _path(file, source)
    try:
        if file.format == "csv":
            rows, columns = _csv(spark, file, path)
        elif file.format == "json":
            rows, columns = _json(spark, file, path, [file.rename.get(name, name) for name in needed])
        else:
            rows, columns = _typed(spark, file, path)
    except AnalysisException as error:
        hint = f"; {source.needs}" if source.needs else ""
        raise SpecError(f"source.path: cannot read {path} as {file.format}: {_first_line(error)}{hint}") from error
    found = _Found(rows=rows, columns=columns, file=file, path=path)
    chosen = {
        name: found.column(name, key, optional=name in optional, time=name in times) for name, key in needed.items()
    }
    for name in numbers:
        if name in chosen:
            chosen[name] = _plain_number(chosen[name], file)
    return rows.select(
        *(column.alias(name) for name, column in chosen.items()),
        PAYLOAD,
        FAULT,
        F.substring_index("_path", "/", -2).alias(FILE),
    )


def source_places(spec: DataSetSpec) -> list[str]:
    """Paths, globs and URLs of all files that the spec reads, each once."""
    if spec.source is None:
        return []
    named = [*spec.source.files, *(join.file for join in spec.joins)]
    named += [*(one.file for one in spec.clients), *(label.file for label in spec.labels if label.file)]
    return sorted({_path(file, spec.source) for file in named})


def _path(file: FileSpec, source: SourceSpec) -> str:
    if is_url(file.glob) or Path(file.glob).is_absolute():
        return file.glob
    if not source.path:
        raise SpecError(f"source.path is empty; {source.needs or 'give it with --set source.path=FOLDER'}")
    return f"{source.path.rstrip('/')}/{file.glob}"


def _first_line(error: AnalysisException) -> str:
    return str(error).splitlines()[0]


def _lines(spark: SparkSession, file: FileSpec, path: str) -> DataFrame:
    """`_payload`, `_path`, `_line` and `_damage`, the fault of damaged bytes: Spark hands over raw bytes here."""
    raw = spark.read.text(path).select(F.col("value"), F.col("_metadata.file_path").alias("_path"))
    raw = raw.where(F.trim("value") != "")
    if file.encoding == "utf-8":
        valid = F.is_valid_utf8("value")
        text = F.col("value")
        payload = F.when(valid, text).otherwise(F.concat(F.lit("base64:"), F.base64(text.cast("binary"))))
    else:
        valid = F.lit(True)
        text = F.decode(F.col("value").cast("binary"), "ISO-8859-1")
        payload = text
    line = F.when(text.startswith(_BOM), F.substring(text, 2, 2**31 - 1)).otherwise(text)
    fault = F.when(F.contains(text, F.lit("\0")), Reason.NUL_BYTE.value).when(~valid, Reason.BAD_UTF8.value)
    return raw.select(line.alias("_line"), payload.alias(PAYLOAD), fault.alias("_damage"), "_path")


def _csv(spark: SparkSession, file: FileSpec, path: str) -> tuple[DataFrame, dict[str, Column]]:
    lines, damage = _lines(spark, file, path), F.col("_damage")
    header = _header(spark, file, path) if file.header else ()
    names = file.columns or header
    if header and len(names) != len(header):
        raise SpecError(f"{path}: 'columns' names {len(names)} columns, the header has {len(header)}")
    fault = damage
    if file.quote:
        fault = F.coalesce(fault, F.when(_count("_line", file.quote) % 2 == 1, Reason.UNCLOSED_QUOTE.value))
    fault = F.coalesce(fault, F.when(_count("_line", file.separator) > _MOST_COLUMNS, Reason.WRONG_COLUMN_COUNT.value))
    positions = [f"c{place}" for place in range(len(names))]
    schema = ", ".join(f"{name} string" for name in [*positions, "_broken"])
    options = {"sep": file.separator, "quote": file.quote, "columnNameOfCorruptRecord": "_broken"}
    if file.quote:
        options["escape"] = file.quote
    parsed = lines.withColumn("_early", fault).withColumn(
        "_row", F.from_csv(F.when(F.col("_early").isNull(), F.col("_line")), F.lit(schema), options)
    )
    values = [F.col(f"_row.{name}") for name in positions]
    late = F.when(F.col("_row._broken").isNotNull(), Reason.WRONG_COLUMN_COUNT.value)
    if header:
        is_header = reduce(and_, (F.lower(F.trim(v)) == name.lower() for v, name in zip(values, header, strict=True)))
        parsed = parsed.where(~F.coalesce(is_header, F.lit(False)))
        if len(header) > 1:
            other = reduce(and_, (F.trim(value).isin(*header) for value in values))
            late = F.coalesce(late, F.when(other, Reason.OTHER_HEADER.value))
    rows = parsed.withColumn(FAULT, F.coalesce("_early", late))
    return rows, dict(zip(names, values, strict=True))


def _count(column: str, part: str) -> Column:
    """How often `part` stands in a text."""
    return (F.length(column) - F.length(F.replace(F.col(column), F.lit(part), F.lit("")))) / len(part)


def _header(spark: SparkSession, file: FileSpec, path: str) -> tuple[str, ...]:
    """Column names of the first line of one of the files. Others must have the same: see `Reason.OTHER_HEADER`."""
    lines = spark.read.text(path).where("_metadata.file_block_start = 0").where(F.trim("value") != "")
    first = lines.select(F.decode(F.col("value").cast("binary"), _charset(file)).alias("line")).first()
    if first is None:
        raise SpecError(f"{path}: no line in it, so no header; give 'header: false' and 'columns', or another path")
    line = str(first["line"]).removeprefix(_BOM)
    if file.quote and len(file.separator) == 1:
        return tuple(name.strip() for name in next(csv.reader([line], delimiter=file.separator, quotechar=file.quote)))
    return tuple(name.strip().strip(file.quote) for name in line.split(file.separator))


def _charset(file: FileSpec) -> str:
    return {"utf-8": "UTF-8", "iso-8859-1": "ISO-8859-1"}[file.encoding]


def _json(spark: SparkSession, file: FileSpec, path: str, names: Sequence[str]) -> tuple[DataFrame, dict[str, Column]]:
    lines, damage = _lines(spark, file, path), F.col("_damage")
    sample = lines.where(damage.isNull()).limit(_JSON_SAMPLE)
    keys = sample.select(F.explode(F.json_object_keys("_line")).alias("key")).distinct().limit(_MOST_COLUMNS).collect()
    known = {str(row["key"]) for row in keys}
    schema = T.StructType([T.StructField(name, T.StringType()) for name in [*names, "_broken"]])
    text = F.trim("_line")
    # The parser stops after the first value, so what follows it on the line would vanish.
    whole = text.startswith("{") & text.endswith("}") & ~text.rlike(r"\}\s*\{")
    row = F.from_json(F.when(damage.isNull() & whole, F.col("_line")), schema, {"columnNameOfCorruptRecord": "_broken"})
    parsed = lines.withColumn("_row", row)
    broken = F.col("_row").isNull() | F.col("_row._broken").isNotNull()
    rows = parsed.withColumn(FAULT, F.coalesce(damage, F.when(broken, Reason.BAD_JSON.value)))
    return rows, {name: F.col("_row").getField(name) for name in known}


def _typed(spark: SparkSession, file: FileSpec, path: str) -> tuple[DataFrame, dict[str, Column]]:
    rows = spark.read.format(file.format).load(path)
    columns = {name: F.col(f"`{name}`") for name in rows.columns}
    return (
        rows.withColumns(
            {
                PAYLOAD: F.to_json(F.struct(*columns.values())),
                FAULT: F.lit(None).cast("string"),
                "_path": F.col("_metadata.file_path"),
            }
        ),
        columns,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a file holds."""

    rows: DataFrame
    columns: Mapping[str, Column]
    file: FileSpec
    path: str

    def column(self, name: str, key: str, *, optional: bool, time: bool) -> Column:
        """One needed column: a constant, or what the file has, as text."""
        file = self.file
        if name in file.constants:
            return F.lit(file.constants[name])
        wanted = file.rename.get(name, name)
        if wanted not in self.columns:
            if optional:
                return F.lit(None).cast("string")
            where = f"{self.path} (its first {_JSON_SAMPLE} lines)" if file.format == "json" else self.path
            raise SpecError(f"{key}: {where} has no column '{wanted}': {nearest(wanted, self.columns)}")
        column = self.columns[wanted]
        if file.format in ("parquet", "delta"):
            column = _as_text(column, self.rows.schema[wanted].dataType, keep_time=time)
        return recoded(present(column), file.values[name]) if name in file.values else column


def _as_text(column: Column, kind: T.DataType, *, keep_time: bool) -> Column:
    """A typed value as text: whole doubles print as integers (codes of a column with gaps), NaN is absent."""
    if isinstance(kind, T.StringType) or (keep_time and isinstance(kind, T.DatetimeType)):
        return column
    if isinstance(kind, T.FractionalType) and not isinstance(kind, T.DecimalType):
        whole = (F.abs(column) < _EXACT) & (column == F.floor(column))
        text = F.when(whole, column.try_cast("long").cast("string")).otherwise(column.cast("string"))
        return F.when(~F.isnan(column), text)
    if isinstance(kind, T.StructType | T.ArrayType | T.MapType):
        return F.to_json(column)
    return column.cast("string")


def _plain_number(column: Column, file: FileSpec) -> Column:
    if file.thousands:
        column = F.translate(column, file.thousands + ("\u00a0\u202f" if file.thousands == " " else ""), "")
    return F.translate(column, file.decimal, ".") if file.decimal != "." else column
