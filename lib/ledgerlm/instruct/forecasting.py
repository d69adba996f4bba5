"""Scores labelled rows with tuned language models: prompts rendered, read by Spark, and published as scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.heads.publish import scored
from ledgerlm.instruct.head import ADAPTER, load_instructed, model_folder, tokens_of
from ledgerlm.instruct.predict import Reading, score_prompts
from ledgerlm.instruct.prompts import body, tell
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec

_PROMPTS_A_TASK = 1_000


class PredictConf(Conf):
    """Settings of the predict job."""

    stages: tuple[StageName, ...] = Field(
        (StageName("instruct"),), min_length=1, description="instruct stages whose heads score"
    )
    length: int | None = Field(None, ge=1, description="events told; left out, what the instruct stage found best")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu or cuda")
    batch_tokens: int = Field(8192, ge=64, description="most tokens of a forward pass; a GPU wants 131072 or more")
    partitions: int | None = Field(
        None, ge=1, description="Spark tasks; left out, one for a thousand prompts, and eight at the least"
    )


def predict(
    heads: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    dictionaries: DataFrame | None,
    spec: DataSetSpec,
    conf: PredictConf,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Scores the labelled rows of each head's task whose client is known.

    Args:
        heads: of each `head_id` and what else is to be told of it; see the facts of the instruct job.
        folder: the artefacts' `instruct` folder.
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        dictionaries: the `dictionaries` table, if there is one.
        spec: the data set.
        conf: how prompts are read.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `heads.publish.scored`; each head's fact has the `length` of its prompts, too.

    Raises:
        ArtefactError: a head or its base model is missing or changed.
    """
    said, told = {}, []
    for head in heads:
        head_id = str(head["head_id"])
        card, home = load_instructed(folder.absolute(), head_id), folder.absolute() / head_id
        length = conf.length or card.length
        examples = labels.where(labels["task"] == card.task.name).select("client_id", "as_of")
        prompts = tell(events, clients, examples, spec, card.prompt, most=length, dictionaries=dictionaries)
        reading = Reading(
            model=str(model_folder(home, card)),
            adapter=str(home / ADAPTER) if card.adapter else None,
            tokens=tokens_of(home, card),
            device=conf.device,
            threads=int(labels.sparkSession.conf.get("spark.task.cpus", "1") or 1),
            batch_tokens=conf.batch_tokens,
        )
        partitions = conf.partitions or tasks_for(examples.count(), _PROMPTS_A_TASK)
        bodies = prompts.select("client_id", "as_of", body(length).alias("body")).repartition(partitions)
        said[head_id] = score_prompts(bodies, reading, card)
        told.append({**head, "task": card.task.name, "length": length})
    return scored(said, told, keep=keep, progress=progress, text="Predicting")
