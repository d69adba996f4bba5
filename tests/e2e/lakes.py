"""Reads lakes with another engine than the one that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltalake import DeltaTable

KEYS = {
    "events": ("client_id", "event_id"),
    "clients": ("client_id",),
    "labels": ("client_id", "task", "as_of"),
    "documents": ("client_id", "as_of", "format"),
    "enriched_documents": ("client_id", "as_of", "variant"),
    "features": ("client_id", "as_of", "feature_set"),
    "embeddings": ("client_id", "as_of"),
    "scores": ("client_id", "task", "as_of"),
    "leaderboard": ("task", "method", "metric", "split"),
}


def keys(lake: Path, table: str) -> list[tuple[object, ...]]:
    """The keys of a table, sorted; a doubled key stands twice."""
    rows = DeltaTable(str(lake / table)).to_pyarrow_table(columns=list(KEYS[table])).to_pylist()
    return sorted((tuple(row.values()) for row in rows), key=str)


def all_keys(lake: Path) -> dict[str, list[tuple[object, ...]]]:
    """Table to its sorted keys; fails when a key is doubled."""
    found = {table: keys(lake, table) for table in KEYS}
    for table, rows in found.items():
        assert len(set(rows)) == len(rows), f"{table} holds doubled keys"
        assert rows, f"{table} is empty"
    return found


def rows(table: Path, columns: list[str]) -> dict[str, dict[str, float]]:
    """What is not a number -> the numbers beside it, by place."""
    found = DeltaTable(str(table)).to_pyarrow_table(columns=columns).to_pylist()
    return dict(_apart(row) for row in found)


def _apart(row: dict[str, Any]) -> tuple[str, dict[str, float]]:
    named: list[str] = []
    numbers: dict[str, float] = {}

    def walk(value: object, place: str) -> None:
        if isinstance(value, float):
            numbers[place] = value
        elif isinstance(value, list):
            # Arrow gives a map as its entries, in an order of no meaning.
            for at, one in enumerate(value):
                pair = isinstance(one, tuple)
                walk(one[1] if pair else one, f"{place}/{one[0] if pair else at}")
        else:
            named.append(f"{place}={value}")

    for column, value in row.items():
        walk(value, column)
    return " ".join(named), numbers
