"""Reads each client's sentences with a backbone: one state a sentence, and the client's mean as features."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark import StorageLevel
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import as_of_rows
from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.states import (
    different_sentences,
    mean_features,
    read_sentences,
    state_definition,
    states_of,
)
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ReadConf(JobConf):
    """Settings of the read job."""

    state_set: str = Field("text", pattern=r"^[A-Za-z0-9_]+$", description="name of the states and features written")
    backbone: str | None = Field(None, description="backbone folder; left out, the one of the stage `of`")
    of: str = Field("finetune", description="stage that left the backbone")
    prompt: str | None = Field(None, description="task prompt that the backbone reads before each sentence")
    last_k: int = Field(2, ge=1, description="hidden layers averaged, counted from the last")
    partitions: int | None = Field(None, ge=1, description="Spark tasks that read; left out, one for each core")


def run(ctx: Context, conf: ReadConf) -> StageResult:
    """Reads each different sentence once, and writes every client's states and their mean."""
    from ledgerlm.backbone import model
    from ledgerlm.backbone.embedder import resolve_definition

    sentences = ctx.read("sentences")
    folder = str(Path(conf.backbone or ctx.facts(conf.of)["backbone"]).resolve())
    backbone_id = model.backbone_id(Path(folder))
    definition = resolve_definition(folder, state_definition(conf.prompt, conf.last_k), text_format="notes", fields=())
    asked = different_sentences(sentences, conf.prompt).repartition(
        conf.partitions or ctx.spark.sparkContext.defaultParallelism
    )
    with ctx.progress.task("Reading sentences"):
        read = read_sentences(asked, sentences, folder=folder, backbone_id=backbone_id, definition=definition)
        read = read.persist(StorageLevel.DISK_ONLY)
        aside = ctx.quarantine(_unread(read))
    as_of = dt.datetime.fromisoformat(ctx.facts("describe")["as_of"])
    labels = ctx.read("labels") if ctx.exists("labels") else None
    everyone = as_of_rows(ctx.read("clients"), labels, as_of)
    rows = states_of(sentences, read, everyone).withColumn("state_set", F.lit(conf.state_set))
    of_set = rows.withColumn("backbone_id", F.lit(backbone_id)).drop("mean")
    states = ctx.write("text_states", of_set, where=f"state_set = '{conf.state_set}'")
    features = ctx.write("features", mean_features(rows, conf.state_set), where=f"feature_set = '{conf.state_set}'")
    different = read.count()
    read.unpersist()
    if states.rows != features.rows:
        raise DataError(f"{states.rows} clients have states and {features.rows} features; run the stage again")
    return StageResult(
        rows_in=states.rows,
        rows_out=states.rows,
        tables={"text_states": states.version, "features": features.version, "quarantine": aside.version},
        facts={
            "state_set": conf.state_set,
            "backbone": folder,
            "backbone_id": backbone_id,
            "definition": definition.model_dump(mode="json"),
            "different_sentences": different,
            "unread_sentences": aside.rows,
        },
    )


def _unread(read: DataFrame) -> DataFrame:
    """Sentences without a state, for quarantine."""
    return read.where("reason IS NOT NULL").select(
        "reason",
        F.lit("sentence").alias("detail"),
        F.lit(None).cast("string").alias("source_file"),
        F.to_json(F.struct("text")).alias("payload"),
    )


JOB = Job(
    name="read",
    engine="spark",
    conf=ReadConf,
    run=run,
    reads=("sentences", "clients", "labels"),
    needs=("finetune", "distil", "describe"),
    writes=("text_states", "features", "quarantine"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
