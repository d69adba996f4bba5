"""Turns each client's history before its `as_of` into a document of one format, or all its events into windows."""

from __future__ import annotations

import sys

from ledgerlm.lake.slices import predicate
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.documents import SerializeConf, Standing, tell_histories


def run(ctx: Context, conf: SerializeConf) -> StageResult:
    """Writes the texts of one format, then counts their events again to see that none leaked in and none was lost."""
    dirty, before = ctx.dirty(), ctx.before("windows") if conf.windows else None
    standing = None
    if dirty is not None and before is not None:
        standing = Standing(windows=before.where(predicate(conf.slices["windows"])), dirty=dirty, keep=ctx.keep)
    made = tell_histories(
        ctx.read("events"),
        ctx.read("clients"),
        ctx.tonight(conf),
        spec=ctx.spec,
        end=ctx.end(conf.as_of),
        labels=ctx.maybe("labels") if conf.labels else None,
        dictionaries=ctx.maybe("dictionaries"),
        standing=standing,
    )
    return ctx.publish(made)


JOB = Job(
    name="serialize",
    engine="spark",
    conf=SerializeConf,
    run=run,
    reads=lambda stage: stage.conf.reads,
    writes=lambda stage: stage.conf.slices,
    follows=("events", "clients", "labels", "changes"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
