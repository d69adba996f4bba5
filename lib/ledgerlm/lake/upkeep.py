"""Upkeep of tables: how large they are, and what compaction and removal of old files make of them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledgerlm.lake.publications import PUBLICATIONS, Publication, publications
from ledgerlm.lake.schemas import TABLES

if TYPE_CHECKING:
    from ledgerlm.lake.lake import Lake

SMALL = 32 << 20
"""Bytes below which a file is small: reading it costs as much in opening as in content."""
_MANY = 8  # small files of a table, on average, from which compaction pays
_LOG = "delta.logRetentionDuration"
_LOG_DAYS = 30  # Delta's own
_EARLY = 7  # days before a log would be cut that it is told to stay
_LEAST_HOURS = 168  # Delta's own: a reader, or a writer of another machine, may be at work for days
_CLOCKS = dt.timedelta(hours=1)  # by which clocks of machines may differ


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSize:
    """A table as it lies there.

    Attributes:
        name: the table.
        version: newest version.
        files: of the newest version.
        bytes: of these.
        log_days: for how long its log stays, without which no old version can be read.
    """

    name: str
    version: int
    files: int
    bytes: int
    log_days: int = _LOG_DAYS

    @property
    def fragmented(self) -> bool:
        """Whether it lies in many small files."""
        return self.files >= _MANY and self.bytes / self.files < SMALL


def sizes(lake: Lake) -> list[TableSize]:
    """All tables that are there, by name."""
    found = []
    for name in sorted(TABLES):
        commit = lake.history.newest(name)
        if commit is None:
            continue
        told = lake.spark.sql(f"DESCRIBE DETAIL {lake.home.identifier(name)}")
        detail = told.select("numFiles", "sizeInBytes", "properties").first()
        assert detail is not None, "a table has a detail"
        found.append(
            TableSize(
                name=name,
                version=commit.version,
                files=detail["numFiles"],
                bytes=detail["sizeInBytes"],
                log_days=_days_of(detail["properties"]),
            )
        )
    return found


def _days_of(properties: Mapping[str, str]) -> int:
    """For how many days the log stays; of another unit than days, Delta's own number."""
    found = re.fullmatch(r"interval (\d+) days?", properties.get(_LOG, "").strip(), re.IGNORECASE)
    return int(found[1]) if found else _LOG_DAYS


def compact(lake: Lake, table: str) -> None:
    """Puts small files together; no row changes, and readers go on."""
    lake.spark.sql(f"OPTIMIZE {lake.home.identifier(table)}")


def kept(lake: Lake, most: int, days: int) -> list[Publication]:
    """The publications that stay readable: the newest ones, and all of the last days.

    Args:
        most: how many of the newest.
        days: how many days.
    """
    since = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    seen = [one for one in publications(lake) if one.readable]
    return [one for place, one in enumerate(seen) if place < most or one.published_at >= since]


def hours_kept(publications: Sequence[Publication], now: dt.datetime | None = None) -> int:
    """Hours of history that must not be removed, so that the oldest of these publications can be read."""
    oldest = min((one.published_at for one in publications), default=None)
    if oldest is None:
        return _LEAST_HOURS
    # A file that the publication reads may have been taken out of the table the moment after.
    age = (now or dt.datetime.now(dt.UTC)) - oldest + _CLOCKS
    return max(_LEAST_HOURS, -(-int(age.total_seconds()) // 3600))


def log_days_needed(hours: int) -> int:
    """For how many days logs must stay so that versions of so many hours ago can be read; in steps of a month.

    Delta cuts a log after 30 days, whatever versions are asked for. It is told a week early, and seldom.
    """
    return max(_LOG_DAYS, -(-(hours + _EARLY * 24) // (24 * _LOG_DAYS)) * _LOG_DAYS)


def keep_log(lake: Lake, table: str, days: int) -> None:
    """Lets the log of a table stay for so many days; no row changes."""
    lake.spark.sql(f"ALTER TABLE {lake.home.identifier(table)} SET TBLPROPERTIES ('{_LOG}' = 'interval {days} days')")


def remove_old(lake: Lake, table: str, hours: int) -> None:
    """Removes files that no version of the last hours reads."""
    lake.spark.sql(f"VACUUM {lake.home.identifier(table)} RETAIN {hours} HOURS")


def maintained() -> list[str]:
    """Tables that upkeep looks after: all but the publications, which are a few rows."""
    return [name for name in sorted(TABLES) if name != PUBLICATIONS]
