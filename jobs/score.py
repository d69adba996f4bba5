"""Scores every client that has the vectors of a head: probabilities, prediction, decile and the top reasons."""

from __future__ import annotations

import sys

from ledgerlm.heads.model import Head, ScoreConf, score
from ledgerlm.heads.vectors import tables_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: ScoreConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit; bad vectors are set aside."""
    named = conf.heads or [head for stage in conf.stages for head in ctx.heads(stage)]
    heads = [Head.load(ctx.artefacts / "heads", head_id) for head_id in dict.fromkeys(named)]
    tables = {name: ctx.read(name) for name in tables_of(head.card.sources for head in heads)}
    return ctx.publish(
        score(heads, tables, reasons=conf.reasons, night=ctx.night, keep=ctx.keep, progress=ctx.progress)
    )


JOB = Job(
    name="score",
    engine="spark",
    conf=ScoreConf,
    run=run,
    reads=("features?", "embeddings?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("lightgbm",),
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
