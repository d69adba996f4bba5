"""Lays axes through the states of training clients' texts, so that embeddings and states have fewer numbers."""

from __future__ import annotations

import sys

from ledgerlm.backbone.projecting import ProjectConf, fit_projection, training_documents, training_windows
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.windows import ToldWindows


def run(ctx: Context, conf: ProjectConf) -> StageResult:
    """Reads a sample of the texts with the backbone, and leaves the axes under `artefacts/projections/`."""
    clients = ctx.read("clients")
    if conf.source == "windows":
        stage = conf.serialize or "serialize"
        told = ToldWindows.of(ctx.facts(stage), stage)
        texts = training_windows(ctx.read("windows"), told.asked(clients, ctx.maybe("labels")), clients, told)
    else:
        texts = training_documents(ctx.read("documents"), clients, conf)
    made = fit_projection(
        texts,
        conf,
        backbone=ctx.backbone(conf.backbone),
        home=ctx.artefacts / "projections",
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="project",
    engine="spark",
    conf=ProjectConf,
    run=run,
    extras=("embed",),
    reads=lambda stage: stage.conf.reads,
    needs=("finetune",),
    uses=("torch", "transformers", "scikit-learn"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
