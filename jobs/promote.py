"""Makes a head the champion of its task, whose scores readers get; others score beside it until they are promoted."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyspark.sql import functions as F
from rich.console import Console
from rich.markup import escape

from ledgerlm.applications.promoting import candidates, promoted
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.champions import champions, promotions
from ledgerlm.lake.differences import CHANGE, INSERT
from ledgerlm.lake.latest import show_latest
from ledgerlm.lake.publications import publications
from ledgerlm.lake.schemas import CHAMPIONS
from ledgerlm.progress import Progress
from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.lock import at_work
from ledgerlm.runs.pipeline import load_pipeline


def promote(
    file: str, overrides: Sequence[str] = (), *, head: str | None = None, reason: str = "", by: str = ""
) -> int:
    """Lists the heads that have scored the newest publication, or promotes one of them.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        head: id of the head; None: list them, and change nothing.
        reason: why.
        by: who decided it.

    Returns:
        Exit code.

    Raises:
        ConfigError: a run is at work on the lake, or the head cannot be promoted.
        DataError: no night was published or refused yet.
    """
    if head is None and (reason or by):
        raise ConfigError("--reason and --by are given, and no --head: nobody would be promoted; name the head")
    pipeline = load_pipeline(file, overrides)
    progress = Progress(Console(highlight=False))
    with at_lake(pipeline) as (engines, _, lake):
        known = publications(lake)
        if not known:
            raise DataError(f"nothing was published at {lake.home.root}; run `ledgerlm rescore` first")
        found = candidates(lake, known[0], champions(lake), engines.keeper.keep)
        if head is None:
            for one in found:
                progress.say(escape(one.line()))
            return 0
        with at_work(pipeline, lake, "promote") as (author, lease):
            before = promotions(lake)
            made = promoted(found, before, head, reason=reason, by=by, publication=known[0].number)
            lease.check()
            lake.apply(CHAMPIONS.name, made.row(lake.spark).withColumn(CHANGE, F.lit(INSERT)), by=author)
            seen = next((one for one in known if one.readable), None)
            if seen is not None and pipeline.shows_views:
                lease.check()
                show_latest(lake, seen)
    instead = "" if made.replaced is None else f", in place of {made.replaced}"
    progress.say(f"Champion of [bold]{escape(made.task)}[/bold]: {made.head_id}{instead}")
    if seen is None or head not in seen.heads:
        progress.say("Readers get its scores with the next publication: run the night again")
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["promote", *sys.argv[1:]]))
