"""List what the stages of a pipeline set aside: reasons, counts, examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyspark.sql import functions as F
from rich.console import Console

from ledgerlm.events.checking import reasons_of
from ledgerlm.jobs.check import tell_reasons
from ledgerlm.lake.lake import Lake
from ledgerlm.runs.engines import Engines
from ledgerlm.runs.pipeline import load_pipeline


def list_quarantine(file: str, overrides: Sequence[str] = (), *, reason: str | None = None, examples: int = 3) -> int:
    """Prints the quarantine of a pipeline.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        reason: this one alone.
        examples: rows that are shown of each reason.

    Returns:
        Exit code 0.
    """
    pipeline = load_pipeline(file, overrides)
    console = Console(highlight=False, soft_wrap=True)
    engines = Engines(pipeline)
    try:
        lake = Lake(pipeline.home.root, engines.spark)
        rows = lake.read("quarantine") if lake.exists("quarantine") else None
        chosen = rows if rows is None or reason is None else rows.where(F.col("reason") == reason)
        found = [] if chosen is None else reasons_of(chosen, examples=examples)
    finally:
        engines.stop()
    if not found:
        console.print("nothing is set aside")
    tell_reasons(found, console)
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["quarantine", *sys.argv[1:]]))
