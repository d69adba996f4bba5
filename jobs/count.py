"""Counts the tokens of each client's document: a control for the leaderboard, words without their order."""

from __future__ import annotations

import sys

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.baselines.bag_of_tokens import bag_of_tokens
from ledgerlm.config import Conf, ModelRef
from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class CountConf(Conf):
    """Settings of the count job."""

    format: str = Field("compact", description="format of the documents")
    backbone: ModelRef | None = Field(
        None, description="finetune stage or backbone folder whose tokenizer is used; left out, the latest such stage"
    )
    feature_set: str = Field("bag_of_tokens", description="name of the features written")


def run(ctx: Context, conf: CountConf) -> StageResult:
    """Reads the documents, writes a feature set."""
    documents = ctx.read("documents").where(F.col("format") == conf.format)
    folder = ctx.backbone(conf.backbone)
    features = bag_of_tokens(documents, folder).withColumn("feature_set", F.lit(conf.feature_set))
    written = ctx.write("features", features, {"feature_set": (conf.feature_set,)})
    rows = documents.count()
    if not rows or written.rows != rows:
        raise DataError(
            f"{rows} documents of format '{conf.format}' gave {written.rows} rows of features; add a serialize stage "
            "with that format, or run the stage again"
        )
    return StageResult(
        rows_in=rows,
        rows_out=written.rows,
        facts={"feature_sets": [conf.feature_set], "tokenizer": folder.name},
    )


JOB = Job(
    name="count",
    engine="spark",
    conf=CountConf,
    run=run,
    reads=("documents",),
    needs=("finetune",),
    writes=lambda stage: {"features": {"feature_set": (stage.conf.feature_set,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
