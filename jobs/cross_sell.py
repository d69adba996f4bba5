"""Finds cross-sell and up-sell candidates: clients who lack a product and are likely to want it."""

from __future__ import annotations

import sys

from ledgerlm.applications.cross_sell import CrossSellConf, cross_sell
from ledgerlm.applications.pricing import Known
from ledgerlm.applications.scored import choose_scores
from ledgerlm.evaluation.report.offers import offers_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: CrossSellConf) -> StageResult:
    """Writes for each client the products that it lacks, best first."""
    scored = choose_scores(ctx.read("scores"), ctx.heads(conf.scores), ctx.task(conf.task), conf)
    chosen = cross_sell(scored, Known.of(ctx.read, ctx.maybe), conf, seed=ctx.seed, keep=ctx.keep)
    section = offers_section(ctx.stage, "Cross-sell and up-sell", "Products", chosen)
    return ctx.publish(chosen.made(ctx.stage, [section]))


JOB = Job(
    name="cross_sell",
    engine="spark",
    conf=CrossSellConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"cross_sell": {"stage": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
