"""Who wrote what: the commits of a table, newest first, each with the attempt that made it.

Every commit of ledgerlm carries a signature in its `userMetadata`. It is what a stage is judged by: its rows stand
while the newest commit that touched its slice is its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.errors import DataError
from ledgerlm.lake.home import Home
from ledgerlm.lake.slices import WHOLE, Slice, overlap

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Operations that move, describe or forget files and change no row.
_NEUTRAL = frozenset(
    {
        "OPTIMIZE",
        "REORG",
        "VACUUM START",
        "VACUUM END",
        "CLUSTER BY",
        "SET TBLPROPERTIES",
        "UNSET TBLPROPERTIES",
        "ADD CONSTRAINT",
        "DROP CONSTRAINT",
        "ADD COLUMNS",
        "CREATE TABLE",
        "UPGRADE PROTOCOL",
        "ADD FEATURE",
        "COMPUTE STATS",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """Who makes a commit.

    Attributes:
        attempt: identity of one attempt of a stage; never given twice.
        stage: PIPELINE/STAGE.
        run_id: run that does the work.
        key: what identifies the key under which clients have pseudonyms; empty where it makes none.
    """

    attempt: str
    stage: str
    run_id: str
    key: str = ""

    def signature(self, part: Slice, *, applied: bool = False, pruned: bool = False) -> str:
        """The text for `userMetadata`.

        Args:
            part: the slice that is written.
            applied: differences are applied to the slice, which is not replaced.
            pruned: rows are taken away that nobody asks for any more.
        """
        kind = {name: True for name, given in (("applied", applied), ("pruned", pruned)) if given}
        mine = {name: value for name, value in asdict(self).items() if value or name != "key"}
        return json.dumps({"ledgerlm": mine | {"slice": {name: list(part[name]) for name in part}} | kind})


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a slice of a table held when it was looked at: the newest commit that touched it."""

    version: int
    attempt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One commit of a table.

    Attributes:
        version: Delta version.
        attempt: attempt that made it; empty where it was not ledgerlm.
        stage: PIPELINE/STAGE of the attempt.
        slice: rows that it may have changed; the whole table where it was not ledgerlm.
        neutral: it changed no row that anybody asks for.
        rows: rows that it wrote.
        applied: it changed rows of the slice, and left the others as they were.
        pruned: it took rows away that nobody asks for any more.
        key: as in `Author`.
    """

    version: int
    attempt: str = ""
    stage: str = ""
    slice: Slice
    neutral: bool = False
    rows: int = 0
    applied: bool = False
    pruned: bool = False
    key: str = ""

    @property
    def state(self) -> State:
        """What a slice holds after this commit."""
        return State(version=self.version, attempt=self.attempt)


class History:
    """Commits of the tables of a lake.

    On this machine's file system the log is read as it lies there, which needs no Spark; anywhere else Spark is asked.
    Logs keep some weeks: what was committed before is known by its absence.
    """

    def __init__(self, home: Home, session: Callable[[], SparkSession]) -> None:
        self._home = home
        self._session = session

    def commits(self, table: str) -> Iterator[Commit]:
        """Newest first; none when the table is not there."""
        folder = self._home.folder
        return _local(folder / table / "_delta_log") if folder is not None else self._asked(table)

    def newest(self, table: str) -> Commit | None:
        """The newest commit, whatever it did."""
        return next(self.commits(table), None)

    def before(self, table: str, attempt: str) -> Commit | None:
        """The newest commit before those of an attempt, whatever upkeep has done since; None where there is none."""
        found: Commit | None = None
        for commit in self.commits(table):
            if commit.attempt == attempt:
                found = None  # what upkeep did later holds rows of the attempt
                continue
            found = found or commit
            if not commit.neutral:
                break
        return found

    def state(self, table: str, part: Slice = WHOLE, known: State | None = None) -> State | None:
        """The newest commit that touched a slice.

        Args:
            part: the slice.
            known: state that was seen earlier; it holds when the log goes back beyond it no longer and nothing newer
                touched the slice.
        """
        oldest = None
        for commit in self.commits(table):
            if not commit.neutral and overlap(part, commit.slice):
                return commit.state
            oldest = commit.version
        forgotten = known is not None and oldest is not None and oldest > 0 and known.version < oldest
        return known if forgotten else None

    def by(self, table: str, attempt: str, part: Slice) -> Commit | None:
        """The commit of an attempt for exactly this slice, if nothing has touched the slice since."""
        for commit in self.commits(table):
            if commit.attempt == attempt and dict(commit.slice) == dict(part):
                return commit
            if not commit.neutral and overlap(part, commit.slice):
                return None
        return None

    def rows(self, table: str) -> int | None:
        """Rows of the table, added up from the commits whose slices it holds.

        Returns:
            None where the commits do not tell: somebody else changed rows, rows were pruned, slices overlap in part, or
            the log goes back no further.
        """
        held: list[Commit] = []
        oldest = 0
        for commit in self.commits(table):
            oldest = commit.version
            if commit.pruned:
                return None
            if commit.neutral or any(dict(commit.slice) == dict(one.slice) for one in held):
                continue
            if not commit.attempt or commit.applied or any(overlap(commit.slice, one.slice) for one in held):
                return None
            held.append(commit)
            if dict(commit.slice) == dict(WHOLE):
                oldest = 0
                break
        return sum(one.rows for one in held) if oldest == 0 else None

    def _asked(self, table: str) -> Iterator[Commit]:
        session = self._session()
        if not exists(session, self._home, table):
            return
        rows = session.sql(f"DESCRIBE HISTORY {self._home.identifier(table)}").select(
            "version", "operation", "userMetadata", "operationMetrics"
        )
        for row in rows.orderBy("version", ascending=False).toLocalIterator():
            yield _commit(row["version"], row["operation"], row["userMetadata"], row["operationMetrics"])


def exists(session: SparkSession, home: Home, table: str) -> bool:
    """Whether the table is there, asked of Spark."""
    from pyspark.errors import AnalysisException

    if home.is_catalog:
        return bool(session.catalog.tableExists(home.path(table)))
    try:
        session.sql(f"DESCRIBE DETAIL {home.identifier(table)}").select("format").first()
    except AnalysisException:
        return False
    return True


def _local(log: Path) -> Iterator[Commit]:
    files: Iterable[Path] = log.glob("*.json") if log.is_dir() else ()
    numbered = sorted(((int(file.stem), file) for file in files if file.stem.isdigit()), reverse=True)
    for version, file in numbered:
        with file.open(encoding="utf-8") as lines:
            infos = (_parsed(line, file).get("commitInfo") for line in lines if line.startswith('{"commitInfo"'))
            info: Mapping[str, Any] = next((one for one in infos if one), {})
        yield _commit(version, info.get("operation"), info.get("userMetadata"), info.get("operationMetrics"))


def _parsed(line: str, file: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{file} is damaged: {error}; restore the table from a copy, or move its folder away and run again"
        ) from error
    return found


def _commit(version: int, operation: str | None, signature: str | None, metrics: Mapping[str, Any] | None) -> Commit:
    rows = int((metrics or {}).get("numOutputRows", 0))
    try:
        signed = json.loads(signature or "{}")["ledgerlm"]
        part = {name: tuple(values) for name, values in signed["slice"].items()}
        return Commit(
            version=version,
            attempt=signed["attempt"],
            stage=signed["stage"],
            slice=part,
            rows=rows,
            neutral=signed.get("pruned", False),
            applied=signed.get("applied", False),
            pruned=signed.get("pruned", False),
            key=signed.get("key", ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's commit
        return Commit(version=version, slice=WHOLE, neutral=operation in _NEUTRAL, rows=rows)
