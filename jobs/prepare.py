"""Makes structured features of client attributes, with further vectors appended, fitted on training clients."""

from __future__ import annotations

import sys

from ledgerlm.events.asked import asked
from ledgerlm.heads.structured import PrepareConf, prepare_features
from ledgerlm.heads.vectors import KEY
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: PrepareConf) -> StageResult:
    """Fits the pipeline on training clients, keeps it as an artefact, and writes everyone's features."""
    clients, labels = ctx.read("clients"), ctx.read("labels")
    made = prepare_features(
        clients,
        labels.select(*KEY).distinct() if ctx.spec.as_of is None else asked(clients, labels, ctx.end(None)),
        conf,
        tables={source.table: ctx.read(source.table) for source in conf.append},
        facts=ctx.facts,
        folder=ctx.artefacts / "structured" / conf.feature_set,
        keep=ctx.keep,
    )
    return ctx.publish(made)


JOB = Job(
    name="prepare",
    engine="spark",
    conf=PrepareConf,
    run=run,
    reads=("clients", "labels", "features?", "embeddings?"),
    writes=lambda stage: {"features": {"feature_set": (stage.conf.feature_set,)}},
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
