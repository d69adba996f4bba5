"""Makes campaign lists: whom each campaign should contact under its budget, with expected response and cost."""

from __future__ import annotations

import sys

from ledgerlm.applications.pricing import Known
from ledgerlm.applications.scored import choose_scores
from ledgerlm.applications.target import TargetConf, target
from ledgerlm.evaluation.report.offers import offers_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: TargetConf) -> StageResult:
    """Writes the list of each campaign, from the most profitable client down."""
    scored = choose_scores(ctx.read("scores"), ctx.heads(conf.scores), ctx.task(conf.task), conf)
    chosen = target(scored, Known.of(ctx.read, ctx.maybe), conf, seed=ctx.seed, keep=ctx.keep)
    section = offers_section(ctx.stage, "Campaign lists", "Campaigns", chosen)
    return ctx.publish(chosen.made(ctx.stage, [section]))


JOB = Job(
    name="target",
    engine="spark",
    conf=TargetConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"campaign_lists": {"stage": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
