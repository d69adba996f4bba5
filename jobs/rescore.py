"""A night: takes in what is new, scores everybody as of tonight with what was learnt, and publishes it."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence

from rich.console import Console

from ledgerlm.errors import ConfigError
from ledgerlm.events.clock import aware, instant
from ledgerlm.jobs.run import show_plan
from ledgerlm.lake.publications import refuse_past
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import Pipeline, load_pipeline
from ledgerlm.runs.runner import Runner


def rescore(
    file: str, overrides: Sequence[str] = (), *, as_of: dt.datetime, publish: bool = True, dry_run: bool = False
) -> int:
    """Runs the stages of a pipeline on what is new; stages that learn are taken as they stand.

    Args:
        file: pipeline file, whose last stage publishes.
        overrides: `key.sub=value` items that win over the file.
        as_of: the time as of which everybody is scored; without a zone it is in the data set's.
        publish: hold the scores against the gates and publish them; else the same call with it does so later.
        dry_run: print the plan, and do nothing.

    Returns:
        Exit code.

    Raises:
        ConfigError: nothing publishes, readers see a later time already, or a stage that learns has not learnt.
        DataError: a gate refused the scores; readers stay with the publication before.
    """
    pipeline = load_pipeline(file, overrides)
    _refuse_unpublished(pipeline)
    progress = Progress(Console(highlight=False))
    night = aware(as_of, pipeline.spec.time.zone)
    runner = Runner(pipeline, progress, night)
    present = instant(as_of, pipeline.spec.time.zone)
    progress.say(f"[bold]{pipeline.name}[/bold]: {pipeline.spec.title}, as of {night.isoformat(sep=' ')}")
    but = None if publish else "publish"
    try:
        if dry_run:
            return show_plan(runner, None, progress, but)
        refuse_past(runner.lake(), present)
        run = runner.run(but=but)
        if publish:
            published = run.stages[-1].record.facts
            progress.say(f"Publication [bold]{published['publication']}[/bold] of {pipeline.place}")
        else:
            progress.say("Scored, and not published: readers see it when the same night is run without --no-publish")
    finally:
        runner.engines.stop()
    return 0


def _refuse_unpublished(pipeline: Pipeline) -> None:
    if pipeline.plans[-1].stage.job.name != "publish":
        raise ConfigError(
            f"{pipeline.file}: a night ends with its publication, by which readers see all of it or nothing; "
            "add `publish: {}` as the last stage"
        )


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["rescore", *sys.argv[1:]]))
