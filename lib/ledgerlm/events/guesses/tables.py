"""The files that somebody names, put together by what columns they have, and a sample of the rows of each.

A sample is the head of a file and pieces from all over it: days above the twelfth, amounts above a thousand and the
end of the data may stand anywhere.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ledgerlm.errors import SpecError
from ledgerlm.events.file_heads import HEAD_BYTES, FileHead, file_heads_of, folded, opened
from ledgerlm.events.files import Found, is_url, local_files, partitions_of
from ledgerlm.events.guesses.columns import Column, Guess, Kind
from ledgerlm.events.guesses.dialects import Form, form_of, split
from ledgerlm.events.guesses.encodings import Encoding, encoding_of
from ledgerlm.events.identity import INVISIBLE, SPACES
from ledgerlm.events.json_files import keys_in
from ledgerlm.events.spec_files import FileSpec

_TEXT = {".csv", ".tsv", ".txt", ".asc", ".dat", ".data", ".psv", ""}
_JSON = {".json", ".jsonl", ".ndjson"}
_PARQUET = {".parquet", ".pq"}
_PACKED = {".gz", ".bz2"}
_PASSED_OVER = {".md", ".pdf", ".yaml", ".yml", ".html", ".png", ".crc", ".py", ".sql"}
_TABLE_LINES = 500  # that tell the dialect of a csv file
_WIDEST = 1 << 30  # where no column of a file stands
_SPARE = 3  # columns without a name that rows may have at their ends
_DELTA = "a Delta table: name it in a spec by hand, with 'format: delta'"
_PIECES, _PIECE_BYTES = 16, 1 << 16
_ROWS = 100_000  # of a table
_WHOLE = 2.0**53  # up to which a double holds every integer
_BLANKS = SPACES + INVISIBLE
_FILES = 24  # of a table whose rows are looked at


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file.

    Attributes:
        file: where it lies.
        format: csv, json or parquet.
        encoding: of text.
        form: of csv.
        names: columns in order.
        kinds: column -> how the file types it, where it does.
        whole: whether a sample of it is all of it.
    """

    file: Found
    format: str
    names: tuple[str, ...]
    whole: bool
    kinds: Mapping[str, Kind]
    encoding: Encoding = field(default_factory=lambda: Encoding("utf-8"))
    form: Form | None = None

    def rows(self) -> Sequence[Sequence[str]]:
        """A sample of its rows, a text for each name; read anew each time, since there may be thousands of files."""
        if self.format == "parquet":
            return _parquet_rows(self)
        return _csv_rows(self) if self.form is not None else _json_rows(self)

    @property
    def settings(self) -> dict[str, Any]:
        """What a spec says of such a file, beside where it lies."""
        found: dict[str, Any] = {} if self.format == "csv" else {"format": self.format}
        if self.encoding.name != "utf-8":
            found["encoding"] = self.encoding.name
        if self.form is not None:
            found |= {"separator": self.form.separator} if self.form.separator != "," else {}
            found |= {"quote": self.form.quote} if self.form.quote != '"' else {}
            found |= {} if self.form.header else {"header": False}
            if not self.form.header or self.form.twice:
                found["columns"] = list(self.form.names)
        return found


@dataclass(frozen=True, kw_only=True)
class Table:
    """Files with the same columns.

    Attributes:
        parts: the files.
        globs: patterns below the folder, with what a spec says of the files of each.
    """

    parts: tuple[Part, ...]
    globs: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """What a reader knows it by."""
        names = [Path(part.file.path).name for part in self.parts]
        return ", ".join(names[:2]) + (f", … ({len(names)} files)" if len(names) > 2 else "")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns in the order of the first file, those of folders `key=value` last; those without a name left out."""
        first = self.parts[0]
        return tuple(dict.fromkeys(name for name in (*first.names, *(key for key, _ in first.file.partitions)) if name))

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return len(self.parts) <= _FILES and all(part.whole for part in self.parts)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns of the sample, by name."""
        chosen = _spread(self.parts, _FILES)
        most = max(_ROWS // len(chosen), 1)
        values: dict[str, list[str]] = {name: [] for name in self.names}
        for part in chosen:
            places = {folded(name): place for place, name in enumerate(part.names)}
            rows = _spread(part.rows(), most)
            folders = {key: value or "" for key, value in part.file.partitions}
            for name, found in values.items():
                place = places.get(folded(name), _WIDEST)
                found += [row[place] if place < len(row) else folders.get(name, "") for row in rows]
        kinds = {name: kind for part in chosen for name, kind in part.kinds.items()}
        return {name: Column(name=name, values=found, kind=kinds.get(name, "text")) for name, found in values.items()}

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return len(next(iter(self.columns.values())).values)

    @property
    def guesses(self) -> Iterator[Guess]:
        """What was seen of how the files are written; keys are those of a file."""
        part = self.parts[0]
        if part.form is not None:
            yield Guess(key="separator", value=part.form.separator, why=part.form.why)
            if part.form.above:
                above = f"{part.form.above} lines" if part.form.above > 1 else "one line"
                why = f"{above} above the line that names the columns are no rows; that line is found by the names"
                yield Guess(key="header", value="true", why=why)
            if not part.form.header:
                yield Guess(key="header", value="false", why="the first line holds values; columns are named by place")
            if part.form.twice:
                yield Guess(key="columns", value="all", why="the header has a name twice, so all are named here")
        if part.encoding.name != "utf-8":
            other = f"; {part.encoding.other} reads it otherwise" if part.encoding.other else ""
            yield Guess(
                key="encoding",
                value=part.encoding.name,
                why=part.encoding.why + other,
                sure="unsure" if other else "sure",
            )


@dataclass(frozen=True, kw_only=True)
class Here:
    """What somebody named.

    Attributes:
        root: the folder.
        tables: files that were read, put together by their columns, the largest first.
        passed: files that were not, with the reason.
    """

    root: Path
    tables: tuple[Table, ...]
    passed: Mapping[str, str]


def tables_at(names: Sequence[str]) -> Here:
    """The tables at some files, patterns or folders of this machine.

    Args:
        names: as a user writes them.

    Raises:
        SpecError: nothing is there, or it cannot be read.
    """
    files, root = _files_at(names)
    passed: dict[str, str] = {}
    parts: list[Part] = []
    tables = _delta_tables(files)
    for one in files:
        if table := next((table for table in tables if Path(one.path).is_relative_to(table)), None):
            passed[str(table.relative_to(root)) if table != root else "."] = _DELTA
            continue
        try:
            parts.append(part_of(one))
        except _PassedOver as why:
            passed[str(Path(one.path).relative_to(root))] = str(why)
        except SpecError as why:
            if len(files) == 1:
                raise
            passed[str(Path(one.path).relative_to(root))] = str(why)
    if not parts:
        told = "; ".join(f"{name}: {why}" for name, why in list(passed.items())[:3])
        raise SpecError(f"{', '.join(names)}: no file that can be read as csv, JSON lines or Parquet; {told}")
    groups: dict[tuple[str, frozenset[str]], list[Part]] = {}
    for part in parts:
        key = (part.format, frozenset(folded(name) for name in part.names if name))
        groups.setdefault(key, []).append(part)
    here = [str(Path(one.path).relative_to(root)) for one in files]
    found = [Table(parts=tuple(group), globs=_entries(group, root, here)) for group in groups.values()]
    found.sort(key=lambda table: -sum(part.file.size for part in table.parts))
    return Here(root=root, tables=tuple(found), passed=passed)


def _delta_tables(files: Sequence[Found]) -> list[Path]:
    """Folders of Delta tables: those above a log."""
    logs = (path for one in files for path in Path(one.path).parents if path.name == "_delta_log")
    return list(dict.fromkeys(log.parent for log in logs))


class _PassedOver(Exception):
    """A file that is no table."""


def _files_at(names: Sequence[str]) -> tuple[list[Found], Path]:
    """The files, and the folder that holds them all."""
    paths: list[Path] = []
    for name in names:
        if is_url(name):
            raise SpecError(f"{name}: only files of this machine are looked at; copy a few of them here")
        given = Path(name).expanduser()
        found = local_files(glob.escape(str(given)) if given.exists() else str(given))
        if not found:
            raise SpecError(f"{name}: nothing is there")
        paths += found
    folders = {Path(name).expanduser() for name in names if Path(name).expanduser().is_dir()}
    root = next(iter(folders)) if len(folders) == len(names) == 1 else _common([one.parent for one in paths])
    root = root.absolute()
    chosen = [
        Found(path=str(one.absolute()), size=one.stat().st_size, partitions=partitions_of(str(one.absolute())))
        for one in dict.fromkeys(paths)
    ]
    return [one for one in chosen if not Path(one.path).name.startswith(("_SUCCESS", ".DS_Store"))], root


def _common(folders: Sequence[Path]) -> Path:
    first = folders[0].absolute()
    while not all(one.absolute().is_relative_to(first) for one in folders):
        first = first.parent
    return first


def _suffix(one: Found) -> str:
    path = Path(one.path)
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()


def part_of(one: Found) -> Part:
    """A file with a sample of its rows.

    Raises:
        SpecError: it cannot be read.
    """
    suffix, name = _suffix(one), Path(one.path).name
    if name.startswith((".", "_")):
        raise _PassedOver("its name begins with _ or ., which Spark passes over")
    if suffix in _PASSED_OVER:
        raise _PassedOver("no table by its name")
    if suffix in (".zip", ".7z", ".rar", ".xlsx", ".xls"):
        raise _PassedOver("an archive or a workbook: unpack it, or save it as csv")
    if not one.size:
        raise _PassedOver("it is empty")
    if suffix in _PARQUET:
        return _parquet(one)
    if suffix not in _TEXT | _JSON:
        raise _PassedOver("no table by its name")
    pieces = _pieces(one)
    encoding = encoding_of(b"".join(pieces))
    head = _head(one, encoding)
    if suffix in _JSON or head.text.lstrip()[:1] in ("{", "["):
        return _json(head, encoding)
    form = form_of(one.path, list(itertools.islice(head.lines(), _TABLE_LINES)))
    return Part(file=one, format="csv", names=form.names, whole=head.whole, kinds={}, encoding=encoding, form=form)


def _head(one: Found, encoding: Encoding) -> FileHead:
    [head] = file_heads_of(None, [one], FileSpec(glob=Path(one.path).name, encoding=encoding.name))  # type: ignore[arg-type]
    return head


def _pieces(one: Found) -> list[bytes]:
    """The beginning of a file's bytes, and pieces from all over it where it is long and not packed."""
    with opened(one) as stream:
        found = [stream.read(HEAD_BYTES)]
        if Path(one.path).suffix.lower() not in _PACKED and one.size > HEAD_BYTES + _PIECES * _PIECE_BYTES:
            step = (one.size - HEAD_BYTES - _PIECE_BYTES) // (_PIECES - 1)
            for place in range(_PIECES):
                stream.seek(HEAD_BYTES + place * step)
                found.append(stream.read(_PIECE_BYTES))
    return found


def _lines(part: Part) -> tuple[list[str], list[str]]:
    """The lines of a file's head, and whole lines of pieces from all over the rest."""
    head = _head(part.file, part.encoding)
    if head.whole or head.encoding.startswith("utf-16"):
        return list(head.lines()), []
    codec = "latin-1" if head.encoding == "windows-1252" else head.encoding
    texts = (piece.decode(codec, "replace").split(head.newline)[1:-1] for piece in _pieces(part.file)[1:])
    return list(head.lines()), [line.removesuffix("\r") for text in texts for line in text]


def _csv_rows(part: Part) -> Sequence[Sequence[str]]:
    form, (lines, later) = cast(Form, part.form), _lines(part)
    rows = list(_records(lines[form.at :], form))
    rows += [split(line, form.separator, form.quote) for line in later if line.strip()]
    width = len(form.names)
    return [[cell.strip(_BLANKS) for cell in cells] for cells in rows if width - 1 <= len(cells) <= width + _SPARE]


def _records(lines: Sequence[str], form: Form) -> Iterator[list[str]]:
    """Rows of lines, quoted line breaks put together."""
    if len(form.separator) > 1:
        yield from (split(line, form.separator, form.quote) for line in lines if line.strip())
        return
    text = io.StringIO("\n".join(line for line in lines if line.strip()), newline="")
    reader = csv.reader(text, delimiter=form.separator, quotechar=form.quote)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:  # a value beyond every size: an open quote
            continue


def _json(head: FileHead, encoding: Encoding) -> Part:
    keys_in(head)  # refuses what is no JSON lines, with the command that mends it
    names: dict[str, None] = {}
    kinds: dict[str, Kind] = {}
    for found in _objects(head.lines()):
        names |= dict.fromkeys(found)
        kinds |= {name: "nested" for name, value in found.items() if isinstance(value, list | dict)}
    return Part(file=head.file, format="json", names=tuple(names), whole=head.whole, kinds=kinds, encoding=encoding)


def _json_rows(part: Part) -> Sequence[Sequence[str]]:
    lines, later = _lines(part)
    return [[_text(found.get(name)) for name in part.names] for found in _objects((*lines, *later))]


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of lines, numbers as they are written."""
    for line in lines:
        try:
            found = json.loads(line, parse_float=str, parse_int=str) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip(_BLANKS)


def _parquet(one: Found) -> Part:
    try:
        file = pq.ParquetFile(one.path)
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"{one.path}: cannot be read as Parquet: {error}") from error
    kinds = {column.name: _kind(column.type) for column in file.schema_arrow}
    whole = file.metadata.num_rows <= _ROWS and file.num_row_groups <= _PIECES
    return Part(file=one, format="parquet", names=tuple(kinds), whole=whole, kinds=kinds)


def _parquet_rows(part: Part) -> Sequence[Sequence[str]]:
    file = pq.ParquetFile(part.file.path)
    groups = _spread(range(file.num_row_groups), _PIECES)
    most = _ROWS if part.whole else max(_ROWS // max(len(groups), 1), 1)
    kept = [_few(file.read_row_group(group), most) for group in groups]
    table = pa.concat_tables(kept) if kept else file.schema_arrow.empty_table()
    columns = [_as_text(table.column(place), part.kinds[name]) for place, name in enumerate(part.names)]
    return list(zip(*columns, strict=True))


def _few(table: pa.Table, most: int) -> pa.Table:
    """So many rows from all over a table."""
    return table if table.num_rows <= most else table.take(list(_spread(range(table.num_rows), most)))


def _kind(type_: pa.DataType) -> Kind:
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    kinds: list[tuple[Kind, bool]] = [
        ("time", pa.types.is_timestamp(type_) or pa.types.is_date(type_)),
        ("float", pa.types.is_floating(type_)),
        ("number", pa.types.is_integer(type_) or pa.types.is_decimal(type_)),
        ("bool", pa.types.is_boolean(type_)),
        ("nested", pa.types.is_nested(type_) or pa.types.is_time(type_) or pa.types.is_binary(type_)),
    ]
    return next((kind for kind, is_it in kinds if is_it), "text")


def _as_text(column: pa.ChunkedArray, kind: Kind) -> list[str]:
    if kind == "nested":
        return ["…" if value is not None else "" for value in column.to_pylist()]
    if kind == "float":
        return [_float_text(value) for value in column.to_pylist()]
    texts = ("" if text is None else text for text in pc.cast(column, pa.string()).to_pylist())
    return [re.sub(r"\.0+(?=$|[Z+-])", "", text) if kind == "time" else text.strip(_BLANKS) for text in texts]


def _float_text(value: float | None) -> str:
    """A double as it is read: whole ones are integers, NaN is a gap."""
    if value is None or value != value:  # noqa: PLR0124
        return ""
    return str(int(value)) if value.is_integer() and abs(value) <= _WHOLE else repr(value)


def _spread(items: Sequence[Any], most: int) -> Sequence[Any]:
    """So many of a sequence, from its first to its last."""
    if len(items) <= most:
        return items
    return [items[place * (len(items) - 1) // max(most - 1, 1)] for place in range(most)]


def _entries(group: Sequence[Part], root: Path, here: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Patterns that mean the files of a group and no other, each with what a spec says of its files."""
    forms: dict[str, list[Part]] = {}
    for part in group:
        forms.setdefault(json.dumps(part.settings), []).append(part)
    found = []
    for parts in forms.values():
        names = [str(Path(part.file.path).relative_to(root)) for part in parts]
        found.append({"glob": _pattern(names, here), **parts[0].settings})
    return tuple(found)


def _pattern(names: Sequence[str], here: Iterable[str]) -> str:
    """One pattern that matches these names and no other."""
    if len(names) == 1:
        return glob.escape(names[0])
    others = set(here) - set(names)
    folder = str(Path(names[0]).parent)
    if all(str(Path(name).parent) == folder for name in names):
        bare = [Path(name).name for name in names]
        start = next(place for place in range(len(bare[0]) + 1) if len({one[: place + 1] for one in bare}) > 1)
        back = [one[start:][::-1] for one in bare]
        end = next(place for place in range(len(min(back, key=len)) + 1) if len({one[: place + 1] for one in back}) > 1)
        tail = bare[0][len(bare[0]) - end :]
        pattern = glob.escape(str(Path(folder) / bare[0][:start])) + "*" + glob.escape(tail)
        if not any(str(Path(one).parent) == folder and fnmatch.fnmatch(one, pattern) for one in others):
            return pattern
    deep, ends = len(Path(names[0]).parts), {Path(name).suffix for name in names}
    every = "*/" * (deep - 1) + f"*{Path(names[0]).suffix}"
    alike = len(ends) == 1 and all(len(Path(name).parts) == deep for name in names)
    # A * of a file system stops at a folder, one of fnmatch does not.
    if alike and not any(len(Path(one).parts) == deep and one.endswith(tuple(ends)) for one in others):
        return every
    top = Path(names[0]).parts[0]
    if all(Path(name).parts[0] == top for name in names) and not any(Path(one).parts[0] == top for one in others):
        return glob.escape(top)
    return f"{{{','.join(map(glob.escape, names))}}}"
