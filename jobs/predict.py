"""Scores every labelled row with tuned language models: probabilities over the closed set of answers."""

from __future__ import annotations

import sys

from ledgerlm.instruct.forecasting import PredictConf, predict
from ledgerlm.instruct.model import InstructedHead
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: PredictConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit."""
    known = [head for stage in conf.stages for head in ctx.facts(stage)["heads"]]
    made = predict(
        [(head, InstructedHead.load(ctx.artefacts / "instruct", head["head_id"])) for head in known],
        events=ctx.read("events"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        dictionaries=ctx.maybe("dictionaries"),
        spec=ctx.spec,
        conf=conf,
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="predict",
    engine="spark",
    conf=PredictConf,
    run=run,
    extras=("embed",),
    reads=("events", "clients", "labels", "dictionaries?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("torch", "transformers", "peft"),
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
