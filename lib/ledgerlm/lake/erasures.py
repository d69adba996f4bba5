"""Clients who were erased: known by a hash of their id alone, so that no delivery brings them back.

A row is written before anything is taken away, and completed when readers see tables without the client. Publications
before that one show the client, so nobody reads them any more, and their files go when upkeep removes old ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.lake.schemas import CLIENT, ERASURES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.lake.history import Author
    from ledgerlm.lake.lake import Lake

_INVISIBLE = "".join(one for one in map(chr, range(0x10000)) if unicodedata.category(one) == "Cf")
NEVER_SHOWN = 0
"""In place of a publication: the erasing has come to its end, and no publication shows the client."""
QUARANTINE = "quarantine"
"""The table without a column of clients in whose texts their ids may stand."""
_TEXTS = ("detail", "payload")
# Damaged bytes are kept in base64; each byte is read as a sign, which no id of plain letters minds.
_BYTES = "decode(try_to_binary(regexp_replace(substr(payload, 8), '[ \\r\\n]', ''), 'base64'), 'ISO-8859-1')"
_SEARCHED = (
    f"translate(concat_ws(' ', detail, payload, if(payload LIKE 'base64:%', {_BYTES}, NULL)), '{_INVISIBLE}', '')"
)


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


def named_aside(lake: Lake, patterns: Sequence[str]) -> int:
    """How many rows that were set aside have a text in which a pattern matches."""
    if not lake.exists(QUARANTINE):
        return 0
    sought = lake.spark.createDataFrame([(list(patterns),)], "_patterns array<string>")
    rows = lake.read(QUARANTINE).crossJoin(F.broadcast(sought))
    return rows.where(f"exists(_patterns, one -> {_SEARCHED} RLIKE one)").count()


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


def empty_payloads(lake: Lake, patterns: Sequence[str], *, by: Author) -> None:
    """Empties what was set aside as it came, where an id stands in it; the row stays, with its reason.

    Args:
        lake: its tables.
        patterns: regular expressions of the ids.
        by: who does so.
    """
    if lake.exists(QUARANTINE):
        lake.blank(QUARANTINE, _TEXTS, _SEARCHED, patterns, by=by)
