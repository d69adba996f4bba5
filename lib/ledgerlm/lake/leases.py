"""One run at a time on a lake, across machines: a lease that lies in the lake itself, and runs out with its holder.

It is a row of the table `leases`, taken, renewed and given back by single statements, of which Delta lets one win: who
holds it is then read back. Every instant is one of the machine that writes it, so clocks must agree to within a
part of the lease.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ledgerlm.errors import DataError, InUseError
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.schemas import LEASES
from ledgerlm.lake.slices import literal
from ledgerlm.lake.upkeep import remove_old

HOURS_KEPT = 24
"""Hours of the table's history: each renewal is a commit, and nobody asks for an old one."""
_LAKE = "lake"  # what is leased: all of it, since a publication names the versions of all tables
_LOG = {
    "delta.isolationLevel": "Serializable",
    "delta.logRetentionDuration": f"interval {HOURS_KEPT} hours",
    "delta.deletedFileRetentionDuration": f"interval {HOURS_KEPT} hours",
    "delta.checkpointInterval": "10",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a lease.

    Attributes:
        pipeline: whose run it is.
        run_id: the run; never given twice.
        host: its machine.
        process: its process.
        folder: identity of the pipeline's folder, whose own lock the run holds; empty where it holds none.
    """

    pipeline: str
    run_id: str
    host: str = field(default_factory=platform.node)
    process: int = field(default_factory=os.getpid)
    folder: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A lease as it stands in the table.

    Attributes:
        holder: whose it is.
        since: when it was taken, in seconds since 1970.
        until: when it runs out, unless it is renewed.
    """

    holder: Holder
    since: float
    until: float

    def said(self, now: float | None = None) -> str:
        """Who, since when, until when.

        Args:
            now: seconds since 1970, to say whether it has run out by then.
        """
        one = self.holder
        whose = f"run {one.run_id} of pipeline {one.pipeline} on {one.host} (process {one.process})"
        if now is not None and self.ran_out(now):
            return (
                f"{whose} since {_text(self.since)}; its lease ran out at {_text(self.until)}, so it has died, or "
                "cannot reach the lake: the next run takes the lake over"
            )
        return f"{whose} since {_text(self.since)}, until {_text(self.until)} unless it is renewed"

    def ran_out(self, now: float) -> bool:
        """Whether it has run out, so that another run may take it.

        Args:
            now: seconds since 1970.
        """
        return self.until < now


class Lease:
    """The lease of a lake, as one run sees it.

    Args:
        lake: what is leased.
        holder: the run.
        seconds: for how long it is taken each time.
        clock: gives the seconds since 1970.
    """

    def __init__(self, lake: Lake, holder: Holder, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._lake, self._holder, self._seconds, self._clock = lake, holder, seconds, clock
        self._table = lake.home.identifier(LEASES.name)
        self._renewing = threading.Lock()
        self._renewed = 0.0
        self._lost = ""

    def take(self) -> None:
        """Takes it: where nobody has it, where it has run out, or where its holder is known to be dead.

        Raises:
            InUseError: another run has it.
        """
        self._table_there()
        now = self._clock()
        there = self._read()
        if there is None or self._free(there, now):
            self._won(self._merge(now))
            there = self._read()
        if there is None or there.holder.run_id != self._holder.run_id:
            by = there.said() if there is not None else "a run that has just ended"
            raise InUseError(
                f"{self._lake.home.root} is in use by {by}; wait for it: one run at a time works on a lake, and a run "
                "that was killed on another machine holds it until then"
            )
        self._renewed = now

    def _table_there(self) -> None:
        try:
            if self._lake.history.newest(LEASES.name) is None:
                self._lake.create(LEASES, _LOG)
        except Exception:  # another run has made it at the same time; of what type that is Delta does not say
            if self._lake.history.newest(LEASES.name) is None:
                raise

    def renew(self) -> None:
        """Takes it for as long again; where it is another's by now, `check` says so from then on."""
        with self._renewing:
            now = self._clock()
            until = f"UPDATE {self._table} SET `until` = {_instant(now + self._seconds)} WHERE {self._mine()}"
            if self._won(until):
                self._renewed = now
                return
            there = self._read()
            if there is None or there.holder.run_id != self._holder.run_id:
                self._lost = f"lost to {there.said()}" if there is not None else "taken away"

    def check(self) -> None:
        """Asserts that the lease is this run's; to be called before anything is written.

        Raises:
            DataError: it is another's, since this run could not renew it in time.
        """
        # A process that slept, or could not reach the lake, looks itself before it goes on.
        if not self._lost and self._clock() > self._renewed + self._seconds / 2:
            self.renew()
        if self._lost:
            raise DataError(
                f"the lease of {self._lake.home.root} was {self._lost}, since this run had not renewed it in time "
                f"(lease_minutes: {self._seconds / 60:g}); it writes nothing more: run it again when the other is done"
            )

    def give_back(self) -> None:
        """Lets others have it."""
        self._won(f"DELETE FROM {self._table} WHERE {self._mine()}")

    def _free(self, there: Holding, now: float) -> bool:
        """Whether a lease may be taken over.

        A run of the same folder is dead, whose own lock this run holds; of any other only the lease can tell.
        """
        mine = self._holder
        dead = bool(mine.folder) and (there.holder.folder, there.holder.host) == (mine.folder, mine.host)
        return there.ran_out(now) or dead

    def _merge(self, now: float) -> str:
        mine = self._holder
        values = {
            "lease": literal(_LAKE),
            "pipeline": literal(mine.pipeline),
            "host": literal(mine.host),
            "process": f"{mine.process}L",
            "folder": literal(mine.folder),
            "since": _instant(now),
            "until": _instant(now + self._seconds),
            "run_id": literal(mine.run_id),
        }
        row = ", ".join(f"{value} AS `{name}`" for name, value in values.items())
        dead = f" OR (t.folder = {literal(mine.folder)} AND t.host = {literal(mine.host)})" if mine.folder else ""
        return (
            f"MERGE INTO {self._table} t USING (SELECT {row}) s ON t.lease = s.lease "
            f"WHEN MATCHED AND (t.`until` < {_instant(now)}{dead}) THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )

    def _won(self, statement: str) -> bool:
        """Whether a statement changed the row; not where another's came first."""
        try:
            done = self._lake.spark.sql(statement).first()
        except Exception as error:  # Python has no type for Delta's conflicts unless Delta's package is loaded
            if "DELTA_CONCURRENT" not in str(error):
                raise
            return False
        return done is not None and done["num_affected_rows"] > 0

    def _mine(self) -> str:
        return f"lease = {literal(_LAKE)} AND run_id = {literal(self._holder.run_id)}"

    def _read(self) -> Holding | None:
        return _holding(self._lake)


def holding(lake: Lake) -> Holding | None:
    """The lease of a lake as it stands, whether or not it has run out; None where nobody has it."""
    return None if lake.history.newest(LEASES.name) is None else _holding(lake)


def _holding(lake: Lake) -> Holding | None:
    row = lake.spark.sql(
        f"SELECT *, unix_micros(since) AS _since, unix_micros(`until`) AS _until "
        f"FROM {lake.home.identifier(LEASES.name)} WHERE lease = {literal(_LAKE)}"
    ).first()
    if row is None:
        return None
    holder = Holder(**{name: row[name] for name in ("pipeline", "run_id", "host", "process", "folder")})
    return Holding(holder=holder, since=row["_since"] / 1e6, until=row["_until"] / 1e6)


@contextmanager
def leased(lake: Lake, holder: Holder, seconds: float, clock: Callable[[], float] = time.time) -> Iterator[Lease]:
    """Holds the lease of a lake while the block works, and renews it at each third of it.

    Args:
        lake: what is leased.
        holder: who works.
        seconds: how long a run that dies keeps others out.
        clock: gives the seconds since 1970.

    Raises:
        InUseError: another run has it.
    """
    lease, over = Lease(lake, holder, seconds, clock), threading.Event()
    lease.take()
    thread = threading.Thread(target=_renewing, args=(lease, over, seconds / 3), daemon=True)
    thread.start()
    try:
        yield lease
    except BaseException:
        _ended(over, thread)
        with suppress(Exception):  # what failed may be the engine itself; then the lease runs out
            lease.give_back()
        raise
    _ended(over, thread)
    lease.give_back()


def shortened(lake: Lake) -> None:
    """Removes old files of the table of leases; its log shortens itself."""
    if lake.history.newest(LEASES.name) is not None:
        remove_old(lake, LEASES.name, HOURS_KEPT)


def _ended(over: threading.Event, thread: threading.Thread) -> None:
    over.set()
    thread.join()


def _renewing(lease: Lease, over: threading.Event, every: float) -> None:
    while not over.wait(every):
        try:
            lease.renew()
        except Exception as error:  # a lake that cannot be reached for a while; `check` decides
            logging.getLogger(__name__).warning("the lease of the lake could not be renewed: %s", error)


def _instant(seconds: float) -> str:
    return f"timestamp_micros({round(seconds * 1e6)}L)"


def _text(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
