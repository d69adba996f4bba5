"""Draws the test clients anew: by a hash of their id, or the newest labels, for a test in time."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.spec import SplitSpec
from ledgerlm.events.splits import with_newest_split, with_split
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult


class SplitConf(JobConf):
    """Settings of the split job."""

    rule: Literal["hash", "time"] = Field(
        "hash", description="hash: a share of the labelled clients by a hash of their id; time: those labelled last"
    )
    share: float = Field(0.3, gt=0, lt=1, description="share of labelled clients that are test clients")
    seed: int = Field(42, description="of the hash")


def run(ctx: Context, conf: SplitConf) -> StageResult:
    """Rewrites the column `split` of clients."""
    clients, labels = ctx.read("clients", ctx.table_version("clients")), ctx.read("labels")
    plain = clients.drop("split", "run_id")
    if conf.rule == "time":
        marked = with_newest_split(plain, labels, conf.share)
    else:
        rule = SplitSpec(rule="hash", share=conf.share, seed=conf.seed)
        marked = with_split(plain, labels.select("client_id").distinct(), rule)
    rows_in = clients.count()
    written = ctx.write("clients", marked)
    if written.rows != rows_in:
        raise DataError(f"{rows_in} clients became {written.rows}; run the stage again")
    counted = ctx.read("clients", written.version).groupBy("split").agg(F.count(F.lit(1)).alias("rows")).collect()
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        tables={"clients": written.version},
        facts={"rule": conf.rule, **{row["split"]: row["rows"] for row in counted}},
    )


JOB = Job(name="split", engine="spark", conf=SplitConf, run=run, reads=("clients", "labels"), writes=("clients",))
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
