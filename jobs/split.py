"""Draws the test clients anew: by a hash of their id, or the newest labels, for a test in time."""

from __future__ import annotations

import sys

from ledgerlm.events.splits import SplitConf, split_anew
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: SplitConf) -> StageResult:
    """Writes a split of its own, which the stages after it see in place of the data set's."""
    return ctx.publish(split_anew(ctx.read("clients"), ctx.read("labels"), conf, name=ctx.stage))


JOB = Job(
    name="split",
    engine="spark",
    conf=SplitConf,
    run=run,
    reads=("clients", "labels"),
    writes=lambda stage: {"splits": {"stage": (stage.name,)}},
    rows="balance",
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
