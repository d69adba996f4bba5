"""Counts the tokens of each client's document: a control for the leaderboard, words without their order."""

from __future__ import annotations

import sys

from ledgerlm.baselines.bag_of_tokens import CountConf, count_tokens
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: CountConf) -> StageResult:
    """Reads the documents, writes a feature set."""
    return ctx.publish(count_tokens(ctx.read("documents"), ctx.backbone(conf.backbone), conf))


JOB = Job(
    name="count",
    engine="spark",
    conf=CountConf,
    run=run,
    extras=("embed",),
    reads=("documents",),
    needs=("finetune",),
    writes=lambda stage: {"features": {"feature_set": (stage.conf.feature_set,)}},
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
