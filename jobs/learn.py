"""Trains a head that reads histories event by event (LSTM, GRU or 1-D CNN) on the labels of one task."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.recurrent.inputs import (
    Sources,
    chosen_columns,
    head_rows,
    learn_shape,
    observed_events,
    read_series,
)
from ledgerlm.heads.recurrent.settings import PARTS, HeadRankConf, InputsConf, LearningConf, NetworkConf, RowsShape
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.training.artefacts import keep_copy
from ledgerlm.training.launch import train
from ledgerlm.training.settings import ONE_WORKER, OneWorkerConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class LearnConf(Conf):
    """Settings of the learn job."""

    task: str = Field(description="binary or multiclass task in labels")
    where: str = Field(
        "split = 'train'", description="SQL condition over columns of clients and labels: the rows to learn from"
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


def run(ctx: Context, conf: LearnConf) -> StageResult:
    """Lays out training rows as Parquet, trains on Ray Train, and keeps the head under its id."""
    task = ctx.task(conf.task)
    labels = _training_labels(ctx, conf, task)
    row = labels.agg(F.count(F.lit(1)).alias("rows"), F.max("as_of").alias("as_of")).first()
    if row is None or not row["rows"]:
        raise DataError(f"task {task.name}: no label where {conf.where}")
    base = _base(ctx, conf)
    shape = _staged(ctx, conf, labels, base)
    ctx.ray.start()
    worker = HeadRankConf(
        rows=(ctx.staging / "rows").absolute(),
        folder=(ctx.staging / "training").absolute(),
        inputs=conf.inputs,
        shape=shape,
        network=conf.network,
        learning=conf.learning,
        task=task,
        as_of=row["as_of"].isoformat(),
        seed=ctx.seed,
        base=base,
        **placed(conf.workers),
    )
    with ctx.progress.task(f"Training {conf.network.kind} on {task.name}"):
        curve = train("ledgerlm.heads.recurrent.training:train_rank", worker, conf.workers)["curve"]
    ctx.failpoint("after_training")
    # It imports torch, which takes seconds.
    from ledgerlm.heads.recurrent.store import read_recurrent_card

    heads = ctx.artefacts / "heads"
    head_id = keep_copy(worker.result, heads)
    card = read_recurrent_card(heads / head_id)
    used = card.training_rows + card.held_out_rows + card.calibration_rows
    return StageResult(
        rows_in=used,
        rows_out=used,
        artefacts=[str(heads / head_id)],
        facts={
            "heads": [{"head_id": head_id, "task": task.name, "name": conf.network.kind}],
            "classes": list(task.class_names),
            "parameters": card.parameters,
            "training_rows": card.training_rows,
            "held_out_rows": card.held_out_rows,
            "calibration_rows": card.calibration_rows,
            "without_events": row["rows"] - used,
            "temperature": card.calibration.temperature,
            "curve": curve,
            "report": [_section(ctx.stage, conf, task, curve)],
        },
    )


def _base(ctx: Context, conf: LearnConf) -> Path | None:
    """Folder of the head that the training starts from."""
    if conf.base is None:
        return None
    from ledgerlm.heads.recurrent.store import read_recurrent_card

    folder: Path = (ctx.artefacts / "heads" / ctx.facts(conf.base)["heads"][0]["head_id"]).absolute()
    card = read_recurrent_card(folder)
    for key in ("inputs", "network"):
        if getattr(card, key) != getattr(conf, key):
            raise ConfigError(f"{ctx.stage}: base: {conf.base} was trained with other {key}; make them the same")
    return folder


def sources_of(ctx: Context, conf: InputsConf) -> Sources:
    """The tables that inputs are made from, and the days that they span."""
    events = ctx.read("events")
    row = events.agg(
        F.to_date(F.min("event_time")).alias("first"), F.to_date(F.max("event_time")).alias("last")
    ).first()
    if row is None or row["first"] is None:
        raise DataError("the events table is empty; look at the quarantine table")
    series = None
    if conf.series:
        path = ctx.file(conf.series.path)
        series = read_series(ctx.spark, conf.series, path.as_uri())
    return Sources(
        events=events,
        clients=ctx.read("clients"),
        dictionaries=ctx.maybe("dictionaries"),
        # Histories may end after the last event; a year more of calendar costs nothing.
        days=(row["first"], row["last"] + dt.timedelta(days=366)),
        series=series,
    )


def _training_labels(ctx: Context, conf: LearnConf, task: Task) -> DataFrame:
    known = ctx.read("labels").where(F.col("task") == task.name).drop("run_id")
    chosen = known.join(ctx.read("clients").drop("run_id"), on="client_id", how="inner").where(conf.where)
    return chosen.select("client_id", "as_of", class_index(task).cast("int").alias("label"))


def _staged(ctx: Context, conf: LearnConf, labels: DataFrame, base: Path | None) -> RowsShape:
    """Fits the shape and writes the rows as Parquet, unless an earlier attempt did; whole clients are held out."""
    from ledgerlm.heads.recurrent.store import read_recurrent_card

    folder, file = ctx.staging / "rows", ctx.staging / "shape.json"
    if (folder / "_SUCCESS").exists():
        return RowsShape.model_validate_json(file.read_text(encoding="utf-8"))
    sources, chosen = sources_of(ctx, conf.inputs), chosen_columns(ctx.spec, conf.inputs)
    observed = observed_events(sources, chosen, conf.inputs)
    with ctx.progress.task("Laying out histories"):
        shape = (
            learn_shape(labels, observed, sources, chosen, conf.inputs)
            if base is None
            else read_recurrent_card(base).shape
        )
        file.write_text(shape.model_dump_json(), encoding="utf-8")
        rows = head_rows(labels, observed, sources, shape, conf.inputs)
        drawn = F.pmod(F.xxhash64("client_id", F.lit(ctx.seed)), F.lit(10_000)) / 10_000
        train_part, stop, calibrate = PARTS
        held_out = F.when(drawn < conf.learning.held_out / 2, calibrate).when(drawn < conf.learning.held_out, stop)
        marked = rows.join(labels, on=["client_id", "as_of"], how="inner")
        parted = marked.withColumn("part", held_out.otherwise(train_part))
        files = parted.repartition(4 * conf.workers.ranks, "client_id")
        spread = files.sortWithinPartitions("part", "client_id", "as_of")
        spread.write.mode("overwrite").partitionBy("part").parquet(folder.absolute().as_uri())
    return shape


def _section(stage: str, conf: LearnConf, task: Task, curve: list[dict[str, float]]) -> dict[str, Any]:
    epochs = [line["epoch"] for line in curve]
    losses = {name: [epochs, [line[name] for line in curve]] for name in ("loss", "held_out_loss")}
    drawing = {"kind": "lines", "x": "epoch", "y": "cross-entropy", "series": losses}
    return {
        "title": f"Training of {stage}",
        "note": f"{conf.network.kind} for {task.name}; stopped by the loss of training clients that were held out.",
        "blocks": [{"kind": "figures", "figures": [drawing]}],
    }


JOB = Job(
    name="learn",
    engine="spark + ray train",
    conf=LearnConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?"),
    uses=("torch",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
