"""Runs the stages of a pipeline in order, skips what is finished and unchanged, and leaves records behind."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import ledgerlm
from ledgerlm.errors import ConfigError
from ledgerlm.events.spec import DataSetSpec, load_spec
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.context import Context, Engines
from ledgerlm.runs.job import StageResult
from ledgerlm.runs.pipeline import Pipeline, Stage
from ledgerlm.runs.record import Records, StageRecord, digest, git_commit, now, versions, write_json


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

    Raises:
        ConfigError: when another process is running the same pipeline.
    """

    def __init__(self, pipeline: Pipeline, progress: Progress) -> None:
        self.pipeline = pipeline
        self.progress = progress
        self.spec: DataSetSpec = load_spec(pipeline.data_file, overrides=_source_overrides(pipeline))
        self.records = Records(pipeline.out)
        self.engines = Engines(pipeline)
        self.run_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S") + "-" + uuid.uuid4().hex[:6]
        self._marks: dict[str, str] = {}

    def run(self, *, only: str | None = None, fresh: bool = False) -> Run:
        """Runs all stages, or only those of one job.

        Args:
            only: verb whose stages are run; the others must be finished where they are needed.
            fresh: do finished stages again.
        """
        self.pipeline.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.pipeline.out / "runs.lock", timeout=0)
        try:
            with lock, self.progress.running():
                return self._run(only=only, fresh=fresh)
        except Timeout as error:
            raise ConfigError(
                f"{self.pipeline.out} is in use by another run of pipeline {self.pipeline.name}; wait for it or give "
                "this one another folder with --set out=FOLDER"
            ) from error

    def _run(self, *, only: str | None, fresh: bool) -> Run:
        started_at = now()
        self._write_run(started_at)
        chosen = [stage for stage in self.pipeline.stages if only in (None, stage.job.name)]
        finished = [self._stage(stage, position, len(chosen), fresh) for position, stage in enumerate(chosen, 1)]
        return Run(run_id=self.run_id, started_at=started_at, stages=tuple(finished))

    def _write_run(self, started_at: str) -> None:
        content = {
            "run_id": self.run_id,
            "started_at": started_at,
            "commit": git_commit(self.pipeline.file.parent),
            "pipeline": self.pipeline.resolved(),
            "data": self.spec.model_dump(mode="json"),
            "inputs": {stage.name: dict(record.tables) for stage, record in self._known()},
            "versions": versions(),
        }
        write_json(self.pipeline.out / "runs" / self.run_id / "run.json", content)

    def _known(self) -> list[tuple[Stage, StageRecord]]:
        loaded = [(stage, self.records.load(stage.name)) for stage in self.pipeline.stages]
        return [(stage, record) for stage, record in loaded if record is not None and record.done]

    def _stage(self, stage: Stage, position: int, count: int, fresh: bool) -> Finished:
        mark = self.fingerprint(stage)
        last = self.records.load(stage.name)
        head = f"[bold]{position}/{count} {stage.name}[/bold]"
        if not fresh and last is not None and last.done and last.fingerprint == mark and self._stands(last):
            self.progress.say(f"{head}  finished before, unchanged: skipped")
            return Finished(record=last, skipped=True)
        self.progress.say(f"{head}  {stage.job.engine} ...")
        record = self.records.begin(stage.name, stage.job.name, stage.job.engine, mark, self.run_id)
        began = time.monotonic()
        ctx = self._context(record)
        ctx.failpoint("start")
        result: StageResult = stage.job.run(ctx, stage.conf)
        ctx.failpoint("end")
        done = _finished(record, result, time.monotonic() - began)
        self.records.save(done)
        shutil.rmtree(self.pipeline.out / "staging" / stage.name, ignore_errors=True)
        self.progress.say(f"{head}  {summary(done)}")
        return Finished(record=done, skipped=False)

    def _context(self, record: StageRecord) -> Context:
        return Context(
            pipeline=self.pipeline,
            run_id=self.run_id,
            spec=self.spec,
            record=record,
            records=self.records,
            engines=self.engines,
            progress=self.progress,
        )

    def expectation(self, stage: Stage) -> Sequence[str]:
        """What the stage would take, as far as its job can tell; nothing is recorded."""
        if stage.job.expect is None:
            return ()
        record = StageRecord(
            name=stage.name, job=stage.job.name, engine=stage.job.engine, fingerprint=self.fingerprint(stage), attempt=0
        )
        return stage.job.expect(self._context(record), stage.conf)

    def _stands(self, record: StageRecord) -> bool:
        """Whether what the stage wrote is still there; on this machine that is seen without starting Spark."""
        if not all(Path(folder).exists() for folder in record.artefacts):
            return False
        if self.pipeline.conf.lake is None:
            folder = self.pipeline.out / "lake"
            return all((folder / table / "_delta_log").exists() for table in record.tables)
        lake = Lake(self.pipeline.lake_root, self.engines.spark)
        return all(lake.exists(table) for table in record.tables)

    def fingerprint(self, stage: Stage) -> str:
        """Hash of all that decides what the stage writes: itself, the data, and the stages it builds on.

        Worked out once for each stage of a runner: stages build on many others, and the paths between them are without
        number.
        """
        if stage.name not in self._marks:
            self._marks[stage.name] = digest(
                {
                    "job": stage.job.name,
                    "conf": stage.conf.model_dump(mode="json", exclude=set(stage.conf.HOW)),
                    "seed": self.pipeline.conf.seed,
                    "data": self.spec.model_dump(mode="json"),
                    "sources": stage.job.sources(self.spec) if stage.job.sources else None,
                    "version": ledgerlm.__version__,
                    "built_on": {one.name: self.fingerprint(one) for one in self._built_on(stage)},
                }
            )
        return self._marks[stage.name]

    def _built_on(self, stage: Stage) -> list[Stage]:
        """The stages before it that write what it reads, or whose facts it uses."""
        before = self.pipeline.stages[: self.pipeline.stages.index(stage)]
        reads, jobs = set(stage.job.reads), set(stage.job.needs)
        named = set(stage.conf.stages_named()) or {one.name for one in before if one.job.name in jobs}
        return [one for one in before if reads & set(one.job.writes) or one.name in named]


def summary(record: StageRecord) -> str:
    """One line for the terminal: rows and time."""
    parts = [f"{record.rows_in:,} in", f"{record.rows_out:,} out"]
    parts += [f"{record.quarantined:,} quarantined"] if record.quarantined else []
    parts += [f"{record.duplicates:,} duplicates dropped"] if record.duplicates else []
    return f"{', '.join(parts)}  ({record.seconds:.0f} s)"


def _finished(record: StageRecord, result: StageResult, seconds: float) -> StageRecord:
    return replace(
        record,
        done=True,
        seconds=round(seconds, 2),
        rows_in=result.rows_in,
        rows_out=result.rows_out,
        quarantined=result.quarantined,
        duplicates=result.duplicates,
        tables=dict(result.tables),
        artefacts=list(result.artefacts),
        facts=dict(result.facts),
        finished_at=now(),
    )


def _source_overrides(pipeline: Pipeline) -> Sequence[str]:
    def flat(prefix: str, values: dict[str, Any]) -> list[str]:
        items: list[str] = []
        for key, value in values.items():
            items += flat(f"{prefix}.{key}", value) if isinstance(value, dict) else [f"{prefix}.{key}={value}"]
        return items

    return flat("source", pipeline.conf.source)
