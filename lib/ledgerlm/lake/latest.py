"""The newest published rows of each client: for Python anywhere, and as SQL views where the lake is a catalog's schema.

Both read the tables at the versions that one publication names, so a night that is being written is not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.errors import PySparkException

from ledgerlm.errors import DataError
from ledgerlm.lake.champions import champions, shown
from ledgerlm.lake.publications import published
from ledgerlm.lake.schemas import TABLES
from ledgerlm.lake.slices import literal

if TYPE_CHECKING:
    import datetime as dt

    from pyspark.sql import DataFrame

    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.publications import Publication

LATEST = ("embeddings", "features", "scores")
"""Tables of which there is a view, `TABLE_latest`."""


def latest(lake: Lake, table: str, seen: Publication | None = None) -> DataFrame:
    """The newest rows of each client in a publication; the same as the view `TABLE_latest` of a catalog.

    Args:
        lake: its tables.
        table: `scores`: those of the publication's heads as of its night, of a task with a champion those of that head
            alone (of a study, which names no heads: the newest of each client, task and head); `embeddings`,
            `features`: each client's newest vector of a kind, which serves until an event comes.
        seen: the publication; left out, the one that readers see.

    Returns:
        The table's columns and `publication` long, its number.

    Raises:
        DataError: nothing is published, the publication lacks the table, or there is no newest row of such a table.
    """
    seen = seen or published(lake)
    if table not in LATEST:
        raise DataError(f"no newest rows of table {table}: there are those of {', '.join(LATEST)}")
    if table not in seen.tables:
        raise DataError(
            f"publication {seen.number} of {seen.pipeline} has no table {table}; it has {', '.join(seen.tables)}"
        )
    return lake.spark.sql(_query(lake, seen, table))


def show_latest(lake: Lake, seen: Publication) -> list[str]:
    """Makes the views of a catalog's schema show a publication, one after the other; elsewhere there are none.

    Each view is replaced in one step, and shows one publication whole at any time. A table that the publication lacks
    has no view.

    Args:
        lake: its tables.
        seen: what readers see.

    Returns:
        Names of the views.

    Raises:
        DataError: the catalog makes no views, or lets not us.
    """
    if not lake.home.is_catalog:
        return []
    made = []
    for table in LATEST:
        view = f"{table}_latest"
        name = lake.home.identifier(view)
        about = f"publication {seen.number} of {seen.pipeline}; made by ledgerlm publish, promote and rollback"
        try:
            if table in seen.tables:
                query = _query(lake, seen, table)
                lake.spark.sql(f"CREATE OR REPLACE VIEW {name} COMMENT {literal(about)} AS {query}")
                made.append(view)
            else:
                lake.spark.sql(f"DROP VIEW IF EXISTS {name}")
        except PySparkException as error:
            raise DataError(
                f"publication {seen.number} is written, but view {name} cannot be made "
                f"({str(error).splitlines()[0]}); grant CREATE TABLE on schema {lake.home.root}, or say views: false "
                "in the publish stage, and run again"
            ) from error
    return made


def _query(lake: Lake, seen: Publication, table: str) -> str:
    version = seen.tables[table]
    names = [f"`{name}`" for name in lake.read(table, version).columns]
    columns = ", ".join([*names, f"{seen.number}L AS publication"])
    source = f"{lake.home.identifier(table)} VERSION AS OF {version}"
    night = _instant(seen.as_of)
    own = _of_champions(lake, seen, source) if table == "scores" else ""
    if table == "scores" and seen.heads:
        heads = ", ".join(literal(head) for head in seen.heads)
        return f"SELECT {columns} FROM {source} WHERE as_of = {night} AND head_id IN ({heads}){own}"
    of_one = ", ".join(name for name in TABLES[table].key if name != "as_of")
    newest = f"row_number() OVER (PARTITION BY {of_one} ORDER BY as_of DESC)"
    placed = f"SELECT {', '.join(names)}, {newest} AS _place FROM {source} WHERE as_of <= {night}{own}"
    return f"SELECT {columns} FROM ({placed}) WHERE _place = 1"


def _of_champions(lake: Lake, seen: Publication, source: str) -> str:
    """Leaves of a task with a champion that head's scores alone, unless the publication is without the champion."""
    if seen.heads:
        found = shown(champions(lake), seen.heads)
        return "".join(f" AND (task != {literal(task)} OR head_id = {literal(head)})" for task, head in found.items())
    there = f"SELECT head_id FROM {source}"  # a study names no heads
    return "".join(
        f" AND (task != {literal(task)} OR head_id = {(head := literal(one.head_id))} OR {head} NOT IN ({there}))"
        for task, one in champions(lake).items()
    )


def _instant(time: dt.datetime) -> str:
    """A literal that is the same instant whatever zone a reader's session is in."""
    return f"TIMESTAMP '{time.isoformat(sep=' ')}'"
