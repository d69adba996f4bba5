"""Clients who were erased: known by a hash of their id alone, so that no delivery brings them back.

A row is written before anything is taken away, and completed when readers see tables without the client. Publications
before that one show the client, so nobody reads them any more, and their files go when upkeep removes old ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.lake.schemas import CLIENT, ERASURES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.lake.history import Author
    from ledgerlm.lake.lake import Lake

_PAYLOADS: Mapping[str, tuple[str, ...]] = {"quarantine": ("detail", "payload")}
"""Table without a column of clients -> its texts in which their ids may stand."""


def digest(client: Column) -> Column:
    """What an erased client is known by: SHA-256 of the id as the lake has it, in hex."""
    return F.sha2(client, 256)


def erased(lake: Lake) -> DataFrame | None:
    """digest: of all who were erased; None where nobody was."""
    return lake.read(ERASURES.name).select("digest") if lake.exists(ERASURES.name) else None


def unseen_before(lake: Lake) -> int:
    """The publication before which none may be read, since it shows a client who was erased; 0 where all may be."""
    if not lake.exists(ERASURES.name):
        return 0
    row = lake.read(ERASURES.name).agg(F.max("publication").alias("publication")).first()
    return 0 if row is None or row["publication"] is None else int(row["publication"])


def tables_of_clients(lake: Lake) -> list[str]:
    """Tables that are there and have rows of clients."""
    return [name for name, table in TABLES.items() if CLIENT in table.columns and lake.exists(name)]


def counted(lake: Lake, clients: DataFrame) -> dict[str, int]:
    """Table -> its rows of some clients; tables without any are left out.

    Args:
        lake: its tables.
        clients: client_id; few, and kept.
    """
    found = {
        name: lake.read(name).join(F.broadcast(clients), "client_id", how="left_semi").count()
        for name in tables_of_clients(lake)
    }
    return {name: count for name, count in found.items() if count}


def take_away(lake: Lake, table: str, clients: DataFrame, *, by: Author) -> None:
    """Takes all rows of some clients out of a table; stages that wrote it stand on.

    Args:
        lake: its tables.
        table: one of `tables_of_clients`.
        clients: client_id.
        by: who does so.
    """
    lake.prune(table, clients, by=by, key=("client_id",))


def empty_payloads(lake: Lake, patterns: Sequence[str], *, by: Author) -> None:
    """Empties what was set aside as it came, where an id stands in it; the row stays, with its reason.

    Args:
        lake: its tables.
        patterns: regular expressions of the ids.
        by: who does so.
    """
    for table, columns in _PAYLOADS.items():
        if lake.exists(table):
            lake.blank(table, columns, patterns, by=by)
