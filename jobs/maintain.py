"""Upkeep between nights: compacts small files and removes those that no kept publication reads.

Compaction holds the lake's lease: it moves files that a night may be about to change. Removal needs none: what it
removes was taken out of its table a week ago or more, and what a run is writing at the time is younger.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence

from ledgerlm.lake.lake import Lake
from ledgerlm.lake.leases import Holder, leased, shortened
from ledgerlm.lake.upkeep import compact, hours_kept, kept, remove_old, sizes
from ledgerlm.progress import Progress
from ledgerlm.runs.engines import Engines
from ledgerlm.runs.pipeline import load_pipeline


def maintain(file: str, overrides: Sequence[str] = (), *, most: int = 30, days: int = 30) -> int:
    """Compacts fragmented tables and removes old files.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        most: newest publications that stay readable.
        days: and all publications of so many days.

    Returns:
        Exit code.

    Raises:
        ConfigError: there is something to compact, and a run is at work on the lake.
    """
    pipeline = load_pipeline(file, overrides)
    progress, engines = Progress(), Engines(pipeline)
    try:
        lake = Lake(pipeline.home.root, engines.spark)
        stay = kept(lake, most, days)
        hours = hours_kept(stay)
        found = sizes(lake)
        small = [table.name for table in found if table.fragmented]
        with progress.running(), progress.task("Upkeep of tables", total=len(small) + len(found)) as bar:
            if small:
                holder = Holder(pipeline=pipeline.name, run_id=f"maintain-{uuid.uuid4().hex[:12]}")
                with leased(lake, holder, pipeline.conf.lease_minutes * 60) as lease:
                    for name in small:
                        lease.check()
                        compact(lake, name)
                        bar.advance()
            for table in found:
                remove_old(lake, table.name, hours)
                bar.advance()
            shortened(lake)
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
