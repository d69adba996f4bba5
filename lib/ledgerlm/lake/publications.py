"""Publications: the tables that readers see together, named by one row at the versions that belong together.

A night writes one table after the other, so the newest versions are a mixture until it has ended. Readers go through
the newest publication: they see all of a night, or all of the one before.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.erasures import unseen_before
from ledgerlm.lake.schemas import CHAMPIONS, ERASURES, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.lake.lake import Lake

PUBLICATIONS = "publications"
PUBLISHED = tuple(name for name in TABLES if name not in (PUBLICATIONS, ERASURES.name, CHAMPIONS.name))
"""Tables that a publication may name."""
Status = Literal["published", "refused", "rolled_back"]
_SCHEMA = (
    "publication long, published_at timestamp, pipeline string, as_of timestamp, tables map<string,long>, "
    "heads array<string>, gates string, status string"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """One row of `publications`.

    Attributes:
        number: counts from 1.
        published_at: when.
        pipeline: whose it is.
        as_of: the time as of which everybody is scored.
        tables: table -> its version.
        heads: ids of the heads whose scores it has.
        gates: gate -> its figures, and whether they passed.
        status: `published`; `refused` by a gate, so that readers stay with the one before; or `rolled_back`: published
            again after it.
        withdrawn: it shows clients who were erased since.
    """

    number: int
    published_at: dt.datetime
    pipeline: str
    as_of: dt.datetime
    tables: Mapping[str, int]
    heads: Sequence[str] = ()
    gates: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "published"
    withdrawn: bool = False

    @property
    def readable(self) -> bool:
        """Whether readers may see it."""
        return self.status != "refused" and not self.withdrawn

    def read(self, lake: Lake, table: str) -> DataFrame:
        """A table as this publication has it.

        Raises:
            DataError: it has no such table, or its files were removed since.
        """
        if table not in self.tables:
            raise DataError(
                f"publication {self.number} of {self.pipeline} has no table {table}; it has {', '.join(self.tables)}"
            )
        return lake.read(table, self.tables[table])

    def row(self, spark: SparkSession) -> DataFrame:
        """The row, as the table has it."""
        values = (
            self.number,
            self.published_at,
            self.pipeline,
            self.as_of,
            dict(self.tables),
            list(self.heads),
            json.dumps(self.gates, sort_keys=True),
            self.status,
        )
        return spark.createDataFrame([values], _SCHEMA)

    def again(self, number: int, now: dt.datetime) -> Publication:
        """The same tables, published anew under a new number."""
        return replace(self, number=number, published_at=now, status="rolled_back")

    def without_erased(self, number: int, now: dt.datetime, versions: Mapping[str, int]) -> Publication:
        """The same night under a new number, without the clients who were erased from it.

        Args:
            number: the new number.
            now: when.
            versions: table -> its version without them, of those that had them.
        """
        tables = {name: versions.get(name, version) for name, version in self.tables.items()}
        return replace(self, number=number, published_at=now, status="published", tables=tables)


def publications(lake: Lake, version: int | None = None) -> list[Publication]:
    """All publications of a lake, newest first; they are as many as nights that are kept.

    Args:
        lake: its tables.
        version: of the table of publications; left out, its newest.
    """
    if not lake.exists(PUBLICATIONS):
        return []
    rows = lake.read(PUBLICATIONS, version).drop("run_id").orderBy("publication", ascending=False).collect()
    first = unseen_before(lake)
    return [
        Publication(
            number=row["publication"],
            published_at=_in_utc(row["published_at"]),
            pipeline=row["pipeline"],
            as_of=_in_utc(row["as_of"]),
            tables=dict(row["tables"]),
            heads=tuple(row["heads"]),
            gates=json.loads(row["gates"]),
            status=row["status"],
            withdrawn=row["publication"] < first,
        )
        for row in rows
    ]


def published(lake: Lake, number: int | None = None) -> Publication:
    """What readers see: the newest publication that no gate refused, or the one of a number.

    Raises:
        DataError: there is none.
    """
    known = publications(lake)
    seen = [one for one in known if one.readable and number in (None, one.number)]
    if not seen:
        if any(one.withdrawn and one.number == number for one in known):
            raise DataError(f"publication {number} shows clients who were erased since, so nobody reads it any more")
        listed = ", ".join(str(one.number) for one in known if one.readable) or "none"
        wanted = "no publication" if number is None else f"no publication {number}"
        raise DataError(f"{wanted} at {lake.home.root}; there is {listed}: run `ledgerlm rescore` first")
    return seen[0]


def shown_before(lake: Lake, number: int) -> int:
    """The publication before the one that a number shows: where that one was rolled back to, before its first.

    So each call goes one further back, and none forward to what was withdrawn.

    Raises:
        DataError: there is none before it.
    """
    known = publications(lake)
    now = next(one for one in known if one.number == number)
    first = min((one.number for one in known if one.tables == now.tables and one.status != "refused"), default=number)
    seen = [one.number for one in known if one.status == "published" and one.readable and one.number < first]
    if not seen:
        hidden = any(one.withdrawn for one in known)
        why = f"those before publication {first} show clients who were erased since"
        raise DataError(f"{why if hidden else f'publication {first} is the first'}; there is none to go back to")
    return seen[0]


def refuse_past(lake: Lake, night: dt.datetime) -> None:
    """Readers do not go back in time by an oversight.

    Args:
        lake: tables of the pipeline.
        night: the time as of which everybody is to be scored.

    Raises:
        ConfigError: what readers see is later.
    """
    seen = next((one for one in publications(lake) if one.readable), None)
    if seen is not None and night < seen.as_of:
        raise ConfigError(
            f"--as-of {night.isoformat(sep=' ')} lies before {seen.as_of.isoformat(sep=' ')}, as of which publication "
            f"{seen.number} has been read; give a later time, or go back with `ledgerlm rollback` first"
        )


def versions(lake: Lake) -> dict[str, int]:
    """Table -> newest version, of all tables that are there."""
    found = {name: lake.history.newest(name) for name in PUBLISHED}
    return {name: commit.version for name, commit in found.items() if commit is not None}


def _in_utc(value: dt.datetime) -> dt.datetime:
    # Spark hands instants over in the session's zone, which is UTC, and without saying so.
    return value.replace(tzinfo=dt.UTC)
