"""Removes clients: from every table, from what readers see, and from what later deliveries bring."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from ledgerlm.progress import Progress
from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.erasing import erase, ids_of
from ledgerlm.runs.pipeline import load_pipeline


def erase_clients(
    file: str,
    overrides: Sequence[str] = (),
    *,
    clients: Sequence[str] = (),
    listed: str | None = None,
    dry_run: bool = False,
) -> int:
    """Erases clients from the lake of a pipeline.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        clients: ids, as the data have them.
        listed: text file with an id a line.
        dry_run: say what would be done, and do nothing.

    Returns:
        Exit code.

    Raises:
        ConfigError: nobody is named, or a run is at work on the lake.
        DataError: a night was begun and not published.
    """
    ids = ids_of(clients, listed)
    pipeline = load_pipeline(file, overrides)
    progress = Progress(Console(highlight=False))
    with at_lake(pipeline) as (engines, records, lake), progress.running():
        done = erase(pipeline, records, lake, ids, keep=engines.keeper.keep, progress=progress, dry_run=dry_run)
    for line in done.lines():
        progress.say(line)
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["erase", *sys.argv[1:]]))
