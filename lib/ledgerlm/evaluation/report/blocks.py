"""The pieces a report section is made of; jobs put the same pieces into their facts as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LONG = 40  # characters of a value that may take several lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """An SVG with its caption."""

    svg: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """A text shown as it is, with its caption."""

    text: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A table, a row of figures, texts side by side, or a folded text, by `kind`."""

    kind: str
    heading: str = ""
    note: str = ""
    columns: Sequence[str] = ()
    classes: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    best: frozenset[int] = frozenset()
    figures: Sequence[Drawing] = ()
    small: bool = False
    texts: Sequence[Extract] = ()
    caption: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of the page, reachable from the navigation."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    anchor: str = field(default="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A key figure at the top of the page."""

    value: str
    label: str


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    heading: str = "",
    note: str = "",
    best: Sequence[int] = (),
) -> Block:
    """A table; columns whose values are all numbers stand to the right, and long values of the last one are broken."""
    numeric = [all(_is_number(row[place]) for row in rows) and bool(rows) for place in range(len(columns))]
    prose = any(len(str(row[-1])) > _LONG for row in rows)
    last = "n" if numeric[-1] else "text" if prose else ""
    return Block(
        kind="table",
        heading=heading,
        note=note,
        columns=columns,
        classes=[*("n" if one else "" for one in numeric[:-1]), last],
        rows=[[shown(cell) for cell in row] for row in rows],
        best=frozenset(best),
    )


def figures(drawings: Sequence[Drawing], *, heading: str = "", note: str = "", small: bool = False) -> Block:
    """Figures side by side where there is room; `small` ones stand four in a row, to be looked over together."""
    return Block(kind="figures", heading=heading, note=note, figures=drawings, small=small)


def texts(extracts: Sequence[Extract], *, heading: str = "", note: str = "") -> Block:
    """Texts side by side where there is room."""
    return Block(kind="texts", heading=heading, note=note, texts=extracts)


def folded(caption: str, text: str) -> Block:
    """A long text behind a click."""
    return Block(kind="fold", caption=caption, text=text)


def shown(value: Any) -> str:
    """A cell: thousands separated, fractions with three digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
