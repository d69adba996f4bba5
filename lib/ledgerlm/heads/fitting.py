"""Trains heads: one for each task on a chosen representation, calibrated on clients that no model had seen.

LightGBM's folds and heads are plain Ray tasks; what the driver could not read goes through Ray Train; MLlib's heads
train in Spark. The roads differ in where the rows are, not in what comes out: a `Head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.events.condition import Condition
from ledgerlm.files import bring, url_of
from ledgerlm.heads.boosting import Boosted, LightGBMConf
from ledgerlm.heads.calibration import Calibrator, Method, brier, fit_calibrator, log_loss
from ledgerlm.heads.distributed import DistributedConf, stage_rows, train_distributed
from ledgerlm.heads.head import HeadCard, hash_names
from ledgerlm.heads.mllib import MllibConf, fit_mllib
from ledgerlm.heads.model import Head
from ledgerlm.heads.parallel import Fit, FitStore, run_fits
from ledgerlm.heads.samples import Fold, Sample, fold_fits, labelled_rows, make_folds, make_sample, read_rows
from ledgerlm.heads.tasks import Floats, Task, class_index, counts_by_class, refuse_one_class
from ledgerlm.heads.vectors import (
    KEY,
    Block,
    Source,
    component_names,
    count_values,
    join_sources,
    learn_blocks,
    read_matrix,
    readable,
)
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row

# Bound on the held-out rows that calibrate a head trained by Ray Train; more make no difference to two numbers.
_CALIBRATION_ROWS = 100_000
_SHARES = 10_000


class FitConf(Conf):
    """Settings of the fit job."""

    representation: str = Field(description="name of the representation, for the report")
    sources: tuple[Source, ...] = Field(min_length=1, description="vectors that the head reads, side by side")
    tasks: tuple[str, ...] | None = Field(None, description="tasks to fit a head for; default all in labels")
    where: Condition = Field(
        Condition("split = 'train'"), description="SQL condition over split and as_of: the labelled rows to learn from"
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
class _Training:
    """What heads are trained on, and with what.

    Attributes:
        conf: settings.
        folder: working folder.
        seed: of folds and trees.
        keep: computes a frame once.
        progress: what the user sees.
        store: finished fits of an earlier attempt.
        labels: labelled rows, from `labelled_rows`.
        vectors: rows of `join_sources` that some of them have.
        sources: with backbone and definition.
        blocks: columns of the matrix.
        rows: labelled rows with a vector, by task.
        as_of: the latest of them, by task.
        numbers: in a vector, on average.
        limit: numbers that may be read to this machine.
    """

    conf: FitConf
    folder: Path
    seed: int
    keep: Keep
    progress: Progress
    store: FitStore | None
    labels: DataFrame
    vectors: DataFrame
    sources: Sequence[Source]
    blocks: Sequence[Block]
    rows: Mapping[str, int]
    as_of: Mapping[str, str]
    numbers: float
    limit: int

    def of_task(self, task: Task) -> DataFrame:
        """Labels of one task."""
        return self.labels.where(F.col("task") == task.name)


def fit_heads(
    labels: DataFrame,
    clients: DataFrame,
    tables: Mapping[str, DataFrame],
    tasks: Sequence[Task],
    conf: FitConf,
    *,
    facts: Callable[[str], Mapping[str, Any]],
    folder: Path,
    seed: int,
    keep: Keep,
    progress: Progress | None = None,
    store: FitStore | None = None,
) -> list[Head]:
    """Trains and calibrates a head for each task; for LightGBM, Ray must have been started.

    Args:
        labels: the `labels` table.
        clients: the `clients` table, for the split.
        tables: `features` and `embeddings`, as far as the sources name them.
        tasks: what is predicted.
        conf: settings.
        facts: gives the facts of a finished stage by its name, or by its job's, for embeddings whose backbone the
            sources leave open.
        folder: working folder that all workers reach.
        seed: of folds and trees.
        keep: computes a frame once.
        progress: what the user sees.
        store: finished fits of an earlier attempt.

    Returns:
        The heads in the order of the tasks, not yet saved: `head.save(folder)`, then `head.transform(vectors)`.

    Raises:
        DataError: a task has no row to learn from, or rows of one class only, or vectors that are no numbers.
    """
    sources = tuple(source.pinned(facts) for source in conf.sources)
    chosen = conf.where.rows(labelled_rows(labels, clients, [task.name for task in tasks]))
    vectors = keep(join_sources(sources, tables).join(chosen.select(*KEY).distinct(), on=list(KEY), how="inner"))
    known = _known(chosen.join(vectors.select(*KEY), on=list(KEY), how="inner"), tasks, conf.where)
    rows, values = count_values(vectors)
    training = _Training(
        conf=conf,
        folder=folder,
        seed=seed,
        keep=keep,
        progress=progress or Progress(),
        store=store,
        labels=chosen,
        vectors=vectors,
        sources=sources,
        blocks=learn_blocks(vectors, named=component_names(conf.sources, facts)),
        rows={name: row["rows"] for name, row in known.items()},
        as_of={name: row["as_of"].isoformat() for name, row in known.items()},
        numbers=values / rows,
        limit=readable(labels.sparkSession),
    )
    if conf.kind != "lightgbm":
        return [_in_spark(task, training) for task in tasks]
    small = [task for task in tasks if _is_small(task, training)]
    found: dict[str, Head] = {}
    for group in _groups(small, training):
        found |= _as_tasks(group, training)
    found |= {task.name: _by_ray_train(task, training) for task in tasks if task not in small}
    return [found[task.name] for task in tasks]


def described(heads: Sequence[Head], representation: str) -> Made:
    """What is told of saved heads: their folders, and the facts `representation` and `heads`."""
    rows = sum(head.card.training_rows for head in heads)
    return Made(
        rows_in=rows,
        rows_out=rows,
        artefacts=[head.home for head in heads if head.home is not None],
        facts={"representation": representation, "heads": [head.described() for head in heads]},
    )


def _known(rows: DataFrame, tasks: Sequence[Task], where: str) -> dict[str, Row]:
    """Of each task the labelled rows with a vector: `rows` and the latest `as_of`."""
    asked = [F.count(F.lit(1)).alias("rows"), F.max("as_of").alias("as_of")]
    asked += [F.min("label").alias("low"), F.max("label").alias("high")]
    found = {row["task"]: row for row in rows.groupBy("task").agg(*asked).toLocalIterator()}
    for task in tasks:
        if task.name not in found:
            raise DataError(f"task {task.name}: no labelled row where {where} has a vector; is its as_of the same?")
        row = found[task.name]
        if task.kind != "regression" and row["low"] == row["high"]:
            refuse_one_class(task, counts_by_class(task, task.encode(np.array([row["low"]]))) * row["rows"])
    return found


def _is_small(task: Task, training: _Training) -> bool:
    """Whether the task's vectors may be read to this machine."""
    rows, conf = training.rows[task.name], training.conf.distributed
    most = min(conf.above_values or training.limit, training.limit)
    return rows <= conf.above_rows and rows * training.numbers <= most


def _groups(tasks: Sequence[Task], training: _Training) -> Iterator[Sequence[Task]]:
    """All tasks together where their vectors may be read at once, else one after the other."""
    if sum(training.rows[task.name] for task in tasks) * training.numbers <= training.limit:
        yield from [tasks] if tasks else []
    else:
        yield from ([task] for task in tasks)


def _as_tasks(tasks: Sequence[Task], training: _Training) -> dict[str, Head]:
    """All folds and final heads side by side, as plain Ray tasks."""
    conf, seed = training.conf, training.seed
    own = training.labels.where(F.col("task").isin([task.name for task in tasks]))
    keys = own.select(*KEY).distinct()
    matrix = read_matrix(training.vectors.join(keys, on=list(KEY), how="left_semi"), training.blocks)
    labels = read_rows(own)
    samples = {task.name: _all_learnt(make_sample(task, labels, matrix)) for task in tasks}
    folds = {
        name: make_folds(sample, conf.folds, [seed]) if conf.calibration != "none" else []
        for name, sample in samples.items()
    }
    fits: list[Fit] = []
    for name, sample in samples.items():
        everything = Fold(seed=seed, number=conf.folds, train=sample.development, held_out=sample.test)
        fits += fold_fits(sample, [*folds[name], everything], conf.representation, conf.lightgbm)
    matrices = {conf.representation: matrix.x}
    in_order = iter(run_fits(fits, matrices, store=training.store, progress=training.progress, text="Fitting heads"))
    found = {}
    for name, sample in samples.items():
        raw = [next(in_order).raw for _ in folds[name]]
        model = next(in_order).model(sample.task)
        y = np.concatenate([sample.y[fold.held_out] for fold in folds[name]]) if raw else np.zeros(0)
        found[name] = _calibrated(sample.task, training, model, np.concatenate(raw) if raw else None, y)
    return found


def _all_learnt(sample: Sample) -> Sample:
    """What `where` has chosen is learnt from, also where it names clients of the split `test`."""
    return replace(sample, development=np.arange(len(sample.rows)), test=sample.test[:0])


def _by_ray_train(task: Task, training: _Training) -> Head:
    """One large head over several workers; a share of the clients is held out for its calibration."""
    conf, folder = training.conf, training.folder / task.name
    labels = training.of_task(task).withColumn("label", class_index(task))
    rows = training.vectors.join(labels.select(*KEY, "label"), on=list(KEY), how="inner")
    bucket = F.pmod(F.xxhash64("client_id"), F.lit(_SHARES)) / _SHARES
    share = conf.distributed.holdout if conf.calibration != "none" else 0.0
    width = sum(len(block.features) for block in training.blocks)
    stage_rows(rows.where(bucket >= share), training.blocks, folder, conf.distributed.workers)
    training.progress.say(f"    {task.name}: {training.rows[task.name]:,} rows on {conf.distributed.workers} workers")
    storage = training.folder / "train"
    model = train_distributed(folder, width, task, conf.lightgbm, conf.distributed, seed=training.seed, storage=storage)
    if not share:
        return _calibrated(task, training, model, None, np.zeros(0))
    wanted = min(_CALIBRATION_ROWS, training.limit / max(training.numbers, 1.0))
    most = min(share, wanted / training.rows[task.name])
    matrix = read_matrix(rows.where(bucket < most), training.blocks)
    sample = make_sample(task, read_rows(training.of_task(task).where(bucket < most)), matrix)
    return _calibrated(task, training, model, model.raw(matrix.x[sample.rows]), sample.y)


def _in_spark(task: Task, training: _Training) -> Head:
    """A head of MLlib's, whose probabilities are left as they are."""
    conf = training.conf
    rows = training.vectors.join(training.of_task(task).select(*KEY, "label"), on=list(KEY), how="inner")
    assert conf.kind != "lightgbm"  # asked before
    model = fit_mllib(rows, training.blocks, task, conf.kind, conf.mllib, seed=training.seed, keep=training.keep)
    home = training.folder / task.name
    model.write().overwrite().save(url_of(home))
    bring(home)
    return Head(card=_card(task, training, Calibrator()), model=home)


def _calibrated(task: Task, training: _Training, model: Boosted, raw: Floats | None, y: Floats) -> Head:
    """A head of LightGBM's with its calibration, fitted on raw scores of rows that it had not seen."""
    calibration, facts, conf = Calibrator(), {}, training.conf
    if raw is not None and task.kind != "regression":
        calibration = fit_calibrator(conf.calibration, raw, y, task)
        ways = {"before": Calibrator().apply(raw, task), "after": calibration.apply(raw, task)}
        gained = {
            loss.__name__: {way: float(loss(y, p).mean()) for way, p in ways.items()} for loss in (log_loss, brier)
        }
        facts = {"calibration": {"method": conf.calibration, **gained}}
    card = _card(task, training, calibration, tuple(model.scale.tolist()))
    return Head(card=card, model=model, facts=facts)


def _card(task: Task, training: _Training, calibration: Calibrator, scale: tuple[float, ...] = ()) -> HeadCard:
    conf = training.conf
    return HeadCard(
        kind=conf.kind,
        task=task,
        representation=conf.representation,
        sources=tuple(training.sources),
        blocks=tuple(training.blocks),
        features_hash=hash_names([name for block in training.blocks for name in block.features]),
        params=(conf.lightgbm if conf.kind == "lightgbm" else conf.mllib).model_dump(mode="json"),
        scale=scale,
        calibration=calibration,
        training_rows=training.rows[task.name],
        as_of=training.as_of[task.name],
    )
