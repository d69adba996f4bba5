"""Makes documents by a text recipe (LLM-TRSR, HKFR or TALLRec), by rules or by a language model in Ray actors."""

from __future__ import annotations

import sys

from ledgerlm.enrich.writing import SummarizeConf, expectation, extras_of, write_texts
from ledgerlm.evaluation.report.texts import texts_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: SummarizeConf) -> StageResult:
    """Writes one text of each document as a document of the recipe's format, and sets aside what is not faithful."""
    texts = write_texts(
        ctx.read("documents"),
        ctx.read("clients") if conf.clients == "train" else None,
        conf,
        ray=ctx.ray,
        folder=ctx.staging,
        seed=ctx.seed,
        set_aside=ctx.quarantine,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    )
    return ctx.publish(texts.documents(conf, [texts_section(ctx.stage, texts.facts)]))


def expect(ctx: Context, conf: SummarizeConf) -> list[str]:
    """What the stage would take: texts, tokens, time and cost."""
    clients = ctx.maybe("clients") if conf.clients == "train" else None
    return [expectation(ctx.maybe("documents"), clients, conf)]


JOB = Job(
    name="summarize",
    engine="ray",
    conf=SummarizeConf,
    run=run,
    extras=lambda stage: extras_of(stage.conf),
    reads=("documents", "clients"),
    writes=lambda stage: {"documents": {"format": (stage.conf.format,)}},
    rows="balance",
    expect=expect,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
