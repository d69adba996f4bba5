"""Parts of tables: which rows a stage owns, said by values of columns and never by SQL text."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

Slice = Mapping[str, tuple[str, ...]]
"""Column -> the values that belong to it; several columns hold together; no column: the whole table."""

WHOLE: Slice = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads:
    """A table that a stage reads.

    Attributes:
        table: its name.
        optional: the stage makes do without it.
    """

    table: str
    optional: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Writes:
    """A part of a table that a stage replaces.

    Attributes:
        table: its name.
        slice: what is known of the part before the stage runs. Two stages that may write the same rows are told apart
            by it, so it may hold what stands for a column's value (the stage that makes a head, for its id).
    """

    table: str
    slice: Slice = field(default_factory=dict)


def predicate(part: Slice, table: str = "") -> str:
    """The SQL condition of a slice; values are quoted here and nowhere else. A column without values holds no row.

    Args:
        part: the slice.
        table: name of the table in the statement, where columns need one.
    """
    if not all(part.values()):
        return "FALSE"
    of = f"{table}." if table else ""
    columns = (
        f"{of}`{name.replace('`', '``')}` IN ({', '.join(map(literal, values))})" for name, values in part.items()
    )
    return " AND ".join(columns)


def literal(value: str) -> str:
    """A string literal of Spark SQL."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def instant(value: dt.datetime) -> str:
    """The value of a timestamp column in a slice: one text for one instant, whatever the session's time zone.

    Args:
        value: with its zone.
    """
    return value.astimezone(dt.UTC).isoformat()


def overlap(one: Slice, other: Slice) -> bool:
    """Whether a row can belong to both: unless a column that both name has no value in common."""
    return all(set(one[name]) & set(other[name]) for name in one.keys() & other.keys())
