"""Rewrites documents into other formats by an engine in a pool of Ray actors, and keeps what is faithful."""

from __future__ import annotations

import sys

from ledgerlm.enrich.writing import EnrichConf, expectation, extras_of, write_texts
from ledgerlm.evaluation.report.texts import texts_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: EnrichConf) -> StageResult:
    """Writes the rewrites that passed the check, and sets the others aside."""
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
    return ctx.publish(texts.rewrites(ctx.stage, [texts_section(ctx.stage, texts.facts)]))


def expect(ctx: Context, conf: EnrichConf) -> list[str]:
    """What the stage would take: texts, tokens, time and cost."""
    clients = ctx.maybe("clients") if conf.clients == "train" else None
    return [expectation(ctx.maybe("documents"), clients, conf)]


JOB = Job(
    name="enrich",
    engine="ray",
    conf=EnrichConf,
    run=run,
    extras=lambda stage: extras_of(stage.conf),
    reads=("documents", "clients"),
    writes=lambda stage: {"enriched_documents": {"stage": (stage.name,)}},
    rows="balance",
    expect=expect,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
