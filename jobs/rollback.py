"""Publishes an earlier publication again: readers see its tables from then on, and nothing is deleted."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence

from pyspark.sql import functions as F
from rich.console import Console

from ledgerlm.lake.differences import CHANGE, INSERT
from ledgerlm.lake.latest import show_latest
from ledgerlm.lake.publications import PUBLICATIONS, publications, published, shown_before
from ledgerlm.progress import Progress
from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.lock import at_work
from ledgerlm.runs.pipeline import load_pipeline


def roll_back(file: str, overrides: Sequence[str] = (), *, to: int | None = None) -> int:
    """Publishes the publication before the newest one, or the one named, again.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        to: number of the publication; left out, the one that readers saw before the present one.

    Returns:
        Exit code.

    Raises:
        ConfigError: a run is at work on the lake.
        DataError: there is no such publication.
    """
    pipeline = load_pipeline(file, overrides)
    progress = Progress(Console(highlight=False))
    with at_lake(pipeline) as (_, _, lake), at_work(pipeline, lake, "rollback") as (by, lease):
        now = published(lake)
        wanted = published(lake, to if to is not None else shown_before(lake, now.number))
        again = wanted.again(publications(lake)[0].number + 1, dt.datetime.now(dt.UTC))
        lease.check()
        lake.apply(PUBLICATIONS, again.row(lake.spark).withColumn(CHANGE, F.lit(INSERT)), by=by)
        if pipeline.shows_views:
            lease.check()
            show_latest(lake, again)
    progress.say(
        f"Publication [bold]{again.number}[/bold]: the tables of publication {wanted.number}, as of "
        f"{wanted.as_of.isoformat(sep=' ')}; {now.number} is kept"
    )
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["rollback", *sys.argv[1:]]))
