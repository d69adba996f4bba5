"""The report of a run: `report.json` for machines, `report.html` for people, the leaderboard as a table for papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledgerlm.config import without_secrets
from ledgerlm.evaluation.published import published
from ledgerlm.evaluation.report.page import render
from ledgerlm.files import push
from ledgerlm.lake.schemas import TABLES
from ledgerlm.runs.pipeline import Pipeline
from ledgerlm.runs.record import git_commit, located, now, portable, versions, write_json
from ledgerlm.runs.runner import Finished, Run, Runner


def write_report(runner: Runner, run: Run) -> str:
    """Writes `report.json`, `report.html` and `leaderboard.{csv,json,md,tex}` below the pipeline's folder.

    Where the pipeline names an experiment of MLflow, that is told of it as well.

    Returns:
        Path or URL of the page.

    Raises:
        EngineError: MLflow does not take it; the report is written.
    """
    pipeline = runner.pipeline
    out, place = pipeline.out, pipeline.place
    facts = without_secrets(located(portable(collect(pipeline, run, _tables(runner)), out), place))
    write_json(out / "report.json", facts)
    if rows := [*facts["leaderboard"], *facts["leaderboard_test"]]:
        from ledgerlm.evaluation.exports import leaderboard_table, write_leaderboard  # pandas, which others need not

        write_leaderboard(leaderboard_table(rows, facts["published"].get("rows", [])), out)
    (out / "report.html").write_text(render(facts), encoding="utf-8")
    files = [*sorted(out.glob("leaderboard.*")), out / "report.json", out / "report.html"]
    for one in files:
        push(one)
    if pipeline.conf.mlflow is not None:
        from ledgerlm.evaluation.tracking import track

        runner.progress.say(f"Telling MLflow's experiment {pipeline.conf.mlflow.experiment} ...")
        track(facts, pipeline.conf.mlflow, files)
    return f"{place}/report.html"


def collect(pipeline: Pipeline, run: Run, tables: Mapping[str, Any]) -> dict[str, Any]:
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
        "title": pipeline.conf.title or pipeline.spec.title,
        "data": {"name": pipeline.spec.name, "title": pipeline.spec.title},
        "started_at": run.started_at,
        "finished_at": now(),
        "seed": pipeline.conf.seed,
        "commit": git_commit(pipeline.file.parent),
        "stages": [_stage(stage) | {"finds": stage.record.name in finds} for stage in run.stages],
        "leaderboard": [row for row in board if row.get("split") != "test"],
        "leaderboard_test": [row for row in board if row.get("split") == "test"],
        "published": _published(pipeline.spec.name),
        "tables": dict(tables),
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


def _tables(runner: Runner) -> dict[str, dict[str, Any]]:
    """Where each table lies, its version and its rows; Spark is asked only for what the commits do not tell."""
    found = {}
    for name in TABLES:
        newest = runner.history.newest(name)
        if newest is not None:
            told = runner.history.rows(name)
            rows = runner.lake().rows(name, newest.version) if told is None else told
            found[name] = {"path": runner.pipeline.home.path(name), "version": newest.version, "rows": rows}
    return found


def _backbone(stages: tuple[Finished, ...]) -> dict[str, Any]:
    """The last backbone that was trained, with the last definition that was read from it."""
    trained = facts_of(stages, "finetune")
    read = facts_of(stages, "embed")
    left_out = {"curve", "loss_curve", "example"}
    facts = {key: value for key, value in (trained[-1] if trained else {}).items() if key not in left_out}
    return facts | ({"definition": read[-1].get("definition")} if read else {})
