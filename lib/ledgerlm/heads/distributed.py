"""One large LightGBM fit over several machines: `ray.train.lightgbm` on rows that Spark staged as Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.engines.ray import storage_of
from ledgerlm.errors import DataError, EngineError
from ledgerlm.files import bring, here, share, url_of
from ledgerlm.heads.boosting import Boosted, LightGBMConf, raw_outputs
from ledgerlm.heads.tasks import Ints, Task, refuse_one_class
from ledgerlm.heads.vectors import Block, decode_rows, encode_rows

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv
    from pyspark.sql import DataFrame

# A worker without enough rows cannot bin its share of the features, and its silence would hang the others.
_ROWS_PER_WORKER = 100


class DistributedConf(Conf):
    """When and how a head is trained by Ray Train."""

    above_rows: int = Field(1_000_000, ge=0, description="labelled rows above which Ray Train trains the head")
    above_values: int | None = Field(
        None,
        ge=1,
        description="numbers in their vectors above which it does; left out, those that the engine profile lets the "
        "driver read",
    )
    workers: int = Field(2, ge=1, description="Ray Train workers")
    cpus_per_worker: int = Field(1, ge=1, description="cores and LightGBM threads of a worker")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the training clients kept for the calibration")


def stage_rows(labelled: DataFrame, blocks: Sequence[Block], folder: Path, workers: int) -> None:
    """Writes training rows as Parquet that the workers read, as many files as workers or a multiple of them.

    Args:
        labelled: rows of `join_sources` with column `label` (from `Task.encode`).
        blocks: columns of the matrix.
        folder: where to; an earlier attempt's files are replaced.
        workers: Ray Train workers.
    """
    work = partial(encode_rows, blocks=list(blocks), keep=("label",))
    rows = labelled.mapInArrow(work, "label double, places array<int>, values array<float>")
    rows.repartition(4 * workers).write.mode("overwrite").parquet(url_of(folder))
    bring(folder)


def train_distributed(
    folder: Path,
    width: int,
    task: Task,
    conf: LightGBMConf,
    settings: DistributedConf,
    *,
    seed: int,
    storage: Path,
    categorical: Sequence[int] = (),
) -> Boosted:
    """Trains trees on several workers, each holding an equal share of the rows; Ray must have been started.

    The workers bin features together and exchange histograms over LightGBM's own sockets, so the trees are those of
    the whole data and not a vote of parts. Features are not scaled: trees do not depend on it.

    Args:
        folder: from `stage_rows`.
        width: features.
        task: what is predicted.
        conf: settings.
        settings: workers and their cores.
        seed: of the draws.
        storage: folder for the checkpoint.
        categorical: features whose values are codes.

    Raises:
        DataError: for too few rows for so many workers, or rows that are all of one class.
        EngineError: when training ends without a model.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.lightgbm import LightGBMTrainer, RayTrainReportCallback

    if task.kind != "regression":
        refuse_one_class(task, _classes_there(folder, task))
    shards = _shards(folder, settings.workers)
    trainer = LightGBMTrainer(
        _train_worker,
        train_loop_config={
            "params": conf.params(task, seed=seed, threads=settings.cpus_per_worker),
            "rounds": conf.n_estimators,
            "width": width,
            "shards": shards,
            "categorical": list(categorical),
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers, resources_per_worker={"CPU": settings.cpus_per_worker}
        ),
        run_config=RunConfig(name=folder.name, **storage_of(storage)),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise EngineError(f"Ray Train ended without a model for {task.name}: {result.error}")
    booster = RayTrainReportCallback.get_model(result.checkpoint)
    return Boosted.from_text(booster.model_to_string(), [1.0] * width, raw_outputs(task))


def _classes_there(folder: Path, task: Task) -> Ints:
    """Rows by class as far as the files' statistics tell: a group of rows counts for its lowest and highest class."""
    counts = np.zeros(task.outputs, np.int64)
    for file in folder.absolute().glob("*.parquet"):
        metadata = pq.read_metadata(file)
        place = metadata.schema.names.index("label")
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            column = group.column(place).statistics
            for label in {column.min, column.max}:
                counts[int(label)] += group.num_rows
    return counts


def _shards(folder: Path, workers: int) -> list[list[str]]:
    """The files of each worker, of about as many rows for all.

    Workers read their files themselves: Ray Data would need cores of its own beside the workers', which a small
    machine does not have, and a copy of all rows in the object store.
    """
    files = sorted(folder.absolute().glob("*.parquet"))
    rows = {share(file): pq.read_metadata(file).num_rows for file in files}
    shards: list[list[str]] = [[] for _ in range(workers)]
    for file in sorted(rows, key=lambda name: (-rows[name], name)):
        min(shards, key=lambda shard: sum(rows[one] for one in shard)).append(file)
    fewest = min(sum(rows[one] for one in shard) for shard in shards)
    if fewest < _ROWS_PER_WORKER:
        raise DataError(
            f"{sum(rows.values())} rows are too few for {workers} workers (one would get {fewest}, at least "
            f"{_ROWS_PER_WORKER} are needed); lower distributed.workers or raise distributed.above_rows"
        )
    return shards


def _train_worker(config: dict[str, Any]) -> None:
    """Training loop of one Ray Train worker."""
    import lightgbm as lgb
    import ray.train
    from ray.train.lightgbm import RayTrainReportCallback, get_network_params

    table = pq.read_table([str(here(one)) for one in config["shards"][ray.train.get_context().get_world_rank()]])
    report = RayTrainReportCallback()

    def report_at_end(env: CallbackEnv) -> None:
        # Each report waits for all workers; once is enough.
        if env.iteration == env.end_iteration - 1:
            report(env)

    data = lgb.Dataset(
        decode_rows(table, config["width"]),
        np.asarray(table.column("label"), np.float64),
        categorical_feature=config["categorical"] or "auto",
    )
    lgb.train(
        {**config["params"], "tree_learner": "data", "pre_partition": True, **get_network_params()},
        data,
        num_boost_round=config["rounds"],
        callbacks=[report_at_end],
    )
