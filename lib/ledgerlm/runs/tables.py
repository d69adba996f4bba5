"""The tables as a stage sees them: what the stages before it wrote, at pinned versions; and its own writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledgerlm.errors import DataError
from ledgerlm.lake.history import Author, History, State
from ledgerlm.lake.lake import Lake, Written
from ledgerlm.lake.slices import WHOLE, Slice, predicate
from ledgerlm.runs.plan import StagePlan
from ledgerlm.runs.record import StageRecord, TableRecord

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SPLITS = "splits"


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The part of a table that a stage sees.

    Attributes:
        slices: what the stages before it wrote of it, in their order; None where no stage of the pipeline writes the
            table, so that all of it is seen.
    """

    slices: tuple[Slice, ...] | None

    def states(self, history: History, table: str, known: Sequence[State | None] = ()) -> tuple[State | None, ...]:
        """The newest commit of each slice."""
        parts = (WHOLE,) if self.slices is None else self.slices
        before = [*known, *([None] * len(parts))]
        return tuple(history.state(table, part, before[place]) for place, part in enumerate(parts))

    def of(self, frame: DataFrame) -> DataFrame:
        """The rows of the view."""
        if self.slices is None or WHOLE in self.slices:
            return frame
        return frame.where(" OR ".join(f"({predicate(part)})" for part in self.slices))


def views(plan: StagePlan, before: Sequence[tuple[StagePlan, StageRecord | None]]) -> dict[str, View]:
    """What a stage sees of each table that it may read.

    Args:
        plan: the stage's.
        before: the stages before it, each with its record, if it has one.

    A stage that is planned to write a table and has no finished record says nothing of its rows, so all of the table
    is seen: a single job may run on a lake whose records are elsewhere.
    """
    found: dict[str, View] = {}
    for name in [*(read.table for read in plan.reads), SPLITS]:
        writers = [record for one, record in before if any(w.table == name for w in one.writes)]
        known = all(record is not None and record.done for record in writers)
        slices = [r.tables[name].slice for r in writers if r is not None and name in r.tables] if known else []
        found[name] = View(slices=tuple(slices) if slices else None)
    return found


class Tables:
    """Reads and writes of one attempt of a stage.

    Args:
        lake: gives the lake; it starts Spark.
        history: commits, which on this machine are read without Spark.
        plan: what the stage declared.
        seen: what it sees of each table.
        author: identity of the attempt.
        consumed: told each table as it is first read, with the states of what is seen of it.
        guard: called before each write; it raises where this run may write no more.
        failpoint: called after each write.
    """

    def __init__(
        self,
        *,
        lake: Callable[[], Lake],
        history: History,
        plan: StagePlan,
        seen: Mapping[str, View],
        author: Author,
        consumed: Callable[[str, Sequence[State | None]], None],
        guard: Callable[[], None],
        failpoint: Callable[[str], None],
    ) -> None:
        self._lake, self._history = lake, history
        self._plan, self._seen, self._author = plan, seen, author
        self._consumed, self._guard, self._failpoint = consumed, guard, failpoint
        self._pins: dict[str, int | None] = {}
        self.written: dict[str, TableRecord] = {}

    @property
    def lake(self) -> Lake:
        """The lake."""
        return self._lake()

    def maybe(self, table: str) -> DataFrame | None:
        """A table as the stages before left it, or None when it is not there."""
        version = self.pin(table)
        if version is None:
            return None
        rows = self._seen[table].of(self._lake().read(table, version))
        return self._with_split(rows) if table == "clients" else rows

    def read(self, table: str) -> DataFrame:
        """A table as the stages before left it.

        Raises:
            DataError: when it is not there, naming what writes it.
        """
        found = self.maybe(table)
        if found is None:
            raise DataError(
                f"stage {self._plan.stage.name}: no table {table} at {self._lake().path(table)}; run the stage that "
                "writes it first"
            )
        return found

    def own(self, table: str) -> DataFrame:
        """The rows that this attempt has written of a table."""
        record = self.written[table]
        return View(slices=(record.slice,)).of(self._lake().read(table, record.version))

    def standing(self, table: str, part: Slice) -> DataFrame | None:
        """Rows of a slice that this stage is about to replace, as earlier attempts left them; None without any.

        They are no input of the stage: it takes from them what it would make again, and makes what is not there.
        """
        self._declared(table)
        newest = self._history.newest(table)
        return None if newest is None else View(slices=(part,)).of(self._lake().read(table, newest.version))

    def before(self, table: str) -> DataFrame | None:
        """All rows of a table as they were before this attempt wrote of it; None where there were none.

        What the stage makes of them is then the same when it goes on after a kill, whatever it had written before it.
        """
        version = self.version_before(table)
        return None if version is None else self._lake().read(table, version)

    def version_before(self, table: str) -> int | None:
        """The version of a table before this attempt wrote of it; None where there was none."""
        self._declared(table)
        commit = self._history.before(table, self._author.attempt)
        return None if commit is None else commit.version

    def write(self, table: str, frame: DataFrame, part: Slice = WHOLE) -> Written:
        """Replaces a table, or a slice of it, in one commit; what this attempt has written is not written again."""
        self._declared(table)
        self._guard()
        written = self._lake().write(table, frame, by=self._author, part=part)
        self.written[table] = TableRecord(version=written.version, rows=written.rows, slice=part, state=written.state)
        self._failpoint(f"after_{table}")
        return written

    def apply(self, table: str, differences: DataFrame, part: Slice = WHOLE) -> Written:
        """Applies differences to a table, or a slice of it, in one commit, which this attempt does not repeat."""
        self._declared(table)
        self._guard()
        written = self._lake().apply(table, differences, by=self._author, part=part)
        self.written[table] = TableRecord(version=written.version, rows=written.rows, slice=part, state=written.state)
        self._failpoint(f"after_{table}")
        return written

    def check_lease(self) -> None:
        """To be called before something else than a table is written; raises where this run may write no more."""
        self._guard()

    def _declared(self, table: str) -> None:
        if table not in {write.table for write in self._plan.writes} | {"quarantine"}:
            raise DataError(f"job {self._plan.stage.job.name} writes table {table} without declaring it")

    def holds_own_rows(self, table: str, part: Slice) -> bool:
        """Whether anybody has written the slice before."""
        return self._history.state(table, part) is not None

    def pin(self, table: str) -> int | None:
        """The version that this stage reads of a table, the same one each time."""
        if table not in self._seen:
            raise DataError(f"job {self._plan.stage.job.name} reads table {table} without declaring it")
        if table not in self._pins:
            newest = self._history.newest(table)
            self._pins[table] = None if newest is None else newest.version
            self._consumed(table, self._seen[table].states(self._history, table))
        return self._pins[table]

    def _with_split(self, clients: DataFrame) -> DataFrame:
        """The clients with the split of the newest split stage before this one, in place of the data set's own."""
        slices = self._seen[SPLITS].slices
        version = None if slices is None else self.pin(SPLITS)
        if slices is None or version is None:
            return clients
        splits = View(slices=slices[-1:]).of(self._lake().read(SPLITS, version)).select("client_id", "split")
        return clients.drop("split").join(splits, on="client_id", how="inner").select(*clients.columns)
