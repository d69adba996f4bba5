"""Scores labelled rows with tuned language models: prompts rendered, read by Spark, and published as scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.engines.gpus import DEVICE
from ledgerlm.heads.publish import scored
from ledgerlm.instruct.model import InstructedHead
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
    device: str = Field(
        "cpu", pattern=DEVICE, description="cpu, or cuda: the GPU that Spark gave the task, one model on each"
    )
    batch_tokens: int = Field(8192, ge=64, description="most tokens of a forward pass; a GPU wants 131072 or more")
    partitions: int | None = Field(
        None, ge=1, description="Spark tasks; left out, one for a thousand prompts, and eight at the least"
    )


def predict(
    heads: Sequence[tuple[Mapping[str, Any], InstructedHead]],
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
        heads: what is to be told of each, see the facts of the instruct job, and the head.
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
    """
    said, told = {}, []
    for facts, head in heads:
        task, length = head.card.task.name, conf.length or head.card.length
        examples = labels.where(labels["task"] == task).select("client_id", "as_of")
        prompts = head.inputs(examples, events, clients, spec=spec, dictionaries=dictionaries, length=length)
        partitions = conf.partitions or tasks_for(examples.count(), _PROMPTS_A_TASK)
        said[head.head_id] = head.transform(
            prompts.repartition(partitions), device=conf.device, batch_tokens=conf.batch_tokens
        )
        told.append({**facts, "head_id": head.head_id, "task": task, "length": length})
    return scored(said, told, keep=keep, progress=progress, text="Predicting")
