"""Trains heads: one for each task on a chosen representation, calibrated on clients that no model had seen."""

from __future__ import annotations

import sys

from ledgerlm.heads.fitting import FitConf, described, fit_heads
from ledgerlm.heads.parallel import FitStore
from ledgerlm.heads.vectors import tables_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: FitConf) -> StageResult:
    """Trains, calibrates and writes a head for each task."""
    if conf.kind == "lightgbm":
        ctx.ray.start()
    heads = fit_heads(
        ctx.read("labels"),
        ctx.read("clients"),
        {name: ctx.read(name) for name in tables_of([conf.sources])},
        ctx.tasks(conf.tasks),
        conf,
        facts=ctx.facts,
        folder=ctx.staging,
        seed=ctx.seed,
        keep=ctx.keep,
        progress=ctx.progress,
        store=FitStore(ctx.staging / "fits", lambda: ctx.failpoint("after_fit")),
    )
    saved = []
    for head in heads:
        saved.append(head.save(ctx.artefacts / "heads"))
        ctx.failpoint(f"after_{head.card.task.name}")
    return ctx.publish(described(saved, conf.representation))


JOB = Job(
    name="fit",
    engine="ray + lightgbm",
    conf=FitConf,
    run=run,
    extras=lambda stage: ("ray",) if stage.conf.kind == "lightgbm" else (),
    reads=("labels", "clients", "features?", "embeddings?"),
    uses=("lightgbm",),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
