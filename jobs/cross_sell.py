"""Finds cross-sell and up-sell candidates: clients who lack a product and are likely to want it."""

from __future__ import annotations

import sys
from dataclasses import replace

from pydantic import Field
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from ledgerlm.applications.backtest import backtest_block
from ledgerlm.applications.cross_sell import Product, holders, with_kind, without_holders
from ledgerlm.applications.recommend import recommend
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


class CrossSellConf(ApplicationConf):
    """Settings of the cross_sell job."""

    products: tuple[Product, ...] = Field(min_length=1, description="the products, each with how it shows who has it")


def run(ctx: Context, conf: CrossSellConf) -> StageResult:
    """Leaves out who holds a product, ranks the others, and looks what the candidates would have brought."""
    ready = prepare(ctx, conf, conf.products)
    dictionaries = ctx.maybe("dictionaries")
    held = holders(ctx.read("events"), ready.clients, ready.candidates, conf.products, dictionaries)
    held = ctx.keep(held)
    free = without_holders(ready.candidates, held).localCheckpoint(storageLevel=StorageLevel.DISK_ONLY)
    ready = replace(ready, candidates=free)
    days = conf.evidence.days
    judged = recommend(ready.candidates, conf.products, ready.clients, conf.policy, days=days, contacts=ready.contacts)
    kept = ctx.keep(with_kind(judged, conf.products))
    blocked = {"held": held.count(), **blocked_counts(kept)}
    chosen = kept.where("blocked IS NULL")
    rows = chosen.drop("blocked").withColumnRenamed("offer", "product").withColumn("head_id", F.lit(ready.head_id))
    written = ctx.write("cross_sell", rows, {"head_id": (ready.head_id,)})
    counted = chosen.groupBy("kind", "offer").agg(
        F.count(F.lit(1)).alias("clients"), F.avg("probability").alias("p"), F.sum("expected_value").alias("value")
    )
    table = [list(row) for row in counted.orderBy("kind", "offer").collect()]
    tried = played(ctx, ready, conf.policy, conf.products)
    columns = ["kind", "product", "candidates", "mean probability", "expected worth"]
    blocks = [
        {"kind": "table", "heading": "Products", "columns": columns, "rows": table},
        examples_block(chosen.where("rank = 1"), "expected_value"),
        blocked_block(blocked),
        backtest_block(tried, "Backtest"),
    ]
    return result(
        ctx, "Cross-sell and up-sell", table="cross_sell", written=written, blocked=blocked, tried=tried, blocks=blocks
    )


JOB = Job(
    name="cross_sell",
    engine="spark",
    conf=CrossSellConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"cross_sell": {"head": (stage.conf.scores,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
