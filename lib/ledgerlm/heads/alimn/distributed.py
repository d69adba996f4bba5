"""Ray Train for ALIMN: networks on clients that Spark staged, and students on sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.engines.ray import run_workers
from ledgerlm.errors import EngineError
from ledgerlm.heads.alimn.settings import DistilRankConf, FusionRankConf, FusionRanksConf


def stage_clients(rows: DataFrame, folder: Path, *, held_out: float, seed: int, ranks: int) -> None:
    """Writes the training clients as Parquet, as many files as ranks; what is there complete stays.

    Args:
        rows: client_id, as_of, `label_TASK`, the blocks' columns and `sentences`.
        folder: shared by all machines.
        held_out: share of the clients, by a hash of their id, that is not trained on.
        seed: of the hash.
        ranks: processes that train.
    """
    if (folder / "_SUCCESS").exists():
        return
    bucket = F.pmod(F.xxhash64("client_id", F.lit(seed)), F.lit(10_000))
    marked = rows.withColumn("held_out", bucket < round(held_out * 10_000))
    marked.repartition(ranks, "client_id").write.mode("overwrite").parquet(folder.absolute().as_uri())


def train_on_ray(conf: FusionRankConf, workers: FusionRanksConf) -> None:
    """Trains all networks; Ray must have been started. Networks that are finished in `conf.folder` are kept.

    Raises:
        EngineError: training ended without a network.
    """
    from ledgerlm.heads.alimn.training import FACTS

    _run(_fusion_rank, conf.model_dump(mode="json"), conf.folder, workers)
    missing = [name for name in conf.networks if not (conf.folder / name / FACTS).exists()]
    if missing:
        raise EngineError(f"Ray Train ended without the networks {', '.join(missing)}; look at Ray's worker logs")


def distil_on_ray(conf: DistilRankConf, workers: FusionRanksConf) -> dict[str, Any]:
    """Trains a student; Ray must have been started.

    Returns:
        curve: epoch and loss of each epoch.

    Raises:
        EngineError: training ended without a student.
    """
    from ledgerlm.heads.alimn.distil import FACTS

    _run(_distil_rank, conf.model_dump(mode="json"), conf.folder, workers)
    if not conf.result.exists():
        raise EngineError(f"Ray Train ended without {conf.result}; look at Ray's worker logs")
    found: dict[str, Any] = json.loads((conf.folder / FACTS).read_text())
    return found


def _run(
    rank: Callable[[dict[str, Any]], None], config: dict[str, Any], folder: Path, workers: FusionRanksConf
) -> None:
    on_cpu = {} if workers.gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    run_workers(
        rank,
        config,
        folder,
        ranks=workers.ranks,
        threads=workers.threads,
        gpu=workers.gpu,
        retries=workers.retries,
        environment={"DEEPSPEED_LOG_LEVEL": "error", **on_cpu},
    )


def _fusion_rank(config: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    from ledgerlm.heads.alimn.training import train_rank

    train_rank(FusionRankConf.model_validate(config), lambda line: ray.train.report(dict(line)))


def _distil_rank(config: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    from ledgerlm.heads.alimn.distil import distil_rank

    distil_rank(DistilRankConf.model_validate(config), lambda line: ray.train.report(dict(line)))
