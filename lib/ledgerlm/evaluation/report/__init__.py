"""The report of a run: `report.json` for machines, `report.html` for people, the leaderboard as a table for papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ledgerlm.evaluation.exports import leaderboard_table, write_leaderboard
from ledgerlm.evaluation.report.facts import collect
from ledgerlm.evaluation.report.page import render
from ledgerlm.runs.record import write_json

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.context import Engines
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.runner import Run


def write_report(pipeline: Pipeline, spec: DataSetSpec, run: Run, engines: Engines) -> Path:
    """Writes `report.json`, `report.html` and `leaderboard.{csv,json,md,tex}` below the pipeline's folder.

    Returns:
        Path of the page.
    """
    facts = collect(pipeline, spec, run, engines.spark)
    write_json(pipeline.out / "report.json", facts)
    board = leaderboard_table([*facts["leaderboard"], *facts["leaderboard_test"]], facts["published"].get("rows", []))
    if not board.empty:
        write_leaderboard(board, pipeline.out)
    page = pipeline.out / "report.html"
    page.write_text(render(facts), encoding="utf-8")
    return page
