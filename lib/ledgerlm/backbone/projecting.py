"""Fits a projection on texts of training clients, and lets an embedding name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedding import ROWS_A_TASK, document_texts
from ledgerlm.backbone.layout import StateLayout
from ledgerlm.backbone.preparing import windows_to_learn
from ledgerlm.backbone.projection import principal_axes
from ledgerlm.backbone.spark_embed import EmbedSettings
from ledgerlm.backbone.states import state_rows
from ledgerlm.config import ModelRef, StageName
from ledgerlm.engines.collect import collectable
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.made import Made

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.progress import Progress
    from ledgerlm.text.windows import ToldWindows

_BYTES = 4  # of a number


class ProjectConf(EmbedSettings):
    """Settings of the project job."""

    size: int = Field(128, ge=1, description="axes: numbers that are left of a token's state")
    texts: int = Field(4096, ge=2, description="most texts of training clients whose mean states are looked at")
    source: Literal["documents", "windows"] = Field("documents", description="what is read, as in the embed stage")
    serialize: StageName | None = Field(
        None, description="for source: windows: the serialize stage that wrote them; left out, the latest before this"
    )
    format: str = Field("compact", description="format of the documents that are read; for documents alone")
    backbone: ModelRef | None = Field(
        None, description="finetune stage or backbone folder; left out, the latest finetune stage before this one"
    )
    definition: EmbeddingDefinition = Field(
        EmbeddingDefinition(), description="what a token's state is, as in the embed stage; its parts say nothing here"
    )

    @model_validator(mode="after")
    def _fits(self) -> ProjectConf:
        if self.serialize and self.source != "windows":
            raise ValueError(f"serialize names whose windows are read, but source is {self.source}")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables that are read."""
        return ("documents", "clients") if self.source == "documents" else ("windows", "clients", "labels?")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTexts:
    """Texts of training clients.

    Attributes:
        rows: client_id, bucket, text_hash, text.
        name: what these texts are.
        headed: their first line names the fields.
    """

    rows: DataFrame
    name: str
    headed: bool


def training_documents(documents: DataFrame, clients: DataFrame, conf: ProjectConf) -> TrainingTexts:
    """Documents of training clients.

    Args:
        documents: the `documents` table.
        clients: the `clients` table.
        conf: which format.
    """
    texts = document_texts(documents, conf.format)
    rows = _of_training(texts.rows, clients).select(
        "client_id", F.lit(0).alias("bucket"), F.sha2("text", 256).alias("text_hash"), "text"
    )
    return TrainingTexts(rows=rows, name=texts.name, headed=texts.headed)


def training_windows(windows: DataFrame, asked: DataFrame, clients: DataFrame, told: ToldWindows) -> TrainingTexts:
    """Windows of training clients before the newest time that is asked.

    Args:
        windows: the `windows` table.
        asked: client_id, as_of.
        clients: the `clients` table.
        told: which windows.
    """
    own = windows_to_learn(told.of_table(windows), asked)
    rows = _of_training(own, clients).select("client_id", "bucket", "text_hash", "text")
    return TrainingTexts(rows=rows, name=told.name, headed=True)


def _of_training(rows: DataFrame, clients: DataFrame) -> DataFrame:
    return rows.join(clients.where("split = 'train'").select("client_id"), "client_id", how="left_semi")


def fit_projection(
    texts: TrainingTexts,
    conf: ProjectConf,
    *,
    backbone: Path,
    home: Path,
    keep: Keep,
    progress: Progress,
) -> Made:
    """Reads texts of training clients, and lays axes through their mean states.

    Args:
        texts: from `training_documents` or `training_windows`.
        conf: settings.
        backbone: its folder.
        home: for the folder of the projection.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        No table; the folder as artefact. Facts: `projection` (folder), `projection_id`, backbone_id, norm, layers,
        width, size, texts, `explained` (share of the variance of the mean states along the axes).

    Raises:
        ConfigError: more axes than a state has numbers, or more numbers than the driver may take.
        DataError: fewer texts than axes.
    """
    from ledgerlm.backbone import model  # torch and transformers take seconds to import
    from ledgerlm.backbone.embedder import resolve_definition

    _refuse_too_much(conf, model.read_config(backbone).hidden_size, collectable(texts.rows.sparkSession))
    update = {"parts": ("mean",), "max_tokens": None} | ({} if texts.headed else {"header": True})
    definition = resolve_definition(
        str(backbone), conf.definition.model_copy(update=update), text_format=texts.name, fields=(), device=conf.device
    )
    # By the hash of the text: the same texts, whatever the order of the rows.
    sample = keep(texts.rows.dropDuplicates(["text_hash"]).orderBy("text_hash").limit(conf.texts))
    count, backbone_id = sample.count(), model.backbone_id(backbone)
    states = state_rows(
        sample.repartition(tasks_for(count, ROWS_A_TASK), "text_hash"),
        folder=str(backbone),
        backbone_id=backbone_id,
        definition=definition,
        settings=conf.settings,
    )
    with progress.task("Reading texts of training clients"):
        means = _means(states, definition)
    projection, explained = principal_axes(means, conf.size)
    folder = projection.save(home)
    return Made(
        rows_in=count,
        rows_out=count,
        artefacts=[folder],
        facts={
            "projection": str(folder),
            "projection_id": folder.name,
            "backbone_id": backbone_id,
            "norm": definition.norm,
            "layers": list(definition.layers),
            "width": means.shape[1],
            "size": conf.size,
            "texts": len(means),
            "explained": round(explained, 4),
        },
    )


def _refuse_too_much(conf: ProjectConf, width: int, most: int) -> None:
    """Refuses, before the model runs, more axes than numbers, and more numbers than the driver takes."""
    if conf.size > width:
        raise ConfigError(f"project: size {conf.size}, but a token's state has {width} numbers; give fewer")
    if (needed := conf.texts * width * _BYTES) > most:
        raise ConfigError(
            f"project: texts {conf.texts:,} with {width} numbers each are {needed:,} bytes, but the driver takes "
            f"{most:,}; give fewer texts, or more spark.driver.maxResultSize and spark.driver.memory"
        )


def _means(states: DataFrame, definition: EmbeddingDefinition) -> NDArray[np.float32]:
    """Mean state of each text, in the order of their hashes; texts without a state are left out."""
    found = states.where("reason IS NULL").select("text_hash", "sums").toArrow().sort_by("text_hash")
    if not len(found):
        raise DataError("project: no text of a training client has a token to pool; run serialize before this stage")
    values = np.stack(found.column("sums").to_numpy()).astype(np.float64)
    return StateLayout.of_size(definition, values.shape[1]).parts(values)["mean"]
