"""Distils a large teacher into a small student that reads the same sentences: Ray Train, DeepSpeed, KL divergence."""

from __future__ import annotations

import sys
from pathlib import Path

from ledgerlm.config import load_yaml
from ledgerlm.heads.alimn.distilling import DistilConf, distil
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: DistilConf) -> StageResult:
    """Reads the training clients' sentences with the teacher, trains the student, and leaves it as a backbone."""
    made = distil(
        ctx.read("sentences"),
        ctx.read("clients"),
        conf,
        ray=ctx.ray,
        teacher=Path(conf.teacher or ctx.facts(conf.of or "finetune")["backbone"]),
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        staging=ctx.staging,
        folder=ctx.artefacts / "backbones",
        seed=ctx.seed,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="distil",
    engine="ray train + deepspeed",
    conf=DistilConf,
    run=run,
    extras=("train",),
    reads=("sentences", "clients"),
    needs=("finetune",),
    uses=("torch", "transformers", "deepspeed"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
