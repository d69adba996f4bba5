"""Where a lake stands: publications, freshness, who is at work, whose scores wait, sizes of tables."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ledgerlm.events.arrivals import event_files
from ledgerlm.events.ingesting import IngestConf
from ledgerlm.events.nightly import Taken
from ledgerlm.events.table_changes import newest_versions
from ledgerlm.lake.champions import Champion, champions
from ledgerlm.lake.leases import Holding, holding
from ledgerlm.lake.publications import Publication, publications
from ledgerlm.lake.upkeep import TableSize, sizes

if TYPE_CHECKING:
    from ledgerlm.events.files import Found
    from ledgerlm.lake.lake import Lake
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.record import Records


_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The state of a lake.

    Attributes:
        publications: newest first.
        champions: by task.
        newest_event: time of the newest event up to now; None without events.
        batch: number of the newest batch; None where files are not taken in by batches.
        taken_at: when it came.
        lease: who is at work on the lake, or was when it died; None where nobody is.
        at: when the lake was looked at, in seconds since 1970.
        waiting: stage -> clients whose changes it has not followed yet.
        stages: stage -> when it last finished; None of one that has not.
        failures: stage -> why its newest attempt did not come to its end.
        untaken: files, and newest versions of Delta tables, that were not taken in; None where the source is not taken
            in by batches.
        tables: sizes.
    """

    publications: Sequence[Publication]
    champions: Mapping[str, Champion]
    newest_event: dt.datetime | None
    batch: int | None
    taken_at: dt.datetime | None
    lease: Holding | None
    at: float
    waiting: Mapping[str, int]
    stages: Mapping[str, str | None]
    failures: Mapping[str, str]
    untaken: Sequence[str] | None
    tables: Sequence[TableSize]

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"lease": self._lease()}

    def _lease(self) -> dict[str, Any] | None:
        """The lease for programs: instants in UTC, and whether it has run out."""
        if self.lease is None:
            return None
        since, until = (dt.datetime.fromtimestamp(one, dt.UTC) for one in (self.lease.since, self.lease.until))
        return {**asdict(self.lease.holder), "since": since, "until": until, "ran_out": self.lease.ran_out(self.at)}

    def lines(self) -> list[str]:
        """For people."""
        return [*self._published(), *self._fresh(), *self._at_work(), *self._waiting(), *self._sizes()]

    def _at_work(self) -> list[str]:
        return ["nobody is at work"] if self.lease is None else [f"at work: {self.lease.said(self.at)}"]

    def _published(self) -> list[str]:
        seen = next((one for one in self.publications if one.readable), None)
        lines = ["readers see nothing yet: nothing is published"]
        if seen is not None:
            back = " (published again)" if seen.status == "rolled_back" else ""
            when = f"as of {_time(seen.as_of)}, published {_time(seen.published_at)}"
            lines = [f"readers see publication {seen.number}{back}, {when}"]
        newest = self.publications[0] if self.publications else None
        if newest is not None and newest.status == "refused":
            failed = ", ".join(name for name, one in newest.gates.items() if not one["passed"])
            lines.append(f"publication {newest.number}, as of {_time(newest.as_of)}, was refused by {failed}")
        return lines + [
            f"champion of {task}: {one.head_id}, promoted {_time(one.promoted_at)} by {one.promoted_by}: {one.reason}"
            for task, one in self.champions.items()
        ]

    def _fresh(self) -> list[str]:
        newest = "no event" if self.newest_event is None else f"newest event {_time(self.newest_event)}"
        batch = "" if self.batch is None else f"; batch {self.batch}, taken in {_time(self.taken_at)}"
        return [f"{newest}{batch}"]

    def _waiting(self) -> list[str]:
        never = [name for name, when in self.stages.items() if when is None]
        waiting = [f"{name} {count:,}" for name, count in self.waiting.items() if count]
        lines = [f"not finished: {', '.join(never)}"] if never else []
        lines += [f"  {name}: {why}" for name, why in self.failures.items()]
        lines += [f"sources that wait: {_some(self.untaken)}"] if self.untaken else []
        return [*lines, f"clients that wait: {', '.join(waiting) or 'none'}"]

    def _sizes(self) -> list[str]:
        lines = [
            f"  {one.name}: {one.bytes / 1e6:,.1f} MB in {one.files} files, version {one.version}"
            + ("; many small files" if one.fragmented else "")
            for one in self.tables
        ]
        due = any(one.fragmented for one in self.tables)
        return [*lines, "upkeep is due: ledgerlm maintain" if due else "no upkeep is due"]


def standing(pipeline: Pipeline, records: Records, lake: Lake, content: Callable[[Found], str | None]) -> Standing:
    """Looks at a lake.

    Args:
        pipeline: its pipeline.
        records: of the pipeline's stages.
        lake: its tables.
        content: hash of a file of this machine; None of one elsewhere.
    """
    known = {plan.stage.name: records.load(plan.stage.name) for plan in pipeline.plans}
    done = {name: record for name, record in known.items() if record is not None and record.done}
    batch, taken_at = _newest_batch(lake)
    reflected = {name: record.batch for name, record in done.items() if record.batch is not None}
    return Standing(
        publications=publications(lake),
        champions=champions(lake),
        newest_event=_newest_event(lake),
        batch=batch,
        taken_at=taken_at,
        lease=holding(lake),
        at=time.time(),
        waiting={name: _changed_since(lake, one) for name, one in reflected.items()},
        stages={name: done[name].finished_at if name in done else None for name in known},
        failures={name: record.failure for name, record in known.items() if record is not None and record.failure},
        untaken=_untaken(pipeline, lake, content),
        tables=sizes(lake),
    )


def _untaken(pipeline: Pipeline, lake: Lake, content: Callable[[Found], str | None]) -> list[str] | None:
    if not any(isinstance(plan.stage.conf, IngestConf) and plan.stage.conf.append for plan in pipeline.plans):
        return None
    taken = Taken.of(lake.read("batches") if lake.exists("batches") else None)
    here = event_files(lake.spark, pipeline.spec, content)
    files = [one.path for one in here if taken.files.get(one.path) != one.content]
    now = newest_versions(lake.spark, pipeline.spec)
    known = {path: one.at for path, one in taken.tables.items()}
    return [*files, *(f"{path} (version {at.version})" for path, at in now.items() if known.get(path) != at)]


def _some(files: Sequence[str]) -> str:
    shown = ", ".join(files[:_SHOWN])
    return shown if len(files) <= _SHOWN else f"{shown} and {len(files) - _SHOWN} more"


def _newest_event(lake: Lake) -> dt.datetime | None:
    from pyspark.sql import functions as F

    # What is told of the future says nothing of how fresh the data are.
    past = F.when(F.col("event_time") <= F.current_timestamp(), F.col("event_time"))
    row = lake.read("events").agg(F.max(past)).first() if lake.exists("events") else None
    return None if row is None or row[0] is None else row[0].replace(tzinfo=dt.UTC)


def _newest_batch(lake: Lake) -> tuple[int | None, dt.datetime | None]:
    from pyspark.sql import functions as F

    row = None
    if lake.exists("batches"):
        row = lake.read("batches").agg(F.max("batch"), F.max("taken_at")).first()
    return (None, None) if row is None or row[0] is None else (row[0], row[1].replace(tzinfo=dt.UTC))


def _changed_since(lake: Lake, batch: int) -> int:
    from pyspark.sql import functions as F

    if not lake.exists("changes"):
        return 0
    return lake.read("changes").where(F.col("batch") > batch).select("client_id").distinct().count()


def _time(value: dt.datetime | None) -> str:
    return "never" if value is None else value.isoformat(sep=" ", timespec="seconds")
