"""Run a pipeline: its stages in order, then the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from ledgerlm.config import without_secrets
from ledgerlm.errors import ConfigError
from ledgerlm.progress import Progress
from ledgerlm.runs.keys import other_key
from ledgerlm.runs.obstacles import missing, untold, unwritable
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner


def run_pipeline(
    file: str, overrides: Sequence[str] = (), *, only: str | None = None, dry_run: bool = False, fresh: bool = False
) -> int:
    """Checks the pipeline with all it names, runs it, writes the report and says where it is.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        only: verb whose stages are run; the report is written by whole runs alone.
        dry_run: print the plan, with what it would take where a job can tell and what is missing, and do nothing.
        fresh: do finished stages again.

    Returns:
        Exit code.
    """
    pipeline = load_pipeline(file, overrides)
    progress = Progress(Console(highlight=False))
    runner = Runner(pipeline, progress)
    progress.say(f"[bold]{pipeline.name}[/bold]: {pipeline.spec.title}; results in {pipeline.place}")
    try:
        if dry_run:
            return show_plan(runner, only, progress)
        run = runner.run(only=only, fresh=fresh)
        if only is None:
            from ledgerlm.runs.report import write_report  # plots take a second to import

            progress.say(f"Report: [bold]{write_report(runner, run)}[/bold]")
    finally:
        runner.engines.stop()
    return 0


def show_plan(runner: Runner, only: str | None, progress: Progress, but: str | None = None) -> int:
    """Prints a line for each stage, setting and obstacle; 2 where a run would stumble."""
    obstacles, outlook = unwritable(runner.pipeline), runner.outlook(only, but)
    obstacles += untold(runner.pipeline) + other_key(runner.pipeline, runner.records, runner.history)
    for plan, stands in outlook:
        found = [] if stands else missing(plan, runner.pipeline)
        obstacles += found
        progress.say(
            f"  {plan.stage.name}: {plan.stage.job.engine}; {'finished, unchanged' if stands else 'would run'}"
        )
        for key, value in without_secrets(plan.stage.conf.model_dump(mode="json")).items():
            progress.say(escape(f"      {key}: {value}"))
        for line in () if stands or found else runner.expectation(plan):
            progress.say(f"      [bold]expected[/bold] {line}")
    for line in obstacles:
        progress.say(f"[red]missing[/red] {escape(line)}")
    return ConfigError.exit_code if obstacles else 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
