"""Clients who were erased: known by a hash of their id alone, so that no delivery brings them back.

A row is written before anything is taken away, and completed when readers see tables without the client. Publications
before that one show the client, so nobody reads them any more, and their files go when upkeep removes old ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.lake.schemas import CLIENT, ERASURES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.lake.history import Author
    from ledgerlm.lake.lake import Lake

NEVER_SHOWN = 0
"""In place of a publication: the erasing has come to its end, and no publication shows the client."""


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


def unfinished(lake: Lake, clients: DataFrame) -> bool:
    """Whether erasing one of the clients was begun and has not come to its end."""
    if not lake.exists(ERASURES.name):
        return False
    begun = lake.read(ERASURES.name).where("publication IS NULL").select("digest")
    wanted = clients.select(digest(F.col("client_id")).alias("digest"))
    return not wanted.join(begun, "digest", how="left_semi").isEmpty()


def take_away(lake: Lake, table: str, clients: DataFrame, *, by: Author) -> None:
    """Takes all rows of some clients out of a table; stages that wrote it stand on.

    Args:
        lake: its tables.
        table: one of `tables_of_clients`.
        clients: client_id.
        by: who does so.
    """
    lake.prune(table, clients, by=by, key=("client_id",))
