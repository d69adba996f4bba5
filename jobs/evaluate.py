"""Compares representations under one protocol: a leaderboard with intervals, and what the report draws."""

from __future__ import annotations

import sys

from ledgerlm.evaluation.study import EvaluateConf, evaluate
from ledgerlm.heads.parallel import FitStore
from ledgerlm.heads.vectors import tables_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: EvaluateConf) -> StageResult:
    """Reads the labelled sample, fits every fold, and judges."""
    ctx.ray.start()
    made = evaluate(
        ctx.read("labels"),
        ctx.read("clients"),
        {name: ctx.read(name) for name in tables_of(conf.representations.values())},
        ctx.tasks(conf.tasks),
        conf,
        name=ctx.stage,
        bayes=ctx.maybe("bayes"),
        reachable=ctx.maybe("reachable"),
        facts=ctx.facts,
        seed=ctx.seed,
        keep=ctx.keep,
        progress=ctx.progress,
        store=FitStore(ctx.staging / "fits", lambda: ctx.failpoint("after_fit")),
    )
    return ctx.publish(made)


JOB = Job(
    name="evaluate",
    engine="ray + lightgbm",
    conf=EvaluateConf,
    run=run,
    extras=("ray",),
    reads=("labels", "clients", "features?", "embeddings?", "bayes?", "reachable?"),
    writes=lambda stage: {"leaderboard": {"stage": (stage.name,)}},
    uses=("lightgbm", "scikit-learn"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
