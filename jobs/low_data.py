"""The low-data study: how good each representation is when only a few clients have a label."""

from __future__ import annotations

import sys

from ledgerlm.evaluation.low_data import LowDataConf, low_data
from ledgerlm.heads.vectors import tables_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: LowDataConf) -> StageResult:
    """Draws, fits and judges for each task and method."""
    made = low_data(
        ctx.read("labels"),
        ctx.read("clients"),
        {name: ctx.read(name) for name in tables_of(conf.representations.values())},
        ctx.tasks(conf.tasks),
        conf,
        name=ctx.stage,
        facts=ctx.facts,
        seed=ctx.seed,
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="low_data",
    engine="local",
    conf=LowDataConf,
    run=run,
    finds=True,
    reads=("labels", "clients", "features?", "embeddings?"),
    writes=lambda stage: {"low_data": {"stage": (stage.name,)}},
    uses=("scikit-learn",),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
