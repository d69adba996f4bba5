"""Upkeep of a pipeline's lake between nights: rows of past nights go, small files are put together, old ones removed.

All but removal holds the lake's lease, since it touches what a night may be about to change. Removal needs none: what
it removes was taken out of its table a week ago or more, and what a run is writing at the time is younger.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.engines.frames import settled, small_frame
from ledgerlm.lake.history import Author
from ledgerlm.lake.leases import Holder, leased, shortened
from ledgerlm.lake.pruning import KINDS, Needed, gone_states, past_scores, past_vectors
from ledgerlm.lake.publications import Publication
from ledgerlm.lake.schemas import TABLES
from ledgerlm.lake.slices import WHOLE, Slice, predicate
from ledgerlm.lake.upkeep import compact, hours_kept, keep_log, kept, log_days_needed, remove_old, sizes
from ledgerlm.runs.tables import View
from ledgerlm.text.windows import ToldWindows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.upkeep import TableSize
    from ledgerlm.progress import Progress
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.record import Records, StageRecord

_PRUNED = ("embeddings", "features", "scores", "states")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """Rows of one slice for which nobody asks any more.

    Attributes:
        table: it.
        part: the slice.
        rows: the key columns of the rows; kept.
        count: how many.
        versions: table -> the version that was looked at.
    """

    table: str
    part: Slice
    rows: DataFrame
    count: int
    versions: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Maintained:
    """What upkeep did, or would do.

    Attributes:
        stay: publications that stay readable.
        hours: of history that stay for them.
        pruned: table -> rows taken away.
        before: sizes before.
        after: table -> its size after; empty where nothing was done.
    """

    stay: Sequence[Publication]
    hours: int
    pruned: Mapping[str, int]
    before: Sequence[TableSize]
    after: Mapping[str, TableSize]

    def lines(self) -> list[str]:
        """For people."""
        done = bool(self.after)
        lines = [
            f"  {name}: {count:,} rows of past nights or settings {'taken away' if done else 'to take away'}"
            for name, count in self.pruned.items()
        ]
        for table in self.before:
            now = self.after.get(table.name)
            if now is not None and now.files != table.files:
                lines.append(f"  {table.name}: {table.files} files to {now.files}")
            if not done and table.fragmented:
                lines.append(f"  {table.name}: {table.files} small files to put together")
        numbers = ", ".join(str(one.number) for one in self.stay) or "none"
        return [*lines, f"{len(self.before)} tables; publications that stay readable: {numbers} ({self.hours} hours)"]


def maintained(
    pipeline: Pipeline,
    records: Records,
    lake: Lake,
    *,
    most: int,
    days: int,
    keep: Keep,
    progress: Progress,
    prune: bool = True,
    dry_run: bool = False,
) -> Maintained:
    """Takes rows of past nights away, compacts fragmented tables, and removes old files.

    Logs are told to stay as long as the oldest publication that stays readable, without which its files were no use.

    Args:
        pipeline: whose stages' rows are pruned; those of other pipelines on the lake stay.
        records: of its stages.
        lake: its tables.
        most: newest publications that stay readable.
        days: and all publications of so many days.
        keep: computes a frame once.
        progress: what the user sees.
        prune: false: all rows stay.
        dry_run: say what would be done.

    Raises:
        ConfigError: there is something to prune or to compact, and a run is at work on the lake.
    """
    stay, found = kept(lake, most, days), sizes(lake)
    hours = hours_kept(stay)

    def look() -> list[Gone]:
        return past_rows(pipeline, records, lake, stay, keep) if prune else []

    gone = look()
    small = [table.name for table in found if table.fragmented]
    days_of_log = log_days_needed(hours)
    short = [table.name for table in found if table.log_days < days_of_log]
    if not dry_run:
        with progress.task("Upkeep of tables", total=len(short) + len(gone) + len(small) + len(found)) as bar:
            if small or gone or short:
                run_id = f"maintain-{uuid.uuid4().hex[:12]}"
                by = Author(attempt=uuid.uuid4().hex, stage=f"{pipeline.name}/maintain", run_id=run_id)
                holder = Holder(pipeline=pipeline.name, run_id=run_id)
                with leased(lake, holder, pipeline.conf.lease_minutes * 60) as lease:
                    gone = _still(gone, lake, look)
                    for work in [
                        *(partial(keep_log, lake, name, days_of_log) for name in short),
                        *(partial(lake.prune, one.table, one.rows, by=by, part=one.part) for one in gone),
                        *(partial(compact, lake, name) for name in small),
                    ]:
                        lease.check()
                        work()
                        bar.advance()
            for table in found:
                remove_old(lake, table.name, hours)
                bar.advance()
            shortened(lake)
    pruned: dict[str, int] = {}
    for one in gone:
        pruned[one.table] = pruned.get(one.table, 0) + one.count
    after = {} if dry_run else {table.name: table for table in sizes(lake)}
    return Maintained(stay=stay, hours=hours, pruned=pruned, before=found, after=after)


def past_rows(pipeline: Pipeline, records: Records, lake: Lake, stay: Sequence[Publication], keep: Keep) -> list[Gone]:
    """The rows that stages of a pipeline wrote on past nights, and that nobody asks for any more.

    Args:
        pipeline: its stages.
        records: of them.
        lake: its tables.
        stay: publications that stay readable, the newest first.
        keep: computes a frame once.

    Returns:
        Of `embeddings`, `features`, `scores` and `states`, slice by slice, where there are any, and those that
        `retired` tells; none without a publication, since then no night has ended.
    """
    if not stay:
        return []
    finished = [records.finished(plan.stage.name) for plan in pipeline.plans if _nightly(plan.stage.job.name)]
    done = [record for record in finished if record is not None]
    nights = sorted({one.as_of for one in stay})
    needed = Needed(nights=nights, seen=stay[0].as_of, asked=settled(_asked(lake, done), keep))
    versions = {name: _version(lake, name) for name in (*_PRUNED, "windows", "labels")}
    found = []
    for record in done:
        for table, part in _slices(record).items():
            rows = settled(_past(table, View(slices=(part,)).of(lake.read(table)), lake, needed), keep)
            count = rows.count()
            if count:
                found.append(Gone(table=table, part=part, rows=rows, count=count, versions=versions))
    for table in _PRUNED:
        if (left := retired(pipeline, records, lake, table)) is not None:
            rows = settled(left.select(*TABLES[table].key), keep)
            if count := rows.count():
                found.append(Gone(table=table, part=WHOLE, rows=rows, count=count, versions=versions))
    return found


def retired(pipeline: Pipeline, records: Records, lake: Lake, table: str) -> DataFrame | None:
    """The rows that runs of a pipeline left under settings that its stages have no longer: another backbone or head.

    Args:
        pipeline: its stages.
        records: of them.
        lake: its tables.
        table: one of those that are pruned.

    Returns:
        None where there is no such table, or a stage that writes it has not come to its end, so that nobody knows what
        it will go on with.
    """
    writers = [plan for plan in pipeline.plans if any(one.table == table for one in plan.writes)]
    newest = [records.load(plan.stage.name) for plan in writers]
    done = [record for record in newest if record is not None and record.done]
    # What an attempt that was killed has written, under whatever settings, it will not write again.
    if not writers or len(done) < len(writers) or not lake.exists(table):
        return None
    own = [(one,) for one in records.run_ids()]
    rows = lake.read(table).join(F.broadcast(small_frame(lake.spark, own, "run_id string")), "run_id", how="left_semi")
    for record in done:
        if table in record.tables:
            part = {name: values for name, values in record.tables[table].slice.items() if name != "as_of"}
            rows = rows.where(f"NOT ({predicate(part)})") if part else rows.limit(0)
    return rows


def _nightly(job: str) -> bool:
    return job in ("serialize", "embed", "aggregate", "score")


def _slices(record: StageRecord) -> dict[str, Slice]:
    """The parts of tables in which a stage's rows of past nights lie."""
    found: dict[str, Slice] = {}
    for table, one in record.tables.items():
        # What a stage replaces whole holds no past night.
        if table in KINDS or table == "states":
            found[table] = one.slice
        if table == "scores" and "as_of" in one.slice:
            found[table] = {name: values for name, values in one.slice.items() if name != "as_of"}
    return found


def _past(table: str, rows: DataFrame, lake: Lake, needed: Needed) -> DataFrame:
    if table == "states":
        return gone_states(rows, lake.read("windows"))
    if table == "scores":
        return past_scores(rows, needed)
    return past_vectors(rows, KINDS[table], needed)


def _asked(lake: Lake, records: Sequence[StageRecord]) -> DataFrame:
    """The times that are asked of clients, whatever night it is."""
    clients = lake.read("clients")
    labels = lake.read("labels") if lake.exists("labels") else None
    found = clients.selectExpr("client_id", "CAST(NULL AS TIMESTAMP) AS as_of").limit(0)
    if labels is not None:
        found = found.unionByName(labels.select("client_id", "as_of"))
    for record in records:
        if "windowing" in record.facts:
            found = found.unionByName(ToldWindows.of(record.facts, record.name).asked(clients, labels))
    return found.distinct()


def _version(lake: Lake, table: str) -> int | None:
    newest = lake.history.newest(table)
    return None if newest is None else newest.version


def _still(gone: list[Gone], lake: Lake, look: Callable[[], list[Gone]]) -> list[Gone]:
    """What was found, looked for again where a night has ended since."""
    same = all(_version(lake, name) == version for one in gone for name, version in one.versions.items())
    return gone if same else look()
