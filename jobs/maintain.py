"""Upkeep between nights: compacts small files and removes those that no kept publication reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ledgerlm.lake.lake import Lake
from ledgerlm.lake.upkeep import compact, hours_kept, kept, remove_old, sizes
from ledgerlm.progress import Progress
from ledgerlm.runs.engines import Engines
from ledgerlm.runs.pipeline import load_pipeline


def maintain(file: str, overrides: Sequence[str] = (), *, most: int = 30, days: int = 30) -> int:
    """Compacts fragmented tables and removes old files. A running night goes on beside it: no row changes.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        most: newest publications that stay readable.
        days: and all publications of so many days.

    Returns:
        Exit code.
    """
    pipeline = load_pipeline(file, overrides)
    progress, engines = Progress(), Engines(pipeline)
    try:
        lake = Lake(pipeline.home.root, engines.spark)
        stay = kept(lake, most, days)
        hours = hours_kept(stay)
        found = sizes(lake)
        with progress.running(), progress.task("Upkeep of tables", total=len(found)) as bar:
            for table in found:
                if table.fragmented:
                    compact(lake, table.name)
                remove_old(lake, table.name, hours)
                bar.advance()
        after = {table.name: table for table in sizes(lake)}
    finally:
        engines.stop()
    for table in found:
        now = after[table.name]
        if now.files != table.files:
            progress.say(f"  {table.name}: {table.files} files to {now.files}")
    numbers = ", ".join(str(one.number) for one in stay) or "none"
    progress.say(f"{len(found)} tables; publications that stay readable: {numbers} ({hours} hours of history)")
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["maintain", *sys.argv[1:]]))
