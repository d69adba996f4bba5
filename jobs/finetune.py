"""Trains a backbone on training clients' documents: tokenizer, windows, Ray Train with DeepSpeed, a model folder."""

from __future__ import annotations

import sys

from ledgerlm.backbone.finetune import ENRICHED
from ledgerlm.backbone.finetuning import finetune_backbone
from ledgerlm.backbone.preparing import FinetuneConf, find_base, gather_texts
from ledgerlm.config import load_yaml
from ledgerlm.lake.lake import Lake
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: FinetuneConf) -> StageResult:
    """Prepares the windows, trains, and leaves the backbone under `artefacts/backbones/`."""
    base = find_base(conf, ctx.backbone)  # before anything is started
    lakes = [ctx.read, *(Lake(root, ctx.spark).read for root in conf.more_lakes)]
    trained = finetune_backbone(
        gather_texts(lakes, conf),
        conf,
        ray=ctx.ray,
        base=base,
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        staging=ctx.staging,
        folder=ctx.artefacts / "backbones",
        seed=ctx.seed,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    )
    return ctx.publish(trained.made())


JOB = Job(
    name="finetune",
    engine="ray train + deepspeed",
    conf=FinetuneConf,
    run=run,
    reads=lambda stage: ("documents", "clients", *(("enriched_documents",) if ENRICHED in stage.conf.formats else ())),
    sources=lambda stage: stage.conf.more_lakes,
    uses=("torch", "transformers", "peft", "deepspeed"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
