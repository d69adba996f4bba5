"""Recommends offers to clients: goals to a catalogue, ranked by probability and value, within the contact policy."""

from __future__ import annotations

import sys

from ledgerlm.applications.pricing import Known
from ledgerlm.applications.recommend import RecommendConf, recommend
from ledgerlm.applications.scored import choose_scores
from ledgerlm.evaluation.report.offers import offers_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: RecommendConf) -> StageResult:
    """Writes each client's offers, best first, those that the policy allows."""
    scored = choose_scores(ctx.read("scores"), ctx.heads(conf.scores), ctx.task(conf.task), conf)
    chosen = recommend(scored, Known.of(ctx.read, ctx.maybe), conf, seed=ctx.seed, keep=ctx.keep)
    section = offers_section(ctx.stage, "Recommendations", "Offers", chosen)
    return ctx.publish(chosen.made(ctx.stage, [section]))


JOB = Job(
    name="recommend",
    engine="spark",
    conf=RecommendConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"recommendations": {"stage": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
