"""Compares finished heads by their scores on the same labelled rows: figures with intervals, by class and slice."""

from __future__ import annotations

import sys

from ledgerlm.evaluation.comparison import CompareConf, compare
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: CompareConf) -> StageResult:
    """Reads labels beside all scores, judges each task and slice, and writes leaderboard rows."""
    made = compare(
        ctx.read("labels"),
        ctx.read("clients"),
        ctx.read("scores"),
        ctx.tasks(conf.tasks, kinds=("binary", "multiclass")),
        conf,
        heads={method: ctx.heads(source) for method, source in conf.methods.items()},
        name=ctx.stage,
        bayes=ctx.maybe("bayes"),
        reachable=ctx.maybe("reachable"),
        seed=ctx.seed,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="compare",
    engine="spark + numpy",
    conf=CompareConf,
    run=run,
    finds=True,
    reads=("labels", "clients", "scores", "bayes?", "reachable?"),
    writes=lambda stage: {"leaderboard": {"stage": (stage.name,)}},
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
