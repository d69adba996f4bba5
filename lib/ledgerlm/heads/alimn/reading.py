"""Reads each client's sentences with a backbone: one state a sentence, and the client's mean as features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, ModelRef
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.heads.alimn.states import (
    different_sentences,
    mean_features,
    read_sentences,
    state_definition,
    states_of,
)
from ledgerlm.lake.made import Made, Rows
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_ROWS_A_TASK = 2_000


class ReadConf(Conf):
    """Settings of the read job."""

    state_set: str = Field("text", pattern=r"^[A-Za-z0-9_]+$", description="name of the states and features written")
    backbone: ModelRef | None = Field(
        None,
        description="stage that left a backbone (finetune or distil), or a backbone folder; left out, the latest "
        "finetune stage before this one",
    )
    prompt: str | None = Field(None, description="task prompt that the backbone reads before each sentence")
    last_k: int = Field(2, ge=1, description="hidden layers averaged, counted from the last")
    partitions: int | None = Field(
        None, ge=1, description="Spark tasks that read; left out, one for each 2,000 sentences"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """What the backbone made of the sentences.

    Attributes:
        states: rows of `text_states`, one a client and instant that was asked for.
        features: rows of `features`, one for each of them: the mean of the states.
        unread: rows for `quarantine`: sentences without a state.
        state_set: name of the set.
        clients: rows of `states`.
        facts: backbone, definition, sentences read and not read.
    """

    states: DataFrame
    features: DataFrame
    unread: DataFrame
    state_set: str
    clients: int
    facts: Mapping[str, Any]

    def made(self) -> Made:
        """For the lake. A sentence without a state takes no client away: nothing is quarantined in its place."""
        return Made(
            rows_in=self.clients,
            rows_out=self.clients,
            tables={
                "text_states": Rows(frame=self.states, slice={"state_set": (self.state_set,)}),
                "features": Rows(frame=self.features, slice={"feature_set": (self.state_set,)}),
            },
            aside=self.unread,
            quarantined=0,
            facts=self.facts,
        )


def read_clients(
    sentences: DataFrame, asked: DataFrame, conf: ReadConf, *, backbone: Path, keep: Keep, progress: Progress
) -> Read:
    """Reads each different sentence once, and gathers every client's states and their mean.

    Args:
        sentences: the `sentences` table.
        asked: client_id, as_of: who has states, as of when; empty ones where nothing is said.
        conf: prompt, layers and name of the set.
        backbone: its folder.
        keep: for frames that are read again: the model must run once.
        progress: what the user sees.
    """
    from ledgerlm.backbone import model  # torch and transformers take seconds to import
    from ledgerlm.backbone.embedder import resolve_definition

    folder, backbone_id = str(backbone), model.backbone_id(backbone)
    definition = resolve_definition(folder, state_definition(conf.prompt, conf.last_k), text_format="notes", fields=())
    different = different_sentences(sentences, conf.prompt)
    spread = different.repartition(conf.partitions or tasks_for(different.count(), _ROWS_A_TASK))
    read = keep(read_sentences(spread, sentences, folder=folder, backbone_id=backbone_id, definition=definition))
    with progress.task("Reading sentences"):
        figures = read.agg(F.count("*").alias("all"), F.count_if(F.col("reason").isNotNull()).alias("unread")).first()
    rows = keep(states_of(sentences, read, asked))
    states = rows.drop("mean").withColumns({"state_set": F.lit(conf.state_set), "backbone_id": F.lit(backbone_id)})
    return Read(
        states=states,
        features=mean_features(rows, conf.state_set),
        unread=_unread(read),
        state_set=conf.state_set,
        clients=rows.count(),
        facts={
            "state_set": conf.state_set,
            "backbone": folder,
            "backbone_id": backbone_id,
            "definition": definition.model_dump(mode="json"),
            "different_sentences": figures["all"] if figures is not None else 0,
            "unread_sentences": figures["unread"] if figures is not None else 0,
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
