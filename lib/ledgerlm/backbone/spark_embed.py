"""Embedding on Spark: documents through `mapInArrow`, one opened backbone per Python worker process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.config import Conf
from ledgerlm.engines.gpus import DEVICE, WorkerDevice, usable
from ledgerlm.engines.session import setting
from ledgerlm.errors import ArtefactError
from ledgerlm.files import here, share

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.backbone.embedder import Embedder

CARRIED = ("client_id", "as_of", "event_count_used", "event_count_cut", "input_hash")
_COMPUTED = "parts map<string, array<float>>, token_count int, events_dropped int, reason string"


class EmbedSettings(Conf):
    """How a worker runs the engine; nothing here changes a vector beyond rounding."""

    threads: int | None = Field(None, ge=1, description="torch's threads in a worker; left out, spark.task.cpus")
    device: str = Field(
        "cpu", pattern=DEVICE, description="cpu, or cuda: the GPU that Spark gave the task, one model on each"
    )
    pack_tokens: int = Field(4096, ge=16, description="most tokens of one forward pass; a GPU wants 65536 or more")
    buffer_rows: int = Field(2048, ge=1, description="documents that a worker holds and sorts by length at once")
    buffer_chars: int = Field(16_000_000, ge=1, description="characters at which that buffer counts as full")

    @property
    def settings(self) -> EmbedSettings:
        """These alone, of settings that hold others too."""
        return EmbedSettings.model_validate(self.model_dump(include=set(EmbedSettings.model_fields)))


def embed(
    documents: DataFrame,
    *,
    folder: str,
    backbone_id: str,
    definition: EmbeddingDefinition,
    projection: Path | None = None,
    settings: EmbedSettings | None = None,
) -> DataFrame:
    """Embeds documents with one backbone under one definition.

    Args:
        documents: client_id, as_of, text, event_count_used, event_count_cut, input_hash; other columns are left behind.
        folder: backbone folder; executors fetch it once a node where it has a URL, else it is at the same path for all.
        backbone_id: id that the folder's weights must have; each worker process checks it once.
        definition: resolved definition (`resolve_definition`).
        projection: folder of the projection that the definition names.
        settings: how a worker runs.

    Returns:
        One row a document in no stated order: client_id, as_of, backbone_id, definition_id, parts, token_count,
        event_count_used, event_count_cut, input_hash, definition, and reason: null, or why the row has no vector (its
        `parts` is null then). Events that `max_tokens` left out count as cut.
    """
    slim = documents.select(*CARRIED, "text")
    carried = ", ".join(f"{name} {slim.schema[name].dataType.simpleString()}" for name in CARRIED)
    reader = Reader.of(documents.sparkSession, folder, backbone_id, definition, projection, settings=settings)
    work = partial(_embed_partition, reader=reader)
    rows = slim.mapInArrow(work, schema=f"{carried}, {_COMPUTED}")
    return rows.select(
        "client_id",
        "as_of",
        F.lit(backbone_id).alias("backbone_id"),
        F.lit(definition.definition_id).alias("definition_id"),
        F.when(F.col("reason").isNull(), F.col("parts")).alias("parts"),
        "token_count",
        (F.col("event_count_used") - F.col("events_dropped")).alias("event_count_used"),
        (F.col("event_count_cut") + F.col("events_dropped")).alias("event_count_cut"),
        "input_hash",
        F.lit(definition.json_text).alias("definition"),
        "reason",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """What a worker opens.

    Attributes:
        folder: of the backbone, as `share` gave it.
        backbone_id: id that its weights must have.
        definition: resolved, as JSON.
        projection: folder of the projection that the definition names, as `share` gave it.
        settings: how the worker runs.
        device: where.
    """

    folder: str
    backbone_id: str
    definition: str
    projection: str | None
    settings: EmbedSettings
    device: WorkerDevice

    @classmethod
    def of(
        cls,
        spark: SparkSession,
        folder: str,
        backbone_id: str,
        definition: EmbeddingDefinition,
        projection: Path | None,
        *,
        settings: EmbedSettings | None,
    ) -> Reader:
        """From what the driver knows; a worker has as many threads as a task has cores, unless settings say how many.

        Raises:
            ConfigError: workers would share a GPU.
        """
        chosen = settings or EmbedSettings()
        task_cpus = int(setting(spark, "spark.task.cpus", "1"))
        return cls(
            folder=share(Path(folder)),
            backbone_id=backbone_id,
            definition=definition.json_text,
            projection=None if projection is None else share(projection),
            settings=chosen.model_copy(update={"threads": chosen.threads or task_cpus}),
            device=WorkerDevice.of(spark, chosen.device),
        )

    def open(self) -> AbstractContextManager[Embedder]:
        """The backbone on the device of the task that calls; it is open for the worker's next tasks, too.

        Raises:
            ArtefactError: the folder holds another backbone.
            EngineError: there is no such GPU.
        """
        return self.device.model(_opened, self)


def _embed_partition(batches: Iterator[pa.RecordBatch], *, reader: Reader) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker."""
    settings = reader.settings
    with reader.open() as embedder:
        yield from embedder.embed_batches(batches, buffer_rows=settings.buffer_rows, buffer_chars=settings.buffer_chars)


@lru_cache(maxsize=1)
def _opened(reader: Reader, device: str) -> Embedder:
    # Before torch starts its threads: those that spin while they wait slow down every other worker of the machine.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = str(reader.settings.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from ledgerlm.backbone import model
    from ledgerlm.backbone.embedder import Embedder

    own = here(reader.folder)
    if (found := model.backbone_id(own)) != reader.backbone_id:
        raise ArtefactError(
            f"{own}: the files hash to {found}, not {reader.backbone_id}; copy the backbone to every machine"
        )
    return Embedder(
        str(own),
        EmbeddingDefinition.model_validate_json(reader.definition),
        projection=None if reader.projection is None else here(reader.projection),
        threads=reader.settings.threads,
        device=usable(device),
        pack_tokens=reader.settings.pack_tokens,
    )
