"""Makes campaign lists: whom each campaign should contact under its budget, with expected response and cost."""

from __future__ import annotations

import sys

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.backtest import backtest_block
from ledgerlm.applications.target import Campaign, campaign_lists, campaign_policy, campaign_totals
from ledgerlm.jobs.recommend import (
    ApplicationConf,
    blocked_block,
    blocked_counts,
    examples_block,
    played,
    prepare,
    result,
)
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class TargetConf(ApplicationConf):
    """Settings of the target job."""

    campaigns: tuple[Campaign, ...] = Field(min_length=1, description="the campaigns, each with cost and budget")


def run(ctx: Context, conf: TargetConf) -> StageResult:
    """Fills each campaign's list from the most profitable client down, and looks what it would have earned."""
    ready = prepare(ctx, conf, conf.campaigns)
    policy = campaign_policy(conf.campaigns, conf.policy)
    judged = campaign_lists(
        ready.candidates, conf.campaigns, ready.clients, policy, days=conf.evidence.days, contacts=ready.contacts
    )
    kept = ctx.keep(judged)
    blocked = blocked_counts(kept)
    chosen = kept.where("blocked IS NULL")
    rows = chosen.drop("blocked").withColumn("head_id", F.lit(ready.head_id))
    written = ctx.write("campaign_lists", rows, {"head_id": (ready.head_id,)})
    columns = ["campaign", "clients", "expected_responses", "cost", "expected_profit"]
    totals = [[row[name] for name in columns] for row in campaign_totals(chosen).orderBy("campaign").collect()]
    tried = played(ctx, ready, policy, conf.campaigns)
    blocks = [
        {"kind": "table", "heading": "Campaigns", "columns": columns, "rows": totals},
        examples_block(chosen.where("rank <= 3"), "expected_value"),
        blocked_block(blocked),
        backtest_block(tried, "Backtest"),
    ]
    return result(
        ctx, "Campaign lists", table="campaign_lists", written=written, blocked=blocked, tried=tried, blocks=blocks
    )


JOB = Job(
    name="target",
    engine="spark",
    conf=TargetConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"campaign_lists": {"head": (stage.conf.scores,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
