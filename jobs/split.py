"""Draws the test clients anew: by a hash of their id, or the newest labels, for a test in time."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.events.spec import SplitSpec
from ledgerlm.events.splits import with_newest_split, with_split
from ledgerlm.lake.made import Made, Rows
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class SplitConf(Conf):
    """Settings of the split job."""

    rule: Literal["hash", "time"] = Field(
        "hash", description="hash: a share of the labelled clients by a hash of their id; time: those labelled last"
    )
    share: float = Field(0.3, gt=0, lt=1, description="share of labelled clients that are test clients")
    seed: int = Field(42, description="of the hash")


def run(ctx: Context, conf: SplitConf) -> StageResult:
    """Writes a split of its own, which the stages after it see in place of the data set's."""
    clients, labels = ctx.read("clients"), ctx.read("labels")
    plain = clients.drop("split", "run_id")
    if conf.rule == "time":
        marked = with_newest_split(plain, labels, conf.share)
    else:
        rule = SplitSpec(rule="hash", share=conf.share, seed=conf.seed)
        marked = with_split(plain, labels.select("client_id").distinct(), rule)
    named = marked.select(F.lit(ctx.stage).alias("stage"), "client_id", "split")
    return ctx.publish(
        Made(
            rows_in=clients.count(),
            tables={"splits": Rows(frame=named, slice={"stage": (ctx.stage,)})},
            facts={"rule": conf.rule},
            tell=lambda own: {row["split"]: row["count"] for row in own["splits"].groupBy("split").count().collect()},
        )
    )


JOB = Job(
    name="split",
    engine="spark",
    conf=SplitConf,
    run=run,
    reads=("clients", "labels"),
    writes=lambda stage: {"splits": {"stage": (stage.name,)}},
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
