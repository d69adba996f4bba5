"""The plan of a pipeline: what each stage reads, writes and builds on, known and checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ledgerlm.config import Conf, FileName, HeadRef, ModelRef, StageName, find_file, nearest, references
from ledgerlm.errors import ConfigError
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.slices import Reads, Writes, overlap
from ledgerlm.runs.job import Job, Scope

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_-]*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One entry of `stages`: a name, its job and the job's checked configuration."""

    name: str
    job: Job
    conf: Conf


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """What is known of a stage before it runs.

    Attributes:
        stage: the stage.
        reads: tables that it may read.
        writes: slices that it replaces.
        stages: stages before it whose facts or folders it uses.
        files: files that its configuration names: name -> path.
        folders: model folders that it names: name -> path.
    """

    stage: Stage
    reads: tuple[Reads, ...]
    writes: tuple[Writes, ...]
    stages: tuple[str, ...]
    files: dict[str, Path]
    folders: dict[str, Path]


def plan(stages: Sequence[Stage], spec: DataSetSpec, file: Path) -> tuple[StagePlan, ...]:
    """Plans the stages of a pipeline.

    Args:
        stages: in order.
        spec: the data set spec.
        file: the pipeline file, for messages and for files named relative to it.

    Raises:
        ConfigError: no stage, a name that is no name, a reference to nothing or to a later stage, a missing file, two
            stages that write the same rows, or a table that is read before the stage that writes it.
    """
    if not stages:
        raise ConfigError(f"{file}: stages: is empty; name at least one stage, such as `ingest: {{}}`")
    planned: list[StagePlan] = []
    for stage in stages:
        if not _NAME.match(stage.name):
            raise ConfigError(
                f"{file}: stages.{stage.name!r}: a stage's name begins with a letter and holds letters, digits, "
                "'_' and '-', since it names folders and rows"
            )
        planned.append(_planned(stage, stages, [one.stage for one in planned], spec, file))
    _refuse_clashes(planned, file)
    _refuse_wrong_order(planned, file)
    return tuple(planned)


def _planned(
    stage: Stage, stages: Sequence[Stage], before: Sequence[Stage], spec: DataSetSpec, file: Path
) -> StagePlan:
    scope = Scope(name=stage.name, conf=stage.conf, spec=spec)
    names = {one.name for one in stages}
    wanted = [str(one) for one in references(stage.conf, StageName)]
    wanted += [one.stage for one in references(stage.conf, HeadRef)]
    models = [str(one) for one in references(stage.conf, ModelRef)]
    wanted += [one for one in models if one in names]
    earlier = [one.name for one in before]
    for name in wanted:
        if name in earlier:
            continue
        why = "stands after it" if name in names else f"is not in the pipeline: {nearest(name, earlier or ['none'])}"
        raise ConfigError(f"{file}: stages.{stage.name}: names stage '{name}', which {why}; it needs a stage before it")
    jobs_named = {one.job.name for one in before if one.name in wanted} | ({"finetune"} if models else set())
    needed = _latest([job for job in stage.job.needs if job not in jobs_named], before)
    return StagePlan(
        stage=stage,
        reads=stage.job.reads_of(scope),
        writes=stage.job.writes_of(scope),
        stages=tuple(dict.fromkeys([*wanted, *needed])),
        files=_files(stage, file),
        folders={one: Path(one).expanduser().absolute() for one in models if one not in names},
    )


def _files(stage: Stage, file: Path) -> dict[str, Path]:
    """The files that a stage's configuration names."""
    try:
        return {str(name): find_file(name, beside=file.parent) for name in references(stage.conf, FileName)}
    except ConfigError as error:
        raise ConfigError(f"{file}: stages.{stage.name}: {error}") from error


def _latest(jobs: Iterable[str], before: Sequence[Stage]) -> list[str]:
    found = {one.job.name: one.name for one in before}
    return [found[job] for job in jobs if job in found]


def _refuse_clashes(planned: Sequence[StagePlan], file: Path) -> None:
    for place, one in enumerate(planned):
        for other in planned[:place]:
            for mine in one.writes:
                theirs = [w for w in other.writes if w.table == mine.table and overlap(w.slice, mine.slice)]
                if theirs:
                    part = ", ".join(f"{column} {'/'.join(values)}" for column, values in mine.slice.items())
                    raise ConfigError(
                        f"{file}: stages.{other.stage.name} and stages.{one.stage.name} write the same rows of table "
                        f"{mine.table}{f' ({part})' if part else ''}: the second would undo the first; "
                        "leave one out, or give one of them another name for what it writes"
                    )


def _refuse_wrong_order(planned: Sequence[StagePlan], file: Path) -> None:
    for place, one in enumerate(planned):
        written = {w.table for other in planned[:place] for w in other.writes}
        for read in one.reads:
            late = [other.stage.name for other in planned[place + 1 :] for w in other.writes if w.table == read.table]
            if late and read.table not in written and not read.optional:
                raise ConfigError(
                    f"{file}: stages.{one.stage.name} reads table {read.table}, which stages.{late[0]} writes after "
                    f"it; put {late[0]} before {one.stage.name}"
                )
