"""Runs the stages of a pipeline in order, skips those that stand, and leaves records behind.

A stage stands while its record is of the same definition, what it consumed is as it was, and the newest commits of
what it wrote are its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.errors import ConfigError, EngineError, LedgerError
from ledgerlm.files import is_there, pull, push, remove
from ledgerlm.lake.history import Author, History, State
from ledgerlm.lake.slices import overlap
from ledgerlm.progress import Progress
from ledgerlm.runs.context import Context
from ledgerlm.runs.engines import Engines
from ledgerlm.runs.faults import as_ledger_error
from ledgerlm.runs.given import Given, answer, origin
from ledgerlm.runs.hashes import Hashes
from ledgerlm.runs.job import Scope, StageResult
from ledgerlm.runs.keys import KEY, key_fact, refuse_other_key
from ledgerlm.runs.lock import held, identity
from ledgerlm.runs.obstacles import unequipped, untold
from ledgerlm.runs.pipeline import Pipeline
from ledgerlm.runs.plan import StagePlan
from ledgerlm.runs.record import (
    NIGHT,
    Inputs,
    Records,
    StageRecord,
    digest,
    git_commit,
    now,
    version_of,
    versions,
    write_json,
)
from ledgerlm.runs.tables import Tables, views

if TYPE_CHECKING:
    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.leases import Lease

_LONG = 3.0  # seconds of a stage of which one asks how long it will take
Before = Sequence[tuple[StagePlan, StageRecord | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A stage that stands finished after a run.

    Attributes:
        record: its completion record.
        skipped: whether this run found it finished and unchanged.
    """

    record: StageRecord
    skipped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run did, in the order of the stages."""

    run_id: str
    started_at: str
    stages: tuple[Finished, ...]


class Runner:
    """One execution of a pipeline.

    Args:
        pipeline: the checked pipeline.
        progress: what the user sees.
        night: rescore everybody as of this time, with what the stages that learn have left; None: a study, in which
            every stage is done again whose inputs are others than they were.
    """

    def __init__(self, pipeline: Pipeline, progress: Progress, night: datetime | None = None) -> None:
        self.pipeline = pipeline
        self.progress = progress
        self.night = night
        self.records = Records(pipeline.out)
        self.engines = Engines(pipeline, progress)
        self.history = History(pipeline.home, lambda: self.engines.spark)
        self.hashes = Hashes(pipeline.out / "runs" / "hashes.json", lambda: self.engines.spark)
        self._lease: Lease | None = None
        self._at_end = ExitStack()
        self.run_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S") + "-" + uuid.uuid4().hex[:6]

    def run(self, *, only: str | None = None, but: str | None = None, fresh: bool = False) -> Run:
        """Runs all stages, only those of one job, or all but those.

        Args:
            only: verb whose stages are run; the others must be finished where they are needed.
            but: verb whose stages are not run.
            fresh: do finished stages again.

        Raises:
            ConfigError: another process runs this pipeline, or another run that publishes is at work on its lake;
                nothing can be written to `out`, no stage has the verb, or the key of pseudonyms is another than it was.
            DataError: such a run took the lake over, since this one had not been heard of in time.
            EngineError: a stage that is to work imports packages that are not installed here.
        """
        with held(self.pipeline.out, self.pipeline.name), self.progress.running(), ExitStack() as at_end:
            self._at_end, self._lease = at_end, None
            self.records.fetch()
            refuse_other_key(self.pipeline, self.records, self.history)
            return self._run(self.chosen(only, but), fresh=fresh)

    def _run(self, chosen: Sequence[StagePlan], *, fresh: bool) -> Run:
        started_at = now()
        self._equipped(chosen, fresh=fresh)
        self._write_run(started_at)
        finished = [self._stage(plan, place, len(chosen), fresh) for place, plan in enumerate(chosen, 1)]
        return Run(run_id=self.run_id, started_at=started_at, stages=tuple(finished))

    def chosen(self, only: str | None, but: str | None = None) -> list[StagePlan]:
        """The stages of one job, or all, but those of another.

        Raises:
            ConfigError: when the pipeline has no stage of the job.
        """
        found = [
            plan for plan in self.pipeline.plans if only in (None, plan.stage.job.name) and but != plan.stage.job.name
        ]
        if not found:
            raise ConfigError(f"{self.pipeline.file}: no stage of job {only}; add one under stages")
        return found

    def _equipped(self, chosen: Sequence[StagePlan], *, fresh: bool) -> None:
        """Refuses stages whose work could not import its packages, before anything is started for those before them.

        Args:
            chosen: stages; one that stands, or that a night takes as it stands, imports nothing.
            fresh: none stands.

        Raises:
            EngineError: with the packages, and how to install them.
        """
        lines = untold(self.pipeline) + [
            line
            for plan in chosen
            for line in unequipped(plan, self.pipeline)
            if not (self.night is not None and plan.stage.job.learns) and (fresh or self.finished(plan) is None)
        ]
        if lines:
            raise EngineError("; ".join(lines))

    def outlook(self, only: str | None, but: str | None = None) -> list[tuple[StagePlan, bool]]:
        """The chosen stages, each with whether it stands and will be skipped; nothing is done."""
        self.records.fetch()
        found: list[tuple[StagePlan, bool]] = []
        redone: set[str] = set()
        for plan in self.chosen(only, but):
            read = {one.table for one in plan.reads}
            changed = {w.table for one, stands in found if not stands for w in one.writes}
            stands = not (read & changed or set(plan.stages) & redone) and self.finished(plan) is not None
            redone |= set() if stands else {plan.stage.name}
            found.append((plan, stands))
        return found

    def _write_run(self, started_at: str) -> None:
        content = {
            "run_id": self.run_id,
            "started_at": started_at,
            "commit": git_commit(self.pipeline.file.parent),
            "pipeline": self.pipeline.resolved(),
            "data": self.pipeline.spec.model_dump(mode="json"),
            "versions": versions(),
        }
        file = self.pipeline.out / "runs" / self.run_id / "run.json"
        write_json(file, content)
        push(file)

    def _stage(self, plan: StagePlan, position: int, count: int, fresh: bool) -> Finished:
        head = f"[bold]{position}/{count} {plan.stage.name}[/bold]"
        if self.night is not None and plan.stage.job.learns:
            self.progress.say(f"{head}  learnt before: taken as it stands")
            return Finished(record=self._learnt(plan), skipped=True)
        if self.night is not None and plan.stage.job.fits:
            self._learnt(plan, done=False)
        last = None if fresh else self.finished(plan)
        if last is not None:
            self.progress.say(f"{head}  finished before, unchanged: skipped")
            return Finished(record=last, skipped=True)
        self._equipped([plan], fresh=True)
        self._leased()
        self.progress.say(f"{head}  {plan.stage.job.engine}{self._last_time(plan)} ...")
        began = time.monotonic()
        work = _Attempt(self, plan, self._begin(plan, fresh))
        try:
            with self.engines.titled(plan.stage.name, f"{self.pipeline.name} {position}/{count} {plan.stage.name}"):
                result = work.run()
        except LedgerError as error:
            self.records.save(replace(work.record, failure=str(error)))
            raise
        done = work.finished(result, time.monotonic() - began)
        self.records.save(done)
        self.hashes.save()
        remove(self.pipeline.out / "staging" / plan.stage.name)
        self.progress.say(f"{head}  {summary(done)}")
        return Finished(record=done, skipped=False)

    def _last_time(self, plan: StagePlan) -> str:
        """How long the stage took when it was last finished, which is the best guess of how long it will take."""
        before = self.records.load(plan.stage.name)
        known = before is not None and before.done and before.seconds >= _LONG
        return f", {before.seconds:,.0f} s last time" if known and before is not None else ""

    def _leased(self) -> None:
        """Takes the lake's lease before the first stage that works, where the pipeline publishes; asserts it later.

        A run that finds nothing to do asks for none, and starts no Spark.
        """
        if self._lease is None and self.pipeline.publishes:
            from ledgerlm.lake.leases import Holder, leased

            holder = Holder(pipeline=self.pipeline.name, run_id=self.run_id, folder=identity(self.pipeline.out))
            seconds = self.pipeline.conf.lease_minutes * 60
            self._lease = self._at_end.enter_context(leased(self.lake(), holder, seconds))
        self.guard()

    def guard(self) -> None:
        """To be called before something is written to the lake.

        Raises:
            DataError: another run has taken the lake over.
        """
        if self._lease is not None:
            self._lease.check()

    def _learnt(self, plan: StagePlan, *, done: bool = True) -> StageRecord:
        """The record of a stage that learns, however long ago it did.

        Args:
            plan: the stage's.
            done: it must have come to its end: it does nothing but learn.

        Raises:
            ConfigError: it has not finished under these settings.
        """
        record = self.records.load(plan.stage.name)
        if record is None or (done and not record.done) or record.definition != self.definition(plan):
            raise ConfigError(
                f"stage {plan.stage.name} has not learnt under these settings, and a night learns nothing; "
                f"run `ledgerlm run {self.pipeline.file}` first, or take the change back"
            )
        return record

    def _begin(self, plan: StagePlan, fresh: bool) -> StageRecord:
        """Records that the stage starts.

        An attempt that was cut off goes on under its identity while its definition and what it has consumed are the
        same, so that what it has committed is found and not done again; any other start is a new attempt.
        """
        stage, definition = plan.stage, self.definition(plan)
        key = key_fact(plan, self.pipeline.spec)
        last = self.records.load(stage.name)
        if last is not None and not last.done and last.definition != definition:
            # Settings were tried, and taken back: what was finished under these ones may stand.
            last = self.records.finished(stage.name) or last
        since = None if fresh else self._since(plan, last, definition)
        cut_off = last is not None and not last.done and last.definition == definition
        if last is not None and cut_off and last.facts.get(KEY) == key.get(KEY) and self._consumed_stands(plan, last):
            goes_on = last.origin if since is not None else last.attempt
            record = replace(last, run_id=self.run_id, since=since, origin=goes_on, failure="")
        else:
            attempt = uuid.uuid4().hex
            follows = last is not None and since is not None
            record = StageRecord(
                name=stage.name,
                job=stage.job.name,
                engine=stage.job.engine,
                definition=definition,
                attempt=attempt,
                run_id=self.run_id,
                since=since,
                origin=last.origin if last is not None and follows else attempt,
                # What was consumed before and is not read again is to be the same at the next look.
                inputs=replace(
                    self._not_followed(plan, last) if last is not None and follows else Inputs(),
                    files=self._files(plan),
                ),
                facts=key,
            )
        self.records.save(record)
        return record

    def _since(self, plan: StagePlan, last: StageRecord | None, definition: str) -> int | None:
        """The newest batch that the stage's rows reflect, so that it need not make them all again.

        They do while the stage is what it was, nobody has written over its rows, and nothing else that it consumed is
        another than it was: what it cannot follow client by client makes it start from nothing.
        """
        follows = plan.stage.job.follows
        if last is None or last.definition != definition or not follows:
            return None
        # What a refused batch set aside is behind what stands, and no other row of the stage.
        aside = ("quarantine",) if "sources" in follows else ()
        own = self._own_stands(last, but=aside) if last.done else True
        own = own and self._only_own_commits(plan, None if not last.done else aside)
        given = Given(plan, self.before(plan), self.pipeline.file)
        if any(origin(given.record(name)) != used for name, used in last.inputs.origins.items()):
            return None
        before = replace(last, inputs=self._not_followed(plan, last))
        stands = own and self._consumed_stands(plan, before, files=False)
        if "sources" not in follows:
            stands = stands and _but_night(self._files(plan)) == _but_night(last.inputs.files)
        return (last.batch if last.done else last.since) if stands else None

    def _not_followed(self, plan: StagePlan, last: StageRecord) -> Inputs:
        """What an earlier attempt consumed and the stage cannot follow."""
        tables = {name: one for name, one in last.inputs.tables.items() if name not in plan.stage.job.follows}
        return replace(last.inputs, tables=tables, stages={})

    def _only_own_commits(self, plan: StagePlan, tables: Sequence[str] | None = None) -> bool:
        """Whether the newest changes of tables that a stage writes (all, or some) are its own, of whichever attempt."""
        own = f"{self.pipeline.name}/{plan.stage.name}"
        newest = [
            next(
                (one for one in self.history.commits(w.table) if not one.neutral and overlap(w.slice, one.slice)), None
            )
            for w in plan.writes
            if tables is None or w.table in tables
        ]
        return all(one is None or one.stage == own for one in newest)

    def definition(self, plan: StagePlan) -> str:
        """Hash of what a stage is, whatever it is given: the job's results version, settings, seed, data, packages."""
        stage = plan.stage
        return digest(
            {
                "job": stage.job.name,
                "results": stage.job.results,
                "conf": stage.conf.model_dump(mode="json", exclude=set(stage.conf.not_defining())),
                "seed": self.pipeline.conf.seed,
                "data": self.pipeline.spec.model_dump(mode="json"),
                "packages": {name: version_of(name) for name in stage.job.uses},
            }
        )

    def before(self, plan: StagePlan) -> Before:
        """The stages before one, each with its record, if it has one."""
        earlier = self.pipeline.plans[: self.pipeline.plans.index(plan)]
        return [(one, self.records.load(one.stage.name)) for one in earlier]

    def finished(self, plan: StagePlan) -> StageRecord | None:
        """The stage's record, if the stage stands as it was finished."""
        record = self.records.load(plan.stage.name)
        if record is None or not record.done or record.definition != self.definition(plan):
            return None
        stands = self._own_stands(record) and self._consumed_stands(plan, record)
        return record if stands else None

    def _own_stands(self, record: StageRecord, but: Sequence[str] = ()) -> bool:
        """Whether what the stage wrote is there, and nobody has written over it; some tables left out."""
        if not all(is_there(self.pipeline.out / one) for one in record.artefacts):
            return False
        return all(
            self.history.state(table, one.slice, one.state) == one.state
            for table, one in record.tables.items()
            if table not in but
        )

    def _consumed_stands(self, plan: StagePlan, record: StageRecord, *, files: bool = True) -> bool:
        """Whether a look at what the stage consumed finds the same again; also at its files, if `files`."""
        before, inputs = self.before(plan), record.inputs
        if files and self._files(plan) != dict(inputs.files):
            return False
        given = Given(plan, before, self.pipeline.file)
        if any(answer(given.record(name)) != used for name, used in inputs.stages.items()):
            return False
        seen = views(plan, before)
        return all(
            table in seen and list(seen[table].states(self.history, table, states)) == list(states)
            for table, states in inputs.tables.items()
        )

    def _files(self, plan: StagePlan) -> dict[str, str]:
        """Identities of the files that the configuration names, and of what the job reads from outside the lake."""
        stage = plan.stage
        scope = Scope(name=stage.name, conf=stage.conf, spec=self.pipeline.spec)
        places = {one: one for one in (stage.job.sources(scope) if stage.job.sources else ())}
        places |= {name: str(path) for name, path in {**plan.files, **plan.folders}.items()}
        night = {} if self.night is None else {NIGHT: self.night.isoformat()}
        return {name: self.hashes.of(place) for name, place in places.items()} | night

    def expectation(self, plan: StagePlan) -> Sequence[str]:
        """What the stage would take, as far as its job can tell; nothing is recorded."""
        stage = plan.stage
        if stage.job.expect is None:
            return ()
        record = StageRecord(
            name=stage.name, job=stage.job.name, engine=stage.job.engine, definition="", attempt="none"
        )
        return stage.job.expect(_Attempt(self, plan, record, recorded=False).context, stage.conf)

    def lake(self) -> Lake:
        """The tables of this pipeline; Spark is started."""
        from ledgerlm.lake.lake import Lake

        return Lake(self.pipeline.home.root, self.engines.spark)


class _Attempt:
    """One attempt of a stage: notes what it consumes as it consumes it, so that a kill forgets nothing."""

    def __init__(self, runner: Runner, plan: StagePlan, record: StageRecord, *, recorded: bool = True) -> None:
        self._runner, self._plan, self._recorded = runner, plan, recorded
        self.record = record
        self._fetched: set[str] = set()
        before = runner.before(plan)
        author = Author(
            attempt=record.attempt,
            stage=f"{runner.pipeline.name}/{record.name}",
            run_id=runner.run_id,
            key=record.facts.get(KEY, ""),
        )
        self.tables = Tables(
            lake=runner.lake,
            history=runner.history,
            plan=plan,
            seen=views(plan, before),
            author=author,
            consumed=self._table,
            guard=runner.guard,
            failpoint=self._failpoint,
        )
        self.context = Context(
            pipeline=runner.pipeline,
            plan=plan,
            run_id=runner.run_id,
            record=record,
            tables=self.tables,
            given=Given(plan, before, runner.pipeline.file, self._stage),
            engines=runner.engines,
            hashes=runner.hashes,
            night=runner.night,
            progress=runner.progress,
        )

    def run(self) -> StageResult:
        """Does the work.

        Raises:
            LedgerError: what went wrong, in words.
        """
        ctx = self.context
        try:
            ctx.failpoint("start")
            result = self._plan.stage.job.run(ctx, self._plan.stage.conf)
            ctx.failpoint("end")
        except LedgerError:
            raise
        except Exception as error:
            told = as_ledger_error(error, self._plan.stage)
            if told is None:
                raise
            raise told from error
        finally:
            ctx.engines.release()
        return result

    def finished(self, result: StageResult, seconds: float) -> StageRecord:
        """The record of the finished attempt, whose artefacts lie where they belong."""
        for one in result.artefacts:
            push(Path(one).absolute())
        return replace(
            self.record,
            done=True,
            seconds=round(seconds, 2),
            rows_in=result.rows_in,
            rows_out=result.rows_out,
            quarantined=result.quarantined,
            duplicates=result.duplicates,
            withdrawn=result.withdrawn,
            batch=result.facts.get("batch", self.context.batch),
            tables=self.tables.written,
            artefacts=[self._relative(one) for one in result.artefacts],
            facts={**self.record.facts, **result.facts},
            finished_at=now(),
        )

    def _relative(self, folder: str) -> str:
        """Below `out` without it, so that a folder that is moved keeps its records."""
        path = Path(folder).absolute()
        out = self._runner.pipeline.out
        return str(path.relative_to(out) if path.is_relative_to(out) else path)

    def _failpoint(self, name: str) -> None:
        self.context.failpoint(name)

    def _table(self, table: str, states: Sequence[State | None]) -> None:
        self._note(tables={**self.record.inputs.tables, table: list(states)})

    def _stage(self, name: str, used: str) -> None:
        if used not in self._fetched:
            record = self._runner.records.load(used.partition("@")[0])
            for one in () if record is None else record.artefacts:
                pull(self._runner.pipeline.out / one)
            self._fetched.add(used)
        if self.record.inputs.stages.get(name) != used:
            found = self._runner.records.load(used.partition("@")[0])
            self._note(
                stages={**self.record.inputs.stages, name: used},
                origins={**self.record.inputs.origins, name: origin(found)},
            )

    def _note(self, **consumed: Mapping[str, Any]) -> None:
        self.record = replace(self.record, inputs=replace(self.record.inputs, **consumed))
        if self._recorded:
            self._runner.records.save(self.record)


def _but_night(files: Mapping[str, str]) -> dict[str, str]:
    """The files; the time as of which everybody is asked moves every night, and is followed."""
    return {name: content for name, content in files.items() if name != NIGHT}


def summary(record: StageRecord) -> str:
    """One line for the terminal: rows and time."""
    parts = [f"{record.rows_in:,} in", f"{record.rows_out:,} out"]
    parts += [f"{record.quarantined:,} quarantined"] if record.quarantined else []
    parts += [f"{record.duplicates:,} duplicates dropped"] if record.duplicates else []
    parts += [f"{record.withdrawn:,} withdrawn"] if record.withdrawn else []
    return f"{', '.join(parts)}  ({record.seconds:.0f} s)"
