"""Reads each client's sentences with a backbone: one state a sentence, and the client's mean as features."""

from __future__ import annotations

import datetime as dt
import sys

from ledgerlm.events.asked import asked
from ledgerlm.heads.alimn.reading import ReadConf, read_clients
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: ReadConf) -> StageResult:
    """Writes every client's states and their mean, as of when the describe stage told of them."""
    as_of = dt.datetime.fromisoformat(ctx.facts("describe")["as_of"])
    everyone = asked(ctx.read("clients"), ctx.maybe("labels"), as_of)
    read = read_clients(
        ctx.read("sentences"),
        everyone,
        conf,
        backbone=ctx.backbone(conf.backbone),
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(read.made())


JOB = Job(
    name="read",
    engine="spark",
    conf=ReadConf,
    run=run,
    extras=("embed",),
    reads=("sentences", "clients", "labels?"),
    needs=("describe", "finetune"),
    writes=lambda stage: {
        "text_states": {"state_set": (stage.conf.state_set,)},
        "features": {"feature_set": (stage.conf.state_set,)},
    },
    uses=("torch", "transformers"),
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
