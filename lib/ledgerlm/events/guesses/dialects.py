"""How a csv file sets its columns apart, and where its header stands.

The beginning is read with every separator there may be, quotes respected, and the one that gives the most even table
is taken. Reported of other readers: a sign beside quotes taken for the separator (python/cpython #97611, #119123),
the cut last row counted (#110128), one column held to be the most even table (duckdb/duckdb #15576), letters and
blanks as separators (Textualize/rich-cli #38), the comma of `April 15, 2023` (mechatroner/vscode_rainbow_csv #134).
So the last row of a piece is left out, one column is no table, more columns count for more, and separators are those
that are used.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ledgerlm.errors import SpecError
from ledgerlm.events.guesses.columns import Column
from ledgerlm.events.guesses.numbers import written
from ledgerlm.events.guesses.times import reading_of

_SEPARATORS = (";", "\t", "|", ",", "::", "^", "~", "\x01")
_NAMES = {"\t": "a tab", " ": "a blank", "\x01": "the control sign 1"}
_LINES = 300
_MARKED = re.compile(r"^\"?sep=(.)\"?\s*$", re.IGNORECASE)
_EVEN = 0.5  # of the lines must have as many columns as most


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How one csv file is written.

    Attributes:
        separator: what stands between columns.
        quote: the quote character.
        names: columns in order; empty ones have no name.
        header: whether the file names them.
        at: number of the first line of rows.
        why: what was seen of the separator.
        above: lines before the header that are neither.
        twice: whether the header has a name twice, so that the spec must name all.
    """

    separator: str
    quote: str
    names: tuple[str, ...]
    header: bool
    at: int
    why: str
    above: int
    twice: bool = False


def form_of(path: str, lines: Sequence[str]) -> Form:
    """How a file is written.

    Args:
        path: of the file, for messages.
        lines: its first lines.

    Raises:
        SpecError: no separator gives a table.
    """
    marked = _MARKED.match(lines[0]) if lines else None
    start = 1 if marked else 0
    rows = [line for line in lines[start : start + _LINES] if line.strip()]
    quote = (
        "'" if sum(line.count("'") for line in rows) > sum(line.count('"') for line in rows) and _quoted(rows) else '"'
    )
    choices = [marked.group(1)] if marked else _SEPARATORS
    tables = {one: [split(line, one, quote) for line in rows] for one in choices}
    scores = {one: _evenness(table) for one, table in tables.items()}
    best = max(choices, key=lambda one: scores[one])
    if not scores[best]:
        raise SpecError(
            f"{path}: no sign sets columns apart in its lines, such as {rows[0][:80]!r}; write it with one of ; , | or "
            "a tab between columns"
            if rows
            else f"{path}: no line in it"
        )
    width = _width(tables[best])
    first = next(place for place, cells in enumerate(tables[best]) if _fits(cells, width))
    header = _is_header(tables[best][first:], width)
    at = _line_of(lines, start, rows, first)
    names = [name.strip().lstrip("\ufeff") for name in tables[best][first]] if header else []
    names = names or [f"column_{place + 1}" for place in range(width)]
    return Form(
        separator=best,
        quote=quote,
        names=_apart(names),
        header=header,
        at=at + 1 if header else at,
        why=f"{_NAMES.get(best, repr(best))} stands between {width} columns",
        above=first,
        twice=len({name for name in names if name}) < sum(1 for name in names if name),
    )


def split(line: str, separator: str, quote: str) -> list[str]:
    """The values of one line."""
    if len(separator) > 1:
        return [part.strip(quote) for part in line.split(separator)]
    try:
        return next(csv.reader([line.replace("\r", " ")], delimiter=separator, quotechar=quote), [])
    except csv.Error:
        return [line]


def _quoted(rows: Sequence[str]) -> bool:
    return sum(1 for row in rows if re.search(r"(^|[;,\t|])'[^']*'([;,\t|]|$)", row)) > len(rows) // 2


def _width(table: Sequence[Sequence[str]]) -> int:
    """Columns of most lines, empty ones at their ends left aside."""
    widths = Counter(len(cells) for cells in table)
    return max(widths, key=lambda one: (widths[one], one))


def _evenness(table: Sequence[Sequence[str]]) -> float:
    """How much of a table the lines are: the share of most, more for more columns, and for values of few signs."""
    if not table or (width := _width(table)) < 2:
        return 0.0
    alike = [cells for cells in table if len(cells) == width]
    share = len(alike) / len(table)
    typed = sum(1 for cells in alike for cell in cells if not cell or written(cell) or len(cell.split()) <= 3)
    return share * (1 - 1 / width) * (0.5 + 0.5 * typed / (len(alike) * width)) if share >= _EVEN else 0.0


def _fits(cells: Sequence[str], width: int) -> bool:
    """Whether a line is no note above the table: as many columns as it, most of them filled."""
    filled = sum(1 for cell in cells if cell.strip())
    return abs(len(cells) - width) <= 2 and filled >= max(2, 0.6 * width - 1)


def _is_header(table: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the first line names the columns: no number or date stands in it, where rows below have some."""
    first = [cell.strip() for cell in table[0]]
    if any(_value(cell) for cell in first):
        return False
    below = [[cell.strip() for cell in cells] for cells in table[1:] if len(cells) == width]
    if not below or any(any(_value(cell) for cell in cells) for cells in below):
        return True
    return not any(cell in {row[place] for row in below} for place, cell in enumerate(first[:width]) if cell)


def _value(cell: str) -> bool:
    """Whether a cell is a number or a date, and no name."""
    return bool(cell) and (written(cell) is not None or reading_of(Column(name="", values=[cell])) is not None)


def _line_of(lines: Sequence[str], start: int, rows: Sequence[str], first: int) -> int:
    """Number of the line that is the `first` of those that are not empty."""
    filled = [place for place in range(start, len(lines)) if lines[place].strip()]
    return filled[first] if first < len(rows) else start


def _apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that stand there again with a number."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name}_{seen[name]}" if name and seen[name] > 1 else name)
    while found and not found[-1]:
        found.pop()
    return tuple(found)
