"""Upkeep between nights: takes rows of past nights away, compacts small files, removes those that nobody reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from ledgerlm.progress import Progress
from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.maintenance import maintained
from ledgerlm.runs.pipeline import load_pipeline


def maintain(
    file: str,
    overrides: Sequence[str] = (),
    *,
    most: int = 30,
    days: int = 30,
    prune: bool = True,
    dry_run: bool = False,
) -> int:
    """Looks after the lake of a pipeline.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        most: newest publications that stay readable.
        days: and all publications of so many days.
        prune: take away rows of past nights that none of these publications and no label asks for.
        dry_run: say what would be done, and do nothing.

    Returns:
        Exit code.

    Raises:
        ConfigError: there is something to prune or to compact, and a run is at work on the lake.
    """
    pipeline = load_pipeline(file, overrides)
    progress = Progress(Console(highlight=False))
    with at_lake(pipeline) as (engines, records, lake), progress.running():
        done = maintained(
            pipeline,
            records,
            lake,
            most=most,
            days=days,
            keep=engines.keeper.keep,
            progress=progress,
            prune=prune,
            dry_run=dry_run,
        )
    for line in done.lines():
        progress.say(line)
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["maintain", *sys.argv[1:]]))
