"""Trains a backbone on training clients' documents: tokenizer, windows, Ray Train with DeepSpeed, a model folder."""

from __future__ import annotations

import sys

from ledgerlm.backbone.finetune import WINDOWED
from ledgerlm.backbone.finetuning import finetune_backbone
from ledgerlm.backbone.preparing import FinetuneConf, find_base, gather_texts, windows_to_learn
from ledgerlm.config import load_yaml
from ledgerlm.lake.lake import Lake
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.windows import ToldWindows


def run(ctx: Context, conf: FinetuneConf) -> StageResult:
    """Prepares the windows, trains, and leaves the backbone under `artefacts/backbones/`."""
    base = find_base(conf, ctx.backbone)  # before anything is started
    lakes = [ctx.read, *(Lake(root, ctx.spark).read for root in conf.more_lakes)]
    windows = None
    if WINDOWED in conf.formats:
        stage = conf.serialize or "serialize"
        told = ToldWindows.of(ctx.facts(stage), stage)
        asked = told.asked(ctx.read("clients"), ctx.maybe("labels"))
        windows = windows_to_learn(told.of_table(ctx.read("windows")), asked)
    trained = finetune_backbone(
        gather_texts(lakes, conf, windows),
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
    extras=("train",),
    reads=lambda stage: stage.conf.reads,
    sources=lambda stage: stage.conf.more_lakes,
    uses=("torch", "transformers", "peft", "deepspeed"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
