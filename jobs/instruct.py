"""Tunes a language model to answer which class comes next, by instruction, input and answer; loss on the answer."""

from __future__ import annotations

import sys

from ledgerlm.config import load_yaml
from ledgerlm.evaluation.report.instruction import instruction_section
from ledgerlm.instruct.tuning import InstructConf, instruct, tell_examples
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: InstructConf) -> StageResult:
    """Builds the examples, tunes, chooses the length, calibrates, and writes the head."""
    task, dictionaries = ctx.task(conf.task), ctx.maybe("dictionaries")
    events, clients, labels = (ctx.read(table) for table in ("events", "clients", "labels"))
    examples = tell_examples(
        events, clients, labels, task, conf, spec=ctx.spec, dictionaries=dictionaries, seed=ctx.seed
    )
    head, tuning = instruct(
        examples,
        task,
        conf,
        ray=ctx.ray,
        base=ctx.backbone(conf.base),
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        staging=ctx.staging,
        seed=ctx.seed,
        keep=ctx.keep,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    )
    head = head.save(ctx.artefacts / "instruct")
    return ctx.publish(tuning.made(head, ctx.stage, [instruction_section(ctx.stage, tuning)]))


JOB = Job(
    name="instruct",
    engine="ray train + deepspeed",
    conf=InstructConf,
    run=run,
    extras=("train",),
    reads=("events", "clients", "labels", "dictionaries?"),
    uses=("torch", "transformers", "peft", "deepspeed"),
    needs=("finetune",),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
