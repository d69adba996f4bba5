"""Trains ALIMN networks and their ablations on texts and structured features, and scores every client with them."""

from __future__ import annotations

import sys
from dataclasses import replace

from ledgerlm.config import load_yaml
from ledgerlm.evaluation.report.fusion import training_section
from ledgerlm.heads.alimn.fusing import FuseConf, fuse, score_everyone
from ledgerlm.heads.vectors import tables_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: FuseConf) -> StageResult:
    """Stages the training clients, trains, publishes the heads, and scores everyone."""
    tables = {name: ctx.read(name) for name in tables_of([conf.sources])}
    states = ctx.read("text_states")
    ctx.ray.start()
    fused = fuse(
        ctx.read("labels"),
        ctx.read("clients"),
        tables,
        states,
        ctx.tasks(conf.tasks, kinds=["binary"]),
        conf=conf,
        facts=ctx.facts,
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        folder=ctx.staging,
        seed=ctx.seed,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    )
    heads = [head.save(ctx.artefacts / "heads") for head in fused]
    rows = heads[0].inputs(tables, states, domains=conf.domains)
    made = score_everyone(heads, rows, reasons=conf.reasons, keep=ctx.keep, progress=ctx.progress)
    return ctx.publish(replace(made, report=[training_section(ctx.stage, made.facts["heads"])]))


JOB = Job(
    name="fuse",
    engine="ray train + deepspeed",
    conf=FuseConf,
    run=run,
    extras=("train",),
    reads=("labels", "clients", "features", "embeddings", "text_states"),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
    uses=("torch", "transformers", "deepspeed"),
    rows="balance",
    results=2,
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
