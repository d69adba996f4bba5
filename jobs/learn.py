"""Trains a head that reads histories event by event (LSTM, GRU or 1-D CNN) on the labels of one task."""

from __future__ import annotations

import sys
from dataclasses import replace

from ledgerlm.evaluation.report.learning import learning_section
from ledgerlm.heads.recurrent.learning import LearnConf, learn
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: LearnConf) -> StageResult:
    """Lays out training rows as Parquet, trains on Ray Train, and keeps the head under its id."""
    task, heads = ctx.task(conf.task), ctx.artefacts / "heads"
    ctx.ray.start()
    head = learn(
        task,
        events=ctx.read("events"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        dictionaries=ctx.maybe("dictionaries"),
        spec=ctx.spec,
        conf=conf,
        files=ctx.plan.files,
        base=heads / ctx.head(conf.base) if conf.base else None,
        folder=ctx.staging,
        seed=ctx.seed,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    ).save(heads)
    section = learning_section(ctx.stage, conf.network.kind, task.name, head.curve)
    return ctx.publish(replace(head.made(), report=[section]))


JOB = Job(
    name="learn",
    engine="spark + ray train",
    conf=LearnConf,
    run=run,
    extras=("ray", "embed"),
    reads=("events", "clients", "labels", "dictionaries?"),
    uses=("torch",),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
