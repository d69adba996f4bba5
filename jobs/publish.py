"""Publishes a night: one row that names the versions of all tables, once the scores have passed the gates."""

from __future__ import annotations

import sys

from ledgerlm.applications.gates import PublishConf
from ledgerlm.applications.publishing import publication
from ledgerlm.errors import DataError
from ledgerlm.lake.champions import champions
from ledgerlm.lake.latest import show_latest
from ledgerlm.lake.publications import PUBLICATIONS, PUBLISHED, publications, published
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: PublishConf) -> StageResult:
    """Judges the scores as of tonight and writes the publication; refused by a gate, readers stay with the last."""
    before = ctx.tables.version_before(PUBLICATIONS)
    scored = [head for stage in ctx.stages_of("score") for head in ctx.heads(stage)]
    made = publication(
        ctx.lake,
        {name: version for name in PUBLISHED if (version := ctx.pin(name)) is not None},
        conf,
        pipeline=ctx.pipeline.name,
        as_of=ctx.end(None),
        # A study scores labelled clients as of their labels; only a night scores everybody, and can be judged.
        heads=[] if ctx.night is None else scored,
        scored=scored,
        known=[] if before is None else publications(ctx.lake, before),
        champions={task: one.head_id for task, one in champions(ctx.lake).items()},
        keep=ctx.keep,
    )
    result = ctx.publish(made.made)
    if made.refusal is not None:
        raise DataError(made.refusal)
    if conf.views:
        # After the row: it decides what readers see, and a run that dies here goes on with the views.
        ctx.tables.check_lease()
        show_latest(ctx.lake, published(ctx.lake))
    return result


JOB = Job(
    name="publish",
    engine="spark",
    conf=PublishConf,
    run=run,
    reads=tuple(f"{name}?" for name in PUBLISHED),
    writes=(PUBLICATIONS,),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
