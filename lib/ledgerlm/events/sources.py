"""Reads files so that no row is lost: each raw row stays at hand, and a damaged one carries its fault.

Every file is read by its own dialect (header, encoding, schema); files of one dialect are read together. Blank lines
are no rows. A value is the text that stands in the file; what it means is judged where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from ledgerlm.errors import SpecError
from ledgerlm.events.cells import Cells, Uses, type_of
from ledgerlm.events.csv_files import Part, csv_parts
from ledgerlm.events.file_heads import csv_dialect, file_heads_of, folded, resolved
from ledgerlm.events.files import Found, found_files, is_here, path_of
from ledgerlm.events.json_files import json_parts, keys_in, no_key
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_files import FileSpec, SourceSpec
from ledgerlm.events.typed_files import by_schema, check_columns, delta_part, parquet_parts
from ledgerlm.events.unpivot import long_rows, wide_file, wide_names, wide_uses


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """What a spec needs of a file entry.

    Attributes:
        file: the entry.
        keys: column, as the spec names it, to the spec's key that asks for it.
        optional: columns that may be absent.
    """

    file: FileSpec
    keys: dict[str, str]
    optional: frozenset[str] = frozenset()


def read_file(
    spark: SparkSession,
    file: FileSpec,
    source: SourceSpec,
    *,
    needed: Mapping[str, str],
    optional: Collection[str] = (),
    uses: Uses | None = None,
    seen: Callable[[Part], None] | None = None,
    table: DataFrame | None = None,
) -> DataFrame:
    """Reads the columns that a spec needs of one file entry.

    Args:
        spark: session in UTC.
        file: the entry.
        source: its `path` and what to say when nothing is there.
        needed: column, as the spec names it, to the spec's key that asks for it.
        optional: columns that may be absent (they are null then).
        uses: what columns are read as beside text.
        seen: told each part as its files are looked at, before any row is read.
        table: rows of a Delta table, in place of those of its newest version.

    Returns:
        The needed columns by the functions of `ledgerlm.events.cells`: `raw`, and `code`, `real`, `exact` and
        `currency_at` as `uses` says; PAYLOAD: the raw row, base64 after `base64:` where its bytes are damaged, JSON for
        Parquet and Delta; FAULT; DAMAGED; FINER; FILE; ROW; PATH, BLOCK and PLACE: where it stood; ODD; LEFT_OUT.

    Raises:
        SpecError: when nothing is at the path, a file cannot be read as the spec says, or a column is missing.
    """
    uses, wide = uses or Uses(), {name: name for name in needed}
    frames = []
    kinds: dict[str, tuple[T.DataType, str]] = {}
    if file.unpivot:
        wide, wide_entry = wide_names(needed, file.unpivot), wide_file(file, file.unpivot)
    keys = {file.rename.get(one, one): needed[name] for one, name in wide.items() if one not in file.constants}
    lacking = {file.rename.get(one, one) for one, name in wide.items() if name in optional}
    try:
        for part in _parts(spark, file, source, keys, lacking, zone=uses.zone, table=table):
            if seen is not None:
                seen(part)
            if file.unpivot:
                rows = Cells(part=part, file=wide_entry, names=[*wide], uses=wide_uses(uses, wide)).rows()
                frames.append(long_rows(rows, file.unpivot, needed, uses))
            else:
                frames.append(Cells(part=part, file=file, names=[*needed], uses=uses).rows())
            for name in uses.times:
                kind = type_of(frames[-1], name)
                first = kinds.setdefault(name, (kind, part.files[0].path))
                if first[0] != kind:
                    raise SpecError(
                        f"{needed[name]}: '{name}' is {first[0].simpleString()} in {first[1]} and "
                        f"{kind.simpleString()} in {part.files[0].path}; give such files entries of their own"
                    )
    except AnalysisException as error:
        hint = f"; {source.needs}" if source.needs else ""
        said = str(error).splitlines()[0]
        raise SpecError(f"source.path: cannot read {path_of(file, source)} as {file.format}: {said}{hint}") from error
    return reduce(DataFrame.unionByName, frames)


def columns_in(spark: SparkSession, file: FileSpec, source: SourceSpec) -> list[str]:
    """Names of the columns of an entry, folders included, in order; none of JSON, whose lines have their own."""
    names: dict[str, None] = {}
    for part in _parts(spark, file, source, {}, ()):
        names |= dict.fromkeys((*part.columns, *(name for one in part.files for name, _ in one.partitions)))
    return list(names)


def source_places(spec: DataSetSpec) -> list[str]:
    """Paths, globs and URLs of all files that the spec reads, each once."""
    if spec.source is None:
        return []
    named = [*spec.source.files, *(join.file for join in spec.joins)]
    named += [*(one.file for one in spec.clients), *(label.file for label in spec.labels if label.file)]
    books = (field.dictionary for field in spec.fields)
    named += [book.file for book in books if book is not None and not isinstance(book, dict)]
    return sorted({path_of(file, spec.source) for file in named})


def _parts(
    spark: SparkSession,
    file: FileSpec,
    source: SourceSpec,
    keys: Mapping[str, str],
    optional: Collection[str],
    *,
    zone: str = "UTC",
    table: DataFrame | None = None,
) -> Iterator[Part]:
    """The files of the entry by dialect; a missing column is told with the spec's key."""
    if file.format == "delta":
        required = [name for name in keys if name not in optional]
        yield from delta_part(spark, path_of(file, source), required, rows=table, empty=file.empty)
        return
    files = found_files(spark, file, source)
    _refuse_cut_off(files, file)
    required = [name for name in keys if name not in optional]
    with _told_by_key(keys, required):
        if file.format == "csv":
            yield from csv_parts(spark, file, files, _inside(required, files, file))
        elif file.format == "json":
            may_lack = [name for name in keys if name in optional]
            yield from json_parts(spark, file, files, _inside(required, files, file), may_lack)
        else:
            yield from parquet_parts(spark, file, files, required, zone)


def look_for_columns(needed: Needed, source: SourceSpec) -> None:
    """Looks into the heads of an entry's files, without Spark, for the columns that are needed.

    What lies at a URL, and Delta tables, are not looked at; keys of JSON may stand further down.

    Raises:
        SpecError: as `read_file`.
    """
    file = needed.file
    if file.format == "delta" or not is_here(file, source):
        return
    files = found_files(None, file, source)
    _refuse_cut_off(files, file)
    files = [one for one in files if one.size]
    wide = wide_names(needed.keys, file.unpivot) if file.unpivot else {name: name for name in needed.keys}
    keys = {file.rename.get(one, one): needed.keys[name] for one, name in wide.items() if one not in file.constants}
    lacking = {file.rename.get(one, one) for one, name in wide.items() if name in needed.optional}
    required = [name for name in keys if name not in lacking]
    inside = _inside(required, files, file)
    with _told_by_key(keys, required):
        if file.format == "csv":
            for head in file_heads_of(None, files, file):
                csv_dialect(head, file, inside)
        elif file.format == "json":
            heads = file_heads_of(None, files, file)
            found = {key for head in heads for key in keys_in(head)}
            missing = [name for name in inside if folded(name) not in {folded(key) for key in found}]
            if missing and all(head.whole for head in heads):
                raise no_key(missing[0], found, files[0], file)
        else:
            folders = [name for one in files for name, _ in one.partitions]
            for schema, members in by_schema(files, file).items():
                check_columns([*(schema.columns.names if schema else ()), *folders], required, members[0].path)


def _refuse_cut_off(files: Sequence[Found], file: FileSpec) -> None:
    """Refuses a file without a byte beside others that have some.

    Raises:
        SpecError: it looks like a delivery that was cut off.
    """
    nothing = [one.path for one in files if not one.size]
    if nothing and len(nothing) < len(files) and not file.empty:
        raise SpecError(
            f"{nothing[0]} has no byte, as a delivery that was cut off; deliver it again, or say 'empty: true' at the "
            "entry where that is nothing to worry about"
        )


def _inside(required: Sequence[str], files: Sequence[Found], file: FileSpec) -> list[str]:
    """The columns that no folder above the files gives."""
    folders = {name for one in files for name, _ in one.partitions}
    return [name for name in required if resolved(name, folders, file.glob) is None]


@contextmanager
def _told_by_key(keys: Mapping[str, str], required: Sequence[str]) -> Iterator[None]:
    """Names the spec's key in an error about a missing column."""
    try:
        yield
    except SpecError as error:
        missing = next((keys[name] for name in required if f"column '{name}'" in str(error)), "")
        raise SpecError(f"{missing}: {error}" if missing else str(error)) from error
