"""CSV files, each by its own header: files of one dialect are read together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import SpecError
from ledgerlm.events.columns import DAMAGE, DAMAGED, FAULT, LINE, ODD
from ledgerlm.events.file_heads import Dialect, FileHead, csv_dialect, file_heads_of, folded
from ledgerlm.events.files import Found
from ledgerlm.events.lines import (
    MENDED,
    damaged_line,
    damaged_value,
    odd_quotes,
    open_at_end,
    read_lines,
    without_values,
)
from ledgerlm.events.quality import Reason
from ledgerlm.events.spec_files import FileSpec

# The CSV parser keeps room for this many columns and fails beyond, so longer lines must not reach it.
_MOST_COLUMNS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Files of an entry that are read together.

    Attributes:
        rows: payload, path, place and FAULT of each row, and what `columns` stand on.
        columns: name in the files to value.
        row: what a row says by the names of its columns, in whatever order and quotes it stands.
        files: the files.
        names: all columns that stand in them, as far as their heads tell; folders above them are none.
    """

    rows: DataFrame
    columns: Mapping[str, Column]
    row: Column
    files: Sequence[Found]
    names: Sequence[str]


def csv_parts(spark: SparkSession, file: FileSpec, files: Sequence[Found], needed: Collection[str]) -> Iterator[Part]:
    """The files of a csv entry, by dialect.

    Args:
        spark: session.
        file: the entry.
        files: from `found_files`.
        needed: columns that each file must have, by their names in it.

    Raises:
        SpecError: for a file that does not fit the spec, or files without a row.
    """
    groups: dict[Dialect, list[tuple[FileHead, tuple[str, ...]]]] = {}
    filled = False
    for head in file_heads_of(spark, [one for one in files if one.size], file):
        dialect, before = csv_dialect(head, file, needed)
        filled = filled or _has_rows(head, len(before) + bool(dialect.header))
        groups.setdefault(dialect, []).append((head, before))
    if not filled and not file.empty:
        raise SpecError(f"{files[0].path}: no rows in {file.glob}; give another path, or leave the entry out")
    for dialect, members in groups.items():
        above = {line for _, lines in members for line in lines}
        found = [head.file for head, _ in members]
        lines = read_lines(spark, [one.pattern for one in found], dialect, file.quote, above)
        rows, columns = _parsed(lines, dialect, file)
        yield Part(rows=rows, columns=columns, row=by_names(columns), files=found, names=tuple(columns))


def by_names(columns: Mapping[str, Column]) -> Column:
    """Names and values that are there, as JSON, in the order of the names."""
    ordered = sorted((folded(name), name) for name in columns)
    return F.to_json(F.struct(*(columns[name].alias(own) for own, name in ordered)))


def _has_rows(head: FileHead, above: int) -> bool:
    return not head.whole or sum(1 for line in head.lines() if line.strip()) > above


def _parsed(lines: DataFrame, dialect: Dialect, file: FileSpec) -> tuple[DataFrame, dict[str, Column]]:
    line, fault = F.col(LINE), F.col(DAMAGE)
    if file.quote and not dialect.records:
        fault = F.coalesce(fault, F.when(open_at_end(line, dialect.separator, file.quote), Reason.UNCLOSED_QUOTE.value))
    many = _count(line, dialect.separator) > _MOST_COLUMNS
    fault = F.coalesce(fault, F.when(many, Reason.WRONG_COLUMN_COUNT.value))
    positions = [f"c{place}" for place in range(len(dialect.names) + dialect.spare)]
    schema = ", ".join(f"{name} string" for name in [*positions, "_broken"])
    options = {"sep": dialect.separator, "quote": file.quote, "columnNameOfCorruptRecord": "_broken"}
    if file.quote:
        options["escape"] = file.quote
    parsed = lines.withColumn("_early", fault).withColumn(
        "_row", F.from_csv(F.when(F.col("_early").isNull(), line), F.lit(schema), options)
    )
    parsed = parsed.withColumn(MENDED, damaged_line()).withColumn("_torn", F.from_csv(MENDED, F.lit(schema), options))
    torn = {name: F.col(f"_torn.{place}") for name, place in zip(dialect.names, positions, strict=False) if name}
    values = [F.col(f"_row.{name}") for name in positions]
    late = F.when(_wrong_count(values, dialect, file), Reason.WRONG_COLUMN_COUNT.value)
    if dialect.header:
        known = values[: len(dialect.names)]
        parsed = parsed.where(~F.coalesce(_is_header(known, dialect.header), F.lit(False)))
        late = F.coalesce(late, _other_header(known, dialect.header))
    undecided = file.quote and not dialect.records and file.line_breaks is None
    odd = odd_quotes(line, file.quote) if undecided else F.lit(False)
    rows = parsed.withColumns({FAULT: F.coalesce("_early", late), DAMAGED: damaged_value(torn), ODD: odd})
    return rows, {name: value for name, value in zip(dialect.names, values, strict=False) if name}


def _count(line: Column, part: str) -> Column:
    """How often `part` stands in a text."""
    return (F.length(line) - F.length(F.replace(line, F.lit(part), F.lit("")))) / len(part)


def _wrong_count(values: Sequence[Column], dialect: Dialect, file: FileSpec) -> Column:
    broken = F.col("_row._broken").isNotNull()
    if not dialect.spare:
        return broken
    # A row may leave out columns without a name, which the parser takes for a fault; a value there is one.
    bare = without_values(F.col(LINE), dialect.separator, file.quote) if file.quote else F.col(LINE)
    found = _count(bare, dialect.separator) + 1
    named = len(dialect.names)
    nameless = reduce(Column.__or__, (value.isNotNull() for value in values[named:]))
    return F.when(broken, ~found.between(named, named + dialect.spare)).otherwise(F.lit(False)) | nameless


def _same(value: Column) -> Column:
    return F.lower(F.trim(F.coalesce(value, F.lit(""))))


def _is_header(values: Sequence[Column], header: Sequence[str]) -> Column:
    return reduce(and_, (_same(value) == name.lower() for value, name in zip(values, header, strict=False)))


def _other_header(values: Sequence[Column], header: Sequence[str]) -> Column:
    """The fault of a line further down that is a header in another order."""
    names = sorted({name.lower() for name in header if name})
    if len(names) < 2:
        return F.lit(None).cast("string")
    named = reduce(and_, (_same(value).isin("", *names) for value in values))
    filled = reduce(Column.__add__, ((_same(value) != "").cast("int") for value in values))
    return F.when(named & (filled == len(names)), Reason.OTHER_HEADER.value)
