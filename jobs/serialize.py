"""Turns each client's history before its `as_of` into a document of one format, or all its events into windows."""

from __future__ import annotations

import sys

from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.documents import SerializeConf, tell_histories


def run(ctx: Context, conf: SerializeConf) -> StageResult:
    """Writes the texts of one format, then counts all events again to see that none leaked in and none was lost."""
    made = tell_histories(
        ctx.read("events"),
        ctx.read("clients"),
        conf,
        spec=ctx.spec,
        end=ctx.end(conf.as_of),
        labels=ctx.maybe("labels") if conf.labels else None,
        dictionaries=ctx.maybe("dictionaries"),
    )
    return ctx.publish(made)


JOB = Job(
    name="serialize",
    engine="spark",
    conf=SerializeConf,
    run=run,
    reads=lambda stage: ("events", "clients", "dictionaries?", *(("labels?",) if stage.conf.labels else ())),
    writes=lambda stage: stage.conf.slices,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
