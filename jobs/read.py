"""Reads each client's sentences with a backbone: one state a sentence, and the client's mean as features."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.events.asked import asked
from ledgerlm.heads.alimn.states import (
    different_sentences,
    mean_features,
    read_sentences,
    state_definition,
    states_of,
)
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ReadConf(Conf):
    """Settings of the read job."""

    state_set: str = Field("text", pattern=r"^[A-Za-z0-9_]+$", description="name of the states and features written")
    backbone: str | None = Field(None, description="backbone folder; left out, the one of the stage `of`")
    of: StageName = Field(StageName("finetune"), description="stage that left the backbone")
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
    different = different_sentences(sentences, conf.prompt)
    spread = different.repartition(conf.partitions or tasks_for(different.count(), 2_000))
    with ctx.progress.task("Reading sentences"):
        read = ctx.keep(
            read_sentences(spread, sentences, folder=folder, backbone_id=backbone_id, definition=definition)
        )
        aside = ctx.quarantine(_unread(read))
    as_of = dt.datetime.fromisoformat(ctx.facts("describe")["as_of"])
    labels = ctx.maybe("labels")
    everyone = asked(ctx.read("clients"), labels, as_of)
    rows = states_of(sentences, read, everyone).withColumn("state_set", F.lit(conf.state_set))
    of_set = rows.withColumn("backbone_id", F.lit(backbone_id)).drop("mean")
    states = ctx.write("text_states", of_set, {"state_set": (conf.state_set,)})
    features = ctx.write("features", mean_features(rows, conf.state_set), {"feature_set": (conf.state_set,)})
    sentences_read = read.count()
    if states.rows != features.rows:
        raise DataError(f"{states.rows} clients have states and {features.rows} features; run the stage again")
    return StageResult(
        rows_in=states.rows,
        rows_out=states.rows,
        facts={
            "state_set": conf.state_set,
            "backbone": folder,
            "backbone_id": backbone_id,
            "definition": definition.model_dump(mode="json"),
            "different_sentences": sentences_read,
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
    reads=("sentences", "clients", "labels?"),
    writes=lambda stage: {
        "text_states": {"state_set": (stage.conf.state_set,)},
        "features": {"feature_set": (stage.conf.state_set,)},
    },
    uses=("torch", "transformers"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
