"""Trains heads: one for each task on a chosen representation, calibrated on clients that no model had seen."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.evaluation.protocol import Fold, fold_fits, labelled_rows, make_folds, make_sample, read_rows
from ledgerlm.heads.boosting import Boosted, LightGBMConf
from ledgerlm.heads.calibration import Calibrator, Method, fit_calibrator
from ledgerlm.heads.distributed import DistributedConf, stage_rows, train_distributed
from ledgerlm.heads.head import HeadCard, hash_names, save_head
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.heads.mllib import MllibConf, MllibKind, fit_mllib
from ledgerlm.heads.parallel import Fit, Fitted, run_on_ray
from ledgerlm.heads.tasks import Floats, Task, class_index
from ledgerlm.heads.vectors import KEY, Block, Source, component_names, join_sources, learn_blocks, read_matrix
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# Bound on the held-out rows that calibrate a head trained by Ray Train; more make no difference to two numbers.
_CALIBRATION_ROWS = 100_000


class FitConf(Conf):
    """Settings of the fit job."""

    representation: str = Field(description="name of the representation, for the report")
    sources: tuple[Source, ...] = Field(min_length=1, description="vectors that the head reads, side by side")
    tasks: tuple[str, ...] | None = Field(None, description="tasks to fit a head for; default all in labels")
    where: str = Field(
        "split = 'train'", description="SQL condition over split and as_of: the labelled rows to learn from"
    )
    kind: Literal["lightgbm", "logistic_regression", "random_forest", "gbt"] = Field(
        "lightgbm", description="lightgbm; logistic_regression, random_forest and gbt are MLlib's and train in Spark"
    )
    lightgbm: LightGBMConf = Field(LightGBMConf(), description="settings of LightGBM")
    mllib: MllibConf = Field(MllibConf(), description="settings of MLlib")
    distributed: DistributedConf = Field(DistributedConf(), description="when and how Ray Train trains the head")
    calibration: Method = Field("sigmoid", description="none, sigmoid (Platt), isotonic or temperature; LightGBM only")
    folds: int = Field(5, ge=2, description="folds whose held-out scores the calibration is fitted on")


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A head before it is written: the model, its calibration, and what the calibration did."""

    model: Boosted | Path
    calibration: Calibrator
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the heads of one stage are trained on: labels of training clients, and their vectors."""

    labels: DataFrame
    vectors: DataFrame
    blocks: Sequence[Block]
    rows: Mapping[str, int]
    as_of: Mapping[str, str]


def run(ctx: Context, conf: FitConf) -> StageResult:
    """Trains, calibrates and writes a head for each task."""
    tasks = ctx.tasks(conf.tasks)
    sources = tuple(source.pinned(ctx.facts) for source in conf.sources)
    training = _training(ctx, conf, tasks, sources, component_names(conf.sources, ctx.facts))
    trained: dict[str, _Trained] = {}
    if conf.kind != "lightgbm":
        trained = {task.name: _in_spark(ctx, conf, task, training) for task in tasks}
    else:
        ctx.ray.start()
        small = [task for task in tasks if training.rows[task.name] <= conf.distributed.above_rows]
        trained |= _as_tasks(ctx, conf, small, training) if small else {}
        trained |= {task.name: _by_ray_train(ctx, conf, task, training) for task in tasks if task not in small}
    heads = []
    for task in tasks:
        head = trained[task.name]
        card = HeadCard(
            kind=conf.kind,
            task=task,
            representation=conf.representation,
            sources=sources,
            blocks=tuple(training.blocks),
            features_hash=hash_names([name for block in training.blocks for name in block.features]),
            params=(conf.lightgbm if conf.kind == "lightgbm" else conf.mllib).model_dump(mode="json"),
            scale=tuple(head.model.scale.tolist()) if isinstance(head.model, Boosted) else (),
            calibration=head.calibration,
            training_rows=training.rows[task.name],
            as_of=training.as_of[task.name],
        )
        head_id = save_head(ctx.artefacts / "heads", card, head.model)
        heads.append(_facts(card, head_id) | dict(head.facts))
        ctx.failpoint(f"after_{task.name}")
    rows = sum(training.rows.values())
    return StageResult(
        rows_in=rows,
        rows_out=rows,
        artefacts=[str(ctx.artefacts / "heads" / head["head_id"]) for head in heads],
        facts={"representation": conf.representation, "heads": heads},
    )


def _training(
    ctx: Context, conf: FitConf, tasks: Sequence[Task], sources: Sequence[Source], named: Mapping[str, Sequence[str]]
) -> _Training:
    labels = labelled_rows(ctx.read("labels"), ctx.read("clients"), [task.name for task in tasks]).where(conf.where)
    tables: dict[str, DataFrame] = {source.table: ctx.read(source.table) for source in sources}
    keys = labels.select(*KEY).distinct()
    vectors = join_sources(sources, tables).join(keys, on=list(KEY), how="inner")
    known = labels.join(vectors.select(*KEY), on=list(KEY), how="inner")
    counted = known.groupBy("task").agg(F.count(F.lit(1)).alias("rows"), F.max("as_of").alias("as_of"))
    found = {row["task"]: row for row in counted.toLocalIterator()}
    return _Training(
        labels=labels,
        vectors=vectors,
        blocks=learn_blocks(vectors, named=named),
        rows={task: row["rows"] for task, row in found.items()},
        as_of={task: row["as_of"].isoformat() for task, row in found.items()},
    )


def _as_tasks(ctx: Context, conf: FitConf, tasks: Sequence[Task], training: _Training) -> dict[str, _Trained]:
    """All folds and final heads side by side, as plain Ray tasks."""
    matrix, labels = read_matrix(training.vectors, training.blocks), read_rows(training.labels)
    samples = {task.name: make_sample(task, labels, matrix) for task in tasks}
    folds = {
        name: make_folds(sample, conf.folds, [ctx.seed]) if conf.calibration != "none" else []
        for name, sample in samples.items()
    }
    fits: list[Fit] = []
    for name, sample in samples.items():
        everything = Fold(seed=ctx.seed, number=conf.folds, train=sample.development, held_out=sample.test)
        fits += fold_fits(sample, [*folds[name], everything], conf.representation, conf.lightgbm)
    results: dict[int, Fitted] = {}
    with ctx.progress.task("Fitting heads", total=len(fits)) as bar:
        for place, fitted in run_on_ray(fits, {conf.representation: matrix.x}):
            results[place] = fitted
            bar.advance()
    in_order = iter([results[place] for place in range(len(fits))])
    trained = {}
    for name, sample in samples.items():
        raw = [next(in_order).raw for _ in folds[name]]
        model = next(in_order).model(sample.task)
        y = np.concatenate([sample.y[fold.held_out] for fold in folds[name]]) if raw else np.zeros(0)
        trained[name] = _calibrated(model, conf.calibration, np.concatenate(raw) if raw else None, y, sample.task)
    return trained


def _by_ray_train(ctx: Context, conf: FitConf, task: Task, training: _Training) -> _Trained:
    """One large head over several workers; a share of the clients is held out for its calibration."""
    labels = training.labels.where(F.col("task") == task.name).withColumn("label", class_index(task))
    rows = training.vectors.join(labels.select(*KEY, "label"), on=list(KEY), how="inner")
    bucket = F.pmod(F.xxhash64("client_id"), F.lit(10_000)) / 10_000
    share = conf.distributed.holdout if conf.calibration != "none" else 0.0
    folder = ctx.staging / task.name
    stage_rows(rows.where(bucket >= share), training.blocks, folder, conf.distributed.workers)
    width = sum(len(block.features) for block in training.blocks)
    ctx.progress.say(f"    {task.name}: {training.rows[task.name]:,} rows on {conf.distributed.workers} workers")
    model = train_distributed(
        folder, width, task, conf.lightgbm, conf.distributed, seed=ctx.seed, storage=ctx.staging / "train"
    )
    if not share:
        return _calibrated(model, "none", None, np.zeros(0), task)
    most = min(share, _CALIBRATION_ROWS / training.rows[task.name])
    matrix = read_matrix(rows.where(bucket < most), training.blocks)
    held = read_rows(training.labels.where((bucket < most) & (F.col("task") == task.name)))
    sample = make_sample(task, held, matrix)
    return _calibrated(model, conf.calibration, model.raw(matrix.x[sample.rows]), sample.y, task)


def _in_spark(ctx: Context, conf: FitConf, task: Task, training: _Training) -> _Trained:
    """A head of MLlib's, whose probabilities are left as they are."""
    labels = training.labels.where(F.col("task") == task.name).select(*KEY, "label")
    rows = training.vectors.join(labels, on=list(KEY), how="inner")
    assert conf.kind != "lightgbm"  # asked before
    kind: MllibKind = conf.kind
    folder = ctx.staging / task.name
    model = fit_mllib(rows, training.blocks, task, kind, conf.mllib, seed=ctx.seed)
    model.write().overwrite().save(folder.absolute().as_uri())
    return _Trained(model=folder, calibration=Calibrator(), facts={})


def _calibrated(model: Boosted, method: Method, raw: Floats | None, y: Floats, task: Task) -> _Trained:
    if raw is None or task.kind == "regression":
        return _Trained(model=model, calibration=Calibrator(), facts={})
    calibration = fit_calibrator(method, raw, y, task)
    ways = {"before": Calibrator().apply(raw, task), "after": calibration.apply(raw, task)}
    losses = {metric.name: metric for metric in metrics_of(task.kind) if metric.name in ("log_loss", "brier")}
    gained = {name: {way: value(metric, y, p) for way, p in ways.items()} for name, metric in losses.items()}
    return _Trained(model=model, calibration=calibration, facts={"calibration": {"method": method, **gained}})


def _facts(card: HeadCard, head_id: str) -> dict[str, Any]:
    return {
        "head_id": head_id,
        "kind": card.kind,
        "task": card.task.name,
        "classes": list(card.task.class_names),
        "representation": card.representation,
        "training_rows": card.training_rows,
        "features": len(card.names),
        "as_of": card.as_of,
    }


JOB = Job(
    name="fit",
    engine="ray + lightgbm",
    conf=FitConf,
    run=run,
    reads=("labels", "clients", "features?", "embeddings?"),
    uses=("lightgbm",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
