"""Puts together what a run did: the content of `report.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ledgerlm.evaluation.published import published
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.schemas import TABLES
from ledgerlm.runs.record import git_commit, now, versions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.runner import Finished, Run


def collect(pipeline: Pipeline, spec: DataSetSpec, run: Run, spark: SparkSession) -> dict[str, Any]:
    """Facts of a finished run.

    Returns:
        `run_id`, `pipeline`, `stages`, `leaderboard` (cross-validation rows), `leaderboard_test` (the fixed test
        clients), `published` (figures of others), `tables`, `backbone`, `versions`, and under `details` the facts of
        each stage by its name.
    """
    details = {stage.record.name: dict(stage.record.facts) for stage in run.stages}
    board = _leaderboard(run.stages)
    finds = {stage.name for stage in pipeline.stages if stage.job.finds}
    return {
        "run_id": run.run_id,
        "pipeline": pipeline.name,
        "title": pipeline.conf.title or spec.title,
        "data": {"name": spec.name, "title": spec.title},
        "started_at": run.started_at,
        "finished_at": now(),
        "seed": pipeline.conf.seed,
        "commit": git_commit(pipeline.file.parent),
        "stages": [_stage(stage) | {"finds": stage.record.name in finds} for stage in run.stages],
        "leaderboard": [row for row in board if row.get("split") != "test"],
        "leaderboard_test": [row for row in board if row.get("split") == "test"],
        "published": _published(spec.name),
        "tables": _tables(Lake(pipeline.lake_root, spark)),
        "backbone": _backbone(run.stages),
        "versions": versions(),
        "details": details,
        "configuration": pipeline.resolved(),
    }


def facts_of(stages: tuple[Finished, ...], job: str) -> list[Mapping[str, Any]]:
    """Facts of the stages of a job, in their order."""
    return [stage.record.facts for stage in stages if stage.record.job == job]


def _stage(stage: Finished) -> dict[str, Any]:
    record = stage.record
    return {
        "name": record.name,
        "job": record.job,
        "engine": record.engine,
        "rows_in": record.rows_in,
        "rows_out": record.rows_out,
        "quarantined": record.quarantined,
        "duplicates": record.duplicates,
        "seconds": record.seconds,
        "skipped": stage.skipped,
    }


def _leaderboard(stages: tuple[Finished, ...]) -> list[dict[str, Any]]:
    return [dict(row) for stage in stages for row in stage.record.facts.get("leaderboard", [])]


def _published(data_set: str) -> dict[str, Any]:
    found = published(data_set)
    return {} if found is None else {"rows": found.rows(), "source": found.source, "caveats": list(found.caveats)}


def _tables(lake: Lake) -> dict[str, dict[str, Any]]:
    there = [name for name in TABLES if lake.exists(name)]
    return {name: {"path": lake.path(name), "version": lake.version(name), "rows": lake.rows(name)} for name in there}


def _backbone(stages: tuple[Finished, ...]) -> dict[str, Any]:
    """The last backbone that was trained, with the last definition that was read from it."""
    trained = facts_of(stages, "finetune")
    read = facts_of(stages, "embed")
    left_out = {"curve", "loss_curve", "example"}
    facts = {key: value for key, value in (trained[-1] if trained else {}).items() if key not in left_out}
    return facts | ({"definition": read[-1].get("definition")} if read else {})
