"""Looks at the head of each text file: its encoding, line ends, header and separator decide how the file is read."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.config import nearest
from ledgerlm.errors import SpecError
from ledgerlm.events.files import Found
from ledgerlm.events.identity import INVISIBLE, SPACES
from ledgerlm.events.spec_files import FileSpec

HEAD_BYTES = 1 << 20
_HEAD_LINES = 10_000  # of a file that only Spark can open
_SEPARATORS = (";", "\t", "|", ",")
_HEADER_LINES = 100  # a header stands in the first lines or nowhere
_THREADS = 16
_BOM = "\ufeff"
_SEPARATOR_LINE = re.compile(r"^\"?sep=(.)\"?\s*$", re.IGNORECASE)
_MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip file without the name .gz",
    b"%PDF": "a PDF",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How one csv or JSON file is written.

    Attributes:
        encoding: Python's name of the codec.
        newline: what ends a line.
        separator: what stands between columns.
        names: column names in order; an empty one is a column without a name.
        header: the header as it stands, to be skipped; empty for none.
        spare: columns without a name at the end, which rows may leave out.
        records: whether quoted values may hold line breaks.
    """

    encoding: str
    newline: str = "\n"
    separator: str = ","
    names: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    spare: int = 0
    records: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FileHead:
    """The beginning of a file.

    Attributes:
        file: the file.
        text: decoded beginning, without a byte order mark.
        whole: whether it is the whole file.
        encoding: Python's name of the codec.
        newline: what ends a line.
    """

    file: Found
    text: str
    whole: bool
    encoding: str
    newline: str

    def lines(self) -> Iterator[str]:
        """Lines without their ends; the last only if it is whole."""
        parts = self.text.split(self.newline)
        yield from (part.removesuffix("\r") for part in (parts if self.whole else parts[:-1]))


def file_heads_of(spark: SparkSession | None, files: Sequence[Found], file: FileSpec) -> list[FileHead]:
    """The heads of text files, in order.

    Args:
        spark: reads those that are not local; None where all are.
        files: from `found_files`.
        file: their entry.

    Raises:
        SpecError: for a file that is no text, or of an encoding that must be named.
    """

    def read(one: Found) -> FileHead:
        data, whole = _local(one) if one.local or spark is None else _remote(spark, one)
        return _decoded(one, data, whole, file)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, files))


def opened(one: Found) -> BinaryIO:
    """A local file's bytes, unpacked."""
    openers: dict[str, Callable[..., object]] = {".gz": gzip.open, ".bz2": bz2.open}
    opener = openers.get(Path(one.path).suffix.lower(), open)
    return cast(BinaryIO, opener(one.path, "rb"))


def _local(one: Found) -> tuple[bytes, bool]:
    with opened(one) as stream:
        data = stream.read(HEAD_BYTES + 1)
    return data[:HEAD_BYTES], len(data) <= HEAD_BYTES


def _remote(spark: SparkSession, one: Found) -> tuple[bytes, bool]:
    lines = spark.read.option("lineSep", "\n").text(one.pattern).select(F.col("value").cast("binary")).take(_HEAD_LINES)
    return b"\n".join(bytes(row[0]) for row in lines)[:HEAD_BYTES], len(lines) < _HEAD_LINES


def _decoded(one: Found, data: bytes, whole: bool, file: FileSpec) -> FileHead:
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise SpecError(f"{one.path} is {what}, not {file.format}: save it as text, or name its format")
    encoding = _encoding(one, data, file)
    # Damaged bytes are judged row by row later; here they only must not hide the header.
    text = data.decode("latin-1" if encoding == "windows-1252" else encoding, "replace")
    text = text.removeprefix(_BOM)
    return FileHead(file=one, text=text, whole=whole, encoding=encoding, newline=_newline(text))


def _newline(text: str) -> str:
    return "\r" if "\n" not in text and "\r" in text else "\n"


def _encoding(one: Found, data: bytes, file: FileSpec) -> str:
    """The codec: a byte order mark wins, as in browsers, and iso-8859-1 means windows-1252, as there."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) and data[4:8] != b"\0\0\0\0":
        raise SpecError(f"{one.path} is written in UTF-32, which cannot be read: convert it to UTF-8")
    if data.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if data.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if file.encoding == "utf-16":
        raise SpecError(f"{one.path} has no byte order mark: give 'encoding: utf-16-le' or utf-16-be")
    start = data[:1000]
    if not file.encoding.startswith("utf-16") and len(start) > 3 and start.count(0) > len(start) // 3:
        raise SpecError(f"{one.path} looks like UTF-16 without a byte order mark: give 'encoding: utf-16-le'")
    return "windows-1252" if file.encoding == "iso-8859-1" else file.encoding


def folded(name: str) -> str:
    """A column name as it is compared: without outer white space and invisible signs, composed, in lower case."""
    bare = "".join(sign for sign in name if sign not in INVISIBLE).strip(SPACES)
    return unicodedata.normalize("NFC", bare).casefold()


def resolved(name: str, names: Collection[str], place: str) -> str | None:
    """The name in a file that a spec's name means: the same, or else the one that differs in case alone.

    Raises:
        SpecError: when several do.
    """
    if name in names:
        return name
    close = [one for one in names if folded(one) == folded(name)]
    if len(close) > 1:
        raise SpecError(f"{place} has the columns {', '.join(close)}: write '{name}' as one of them")
    return close[0] if close else None


def csv_dialect(head: FileHead, file: FileSpec, needed: Collection[str]) -> tuple[Dialect, tuple[str, ...]]:
    """How a csv file is written, and its lines that are no rows: those before the header.

    Args:
        head: the file's beginning.
        file: its entry.
        needed: columns that the file must have, by their names in it.

    Raises:
        SpecError: for a file without a line, a column that is missing or named twice; names the file.
    """
    lines = list(head.lines())
    marked = _SEPARATOR_LINE.match(lines[0]) if lines else None
    separator = marked.group(1) if marked else file.separator
    split = _splitter(separator, file.quote)
    at = _header_at(lines, file, split, needed, 1 if marked else 0)
    before = tuple(line for line in lines[:at] if line.strip())
    header: tuple[str, ...] = ()
    if file.header:
        if at >= len(lines):
            raise SpecError(f"{head.file.path}: no line in it, so no header; give 'header: false' and 'columns'")
        header = tuple(name.strip(SPACES).lstrip(_BOM) for name in split(lines[at]))
    names, spare = _names(
        head.file.path, file, header, [split(line) for line in itertools.islice(lines, at + 1, at + 50) if line.strip()]
    )
    if any("\r" in name for name in lines[at : at + 1]) and not file.columns:
        raise SpecError(
            f"{head.file.path}: its header holds line ends of CR alone, and LF stands further on; write one kind of "
            "line end"
        )
    _check_names(head.file.path, names, needed)
    opened = file.quote and any(opens(line, separator, file.quote) for line in lines)
    records = bool(file.quote) and (bool(opened) if file.line_breaks is None else file.line_breaks)
    dialect = Dialect(
        encoding=head.encoding, newline=head.newline, separator=separator, names=names, header=header, spare=spare,
        records=records,
    )  # fmt: skip
    return dialect, before


def _splitter(separator: str, quote: str) -> Callable[[str], list[str]]:
    def split(line: str) -> list[str]:
        if quote and len(separator) == 1:
            return next(csv.reader([line.replace("\r", " ")], delimiter=separator, quotechar=quote), [])
        return [part.strip(quote) if quote else part for part in line.split(separator)]

    return split


def _header_at(
    lines: Sequence[str], file: FileSpec, split: Callable[[str], list[str]], needed: Collection[str], start: int
) -> int:
    """Number of the header line, or of the first row where there is none."""
    if file.skip is not None:
        start = file.skip
    first = next((place for place in range(start, len(lines)) if lines[place].strip()), len(lines))
    if not file.header:
        return start
    if file.skip is None and not file.columns:
        wanted = {folded(name) for name in needed}
        for place in range(first, min(len(lines), first + _HEADER_LINES)):
            if wanted and wanted <= {folded(name) for name in split(lines[place])}:
                return place
    return first


def _names(path: str, file: FileSpec, header: tuple[str, ...], rows: list[list[str]]) -> tuple[tuple[str, ...], int]:
    """Column names, and how many columns without a name a row may have or leave out at its end."""
    names = list(file.columns or header)
    if header and file.columns and len(file.columns) != len(header):
        while len(header) > len(file.columns) and not header[-1]:
            header = header[:-1]
        if len(file.columns) != len(header):
            raise SpecError(f"{path}: 'columns' names {len(file.columns)} columns, the header has {len(header)}")
    if header and file.columns:
        _refuse_other_order(path, [folded(name) for name in header], file.columns)
    spare = 0
    while names and not names[-1]:
        names.pop()
        spare += 1
    more = [len(row) - len(names) for row in rows]
    if more and min(more) > spare and all(not any(row[len(names) :]) for row in rows):
        spare = max(more)
    return tuple(names), spare


def _refuse_other_order(path: str, header: Sequence[str], columns: Sequence[str]) -> None:
    """`columns` gives other names to the columns of a header; the same names at other places are a slip."""
    for place, name in enumerate(columns):
        own = [at for at, one in enumerate(header) if one and one == folded(name)]
        if own and place not in own:
            raise SpecError(
                f"{path}: 'columns' has '{name}' at place {place + 1}, the header at {own[0] + 1}; leave 'columns' "
                "out, since the header names them, or put it in the file's order"
            )


def _check_names(path: str, names: Sequence[str], needed: Collection[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise SpecError(
            f"{path}: the header has {', '.join(repr(name) for name in twice)} twice; name all columns in order under "
            "'columns'"
        )
    apart = next((sign for sign in _SEPARATORS if len(names) == 1 and sign in names[0]), None)
    if needed and apart:
        raise SpecError(
            f"{path}: its header is one column, {names[0][:80]!r}, whose names {apart!r} seems to set apart; give "
            "'separator' at the file, or deliver it as the others"
        )
    for name in needed:
        if resolved(name, [one for one in names if one], path) is None:
            raise SpecError(f"{path} has no column '{name}': {nearest(name, [one for one in names if one])}")


def opens(line: str, separator: str, quote: str) -> bool:
    """Whether a line ends inside a quoted value: an odd number of quotes, one of which begins a value."""
    if line.count(quote) % 2 == 0:
        return False
    sep, sign = re.escape(separator), re.escape(quote)
    # Python's look-behind has one width, so the value's beginning is matched and put back.
    left = re.sub(rf"(^|{sep}){sign}[^{sign}]*{sign}(?={sep}|$)", r"\1", line.replace(quote * 2, ""))
    return re.search(rf"(^|{sep}){sign}", left) is not None
