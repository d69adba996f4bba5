"""Reads files so that no row is lost: each raw row stays at hand, and a damaged one carries its fault.

Every file is read by its own dialect (header, encoding, schema); files of one dialect are read together. Blank lines
are no rows. A value is the text that stands in the file; what it means is judged where it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import SpecError
from ledgerlm.events.columns import BLOCK, FAULT, FILE, ODD, PATH, PAYLOAD, PLACE, ROW
from ledgerlm.events.csv_files import Part, csv_parts
from ledgerlm.events.files import found_files, partition_value, path_of
from ledgerlm.events.heads import resolved
from ledgerlm.events.identity import present
from ledgerlm.events.json_files import json_parts
from ledgerlm.events.numbers import plain_number
from ledgerlm.events.quality import Reason, recoded
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_files import FileSpec, SourceSpec
from ledgerlm.events.typed_files import as_number, as_text, delta_part, parquet_parts

_CONTROLS = r"[\u0000\u0080-\u0084\u0086-\u009f]"  # U+0085 ends a line on mainframes


def raw(name: str) -> Column:
    """A column of the data, whatever its name and whatever columns of ours stand beside it."""
    return F.col(_raw(name))


def in_plain_form(name: str) -> Column:
    """A number column of the data as digits, `.` and `-`; null where it holds no number."""
    return F.col(_raw(name, "n"))


def currency_at(name: str) -> Column:
    """The currency that stands at a number of the data; null where none does."""
    return F.col(_raw(name, "c"))


def with_raw(rows: DataFrame, columns: Mapping[str, Column]) -> DataFrame:
    """The rows with columns of the data added, or replaced."""
    return rows.withColumns({_raw(name): column for name, column in columns.items()})


def type_of(rows: DataFrame, name: str) -> T.DataType:
    """The type of a column of the data: text, or a time."""
    return rows.schema[_raw(name)].dataType


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
        numbers: columns that are also read by the file's grammar of numbers.
        times: columns that stay timestamps or dates if the files have them so.

    Returns:
        The needed columns as text, by `raw` (times may be typed); those of `numbers` by `in_plain_form` and
        `currency_at` too; PAYLOAD: the raw row, base64 after `base64:` where its bytes are damaged, JSON for Parquet
        and Delta; FAULT; FILE; ROW; PATH, BLOCK and PLACE: where it stood; ODD.

    Raises:
        SpecError: when nothing is at the path, a file cannot be read as the spec says, or a column is missing.
    """
    keys = {file.rename.get(name, name): key for name, key in needed.items() if name not in file.constants}
    frames = []
    kinds: dict[str, tuple[T.DataType, str]] = {}
    try:
        for part in _parts(spark, file, source, keys, {file.rename.get(name, name) for name in optional}):
            chosen = _Chosen(part=part, file=file)
            values = {name: chosen.value(name, time=name in times) for name in needed}
            frames.append(_selected(chosen, values, numbers))
            for name in times:
                kind = frames[-1].schema[_raw(name)].dataType
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


def source_places(spec: DataSetSpec) -> list[str]:
    """Paths, globs and URLs of all files that the spec reads, each once."""
    if spec.source is None:
        return []
    named = [*spec.source.files, *(join.file for join in spec.joins)]
    named += [*(one.file for one in spec.clients), *(label.file for label in spec.labels if label.file)]
    return sorted({path_of(file, spec.source) for file in named})


def _raw(name: str, kind: str = "r") -> str:
    """A name for Spark, which knows no capitals and takes dots and quotes for its own."""
    return f"_{kind}{name.encode().hex()}"


def _parts(
    spark: SparkSession, file: FileSpec, source: SourceSpec, keys: Mapping[str, str], optional: Collection[str]
) -> Iterator[Part]:
    """The files of the entry by dialect; a missing column is told with the spec's key."""
    if file.format == "delta":
        required = [name for name in keys if name not in optional]
        yield from delta_part(spark, path_of(file, source), required)
        return
    files = found_files(spark, file, source)
    folders = {name for one in files for name, _ in one.partitions}
    required = [name for name in keys if name not in optional]
    inside = [name for name in required if resolved(name, folders, file.glob) is None]
    try:
        if file.format == "csv":
            yield from csv_parts(spark, file, files, inside)
        elif file.format == "json":
            yield from json_parts(spark, file, files, inside, [name for name in keys if name in optional])
        else:
            yield from parquet_parts(spark, file, files, required)
    except SpecError as error:
        missing = next((keys[name] for name in required if f"column '{name}'" in str(error)), "")
        raise SpecError(f"{missing}: {error}" if missing else str(error)) from error


class _Chosen:
    """The columns of one part, as a spec names them."""

    def __init__(self, *, part: Part, file: FileSpec) -> None:
        self.part, self.file = part, file
        self.folders = sorted({name for one in part.files for name, _ in one.partitions})

    def column(self, name: str) -> tuple[Column, T.DataType] | None:
        """A column as it stands in the files, and its type; None where they have none."""
        wanted = self.file.rename.get(name, name)
        found = resolved(wanted, self.part.columns, self.part.files[0].path)
        if found is not None:
            column = self.part.columns[found]
            typed = self.file.format in ("parquet", "delta")
            return column, self.part.rows.select(column).schema[0].dataType if typed else T.StringType()
        folder = resolved(wanted, self.folders, self.part.files[0].path)
        return (partition_value(folder, PATH), T.StringType()) if folder is not None else None

    def value(self, name: str, *, time: bool) -> Column:
        """A column as text (a time may be typed): a constant, or what the files have with the spec's values."""
        if name in self.file.constants:
            return F.lit(self.file.constants[name])
        found = self.column(name)
        if found is None:
            return F.lit(None).cast("string")
        text = as_text(*found, keep_time=time)
        return recoded(present(text), self.file.values[name]) if name in self.file.values else text

    def number(self, name: str, text: Column) -> tuple[Column, Column]:
        """A column as a number in plain form, and the currency that stands at it."""
        found = self.column(name)
        typed = found is not None and name not in self.file.constants and name not in self.file.values
        if found is not None and typed and isinstance(found[1], T.NumericType):
            return as_number(*found), F.lit(None).cast("string")
        return plain_number(present(text), self.file)


def _selected(chosen: _Chosen, values: Mapping[str, Column], numbers: Collection[str]) -> DataFrame:
    plain = {name: chosen.number(name, values[name]) for name in numbers if name in values}
    texts = [column for name, column in values.items() if name not in chosen.file.constants]
    controls = F.concat_ws("\n", *(text.cast("string") for text in texts)).rlike(_CONTROLS)
    fault = F.coalesce(FAULT, F.when(controls, Reason.CONTROL_SIGN.value)) if texts else F.col(FAULT)
    own = [F.lit(f"{name}={value}") for name, value in sorted(chosen.file.constants.items())]
    if chosen.file.format != "parquet":
        own += [
            F.concat(F.lit(f"{name}="), F.coalesce(partition_value(name, PATH), F.lit(""))) for name in chosen.folders
        ]
    row = F.concat_ws("\n", PAYLOAD, *own) if own else F.col(PAYLOAD)
    return chosen.part.rows.select(
        *(column.alias(_raw(name)) for name, column in values.items()),
        *(number.alias(_raw(name, "n")) for name, (number, _) in plain.items()),
        *(currency.alias(_raw(name, "c")) for name, (_, currency) in plain.items()),
        PAYLOAD,
        fault.alias(FAULT),
        F.substring_index(PATH, "/", -2).alias(FILE),
        row.alias(ROW),
        PATH,
        BLOCK,
        PLACE,
        F.col(ODD) if chosen.file.format == "csv" else F.lit(False).alias(ODD),
    )
