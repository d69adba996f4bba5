"""Trains a head that reads histories event by event on the labels of one task: the verb behind the learn job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.condition import Condition
from ledgerlm.files import bring, push, url_of
from ledgerlm.heads.recurrent.head import RecurrentHead
from ledgerlm.heads.recurrent.inputs import Sources, chosen_columns, head_rows, learn_shape, observed_events, sources_of
from ledgerlm.heads.recurrent.settings import (
    HEAD_FILES,
    PARTS,
    HeadRankConf,
    InputsConf,
    LearningConf,
    NetworkConf,
    RowsShape,
)
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.progress import Progress
from ledgerlm.training.launch import train
from ledgerlm.training.settings import ONE_WORKER, OneWorkerConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec


class LearnConf(Conf):
    """Settings of the learn job."""

    task: str = Field(description="binary or multiclass task in labels")
    where: Condition = Field(
        Condition("split = 'train'"),
        description="SQL condition over columns of clients and labels: the rows to learn from",
    )
    base: StageName | None = Field(
        None,
        description="learn stage whose head the training starts from, so that one task helps another: its "
        "vocabularies, scales and weights; inputs and network must be the same",
    )
    inputs: InputsConf = Field(InputsConf(), description="what the head sees of a client")
    network: NetworkConf = Field(NetworkConf(), description="shape of the network")
    learning: LearningConf = Field(LearningConf(), description="how it is trained")
    workers: OneWorkerConf = Field(ONE_WORKER, description="processes of Ray Train")


def learn(
    task: Task,
    *,
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    dictionaries: DataFrame | None,
    spec: DataSetSpec,
    conf: LearnConf,
    files: Mapping[str, Path],
    base: Path | None = None,
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> RecurrentHead:
    """Lays out training rows as Parquet, and trains on Ray Train, which must have been started.

    Args:
        task: binary or multiclass.
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        dictionaries: the `dictionaries` table, if there is one.
        spec: the data set.
        conf: settings.
        files: name in a configuration -> path; has the series, where the head sees one.
        base: folder of the head that the training starts from.
        folder: working folder that all workers reach; what is complete in it is not made again.
        seed: of weights, order and held-out clients.
        progress: what the user sees.
        failpoint: called after the training.

    Returns:
        The head, not yet saved.

    Raises:
        ConfigError: the base was trained with other inputs or another network.
        DataError: no label fulfils the condition, or there is no event.
    """
    shown = progress or Progress()
    training = _training_labels(labels, clients, conf.where, task)
    row = training.agg(F.count(F.lit(1)).alias("rows"), F.max("as_of").alias("as_of")).first()
    if row is None or not row["rows"]:
        raise DataError(f"task {task.name}: no label where {conf.where}")
    known = None if base is None else _shape_of(base, conf)
    if (folder / "rows" / "_SUCCESS").exists():
        shape = RowsShape.model_validate_json((folder / "shape.json").read_text(encoding="utf-8"))
    else:
        sources = sources_of(events, clients, dictionaries, conf.inputs, files)
        with shown.task("Laying out histories"):
            shape = _staged(training, sources, spec, conf, known=known, folder=folder, seed=seed)
    worker = HeadRankConf(
        rows=(folder / "rows").absolute(),
        folder=(folder / "training").absolute(),
        inputs=conf.inputs,
        shape=shape,
        network=conf.network,
        learning=conf.learning,
        task=task,
        as_of=row["as_of"].isoformat(),
        seed=seed,
        base=None if base is None else base.absolute(),
        **placed(conf.workers),
    )
    with shown.task(f"Training {conf.network.kind} on {task.name}"):
        curve = train("ledgerlm.heads.recurrent.training:train_rank", worker, conf.workers)["curve"]
    failpoint("after_training")
    return RecurrentHead(
        card=HEAD_FILES.read_card(worker.result), draft=worker.result, curve=curve, labelled=row["rows"]
    )


def _training_labels(labels: DataFrame, clients: DataFrame, where: Condition, task: Task) -> DataFrame:
    known = labels.where(F.col("task") == task.name).drop("run_id")
    chosen = where.rows(known.join(clients.drop("run_id"), on="client_id", how="inner"))
    return chosen.select("client_id", "as_of", class_index(task).cast("int").alias("label"))


def _shape_of(base: Path, conf: LearnConf) -> RowsShape:
    """Vocabularies and scales of the head that the training starts from."""
    card = HEAD_FILES.read_card(base)
    for key in ("inputs", "network"):
        if getattr(card, key) != getattr(conf, key):
            raise ConfigError(f"base: {conf.base or base} was trained with other {key}; make them the same")
    return card.shape


def _staged(
    labels: DataFrame,
    sources: Sources,
    spec: DataSetSpec,
    conf: LearnConf,
    *,
    known: RowsShape | None,
    folder: Path,
    seed: int,
) -> RowsShape:
    """Fits the shape, unless it is known, and writes the rows as Parquet; whole clients are held out."""
    chosen = chosen_columns(spec, conf.inputs)
    observed = observed_events(sources, chosen, conf.inputs)
    shape = learn_shape(labels, observed, sources, chosen, conf.inputs) if known is None else known
    (folder / "shape.json").write_text(shape.model_dump_json(), encoding="utf-8")
    push(folder / "shape.json")
    rows = head_rows(labels, observed, sources, shape, conf.inputs)
    drawn = F.pmod(F.xxhash64("client_id", F.lit(seed)), F.lit(10_000)) / 10_000
    train_part, stop, calibrate = PARTS
    held_out = F.when(drawn < conf.learning.held_out / 2, calibrate).when(drawn < conf.learning.held_out, stop)
    marked = rows.join(labels, on=["client_id", "as_of"], how="inner")
    parted = marked.withColumn("part", held_out.otherwise(train_part))
    files = parted.repartition(4 * conf.workers.ranks, "client_id")
    spread = files.sortWithinPartitions("part", "client_id", "as_of")
    spread.write.mode("overwrite").partitionBy("part").parquet(url_of(folder / "rows"))
    bring(folder / "rows")
    return shape
