"""Training by Ray Train: workers of plain torch that average their gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledgerlm.baselines.sequence.settings import RankConf, WorkersConf
from ledgerlm.engines.ray import worker_error
from ledgerlm.errors import EngineError


def train_on_ray(conf: RankConf, workers: WorkersConf) -> list[dict[str, float]]:
    """Trains an encoder; Ray must have been started. A training that was killed goes on after its last epoch.

    Args:
        conf: what each worker is told.
        workers: processes.

    Returns:
        The curve: a line for each epoch.

    Raises:
        EngineError: when training ended without an encoder.
    """
    run_workers(_worker, conf.model_dump(mode="json"), conf.folder, workers)
    facts = conf.result / "training.json"
    if not facts.exists():
        raise EngineError(f"Ray Train ended without {facts}; look at Ray's worker logs")
    curve: list[dict[str, float]] = json.loads(facts.read_text())
    return curve


def run_workers(
    work: Callable[[dict[str, Any]], None], config: dict[str, Any], folder: Path, workers: WorkersConf
) -> None:
    """Runs a training function on the workers of Ray Train; Ray must have been started.

    Args:
        work: what each worker does.
        config: given to it; JSON values.
        folder: working folder of the training, on storage that every worker reaches.
        workers: processes.

    Raises:
        LedgerError: the worker's own error, or EngineError for any other failure.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    environment = {"OMP_NUM_THREADS": str(workers.threads), "OMP_WAIT_POLICY": "passive"}
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.threads, **({"GPU": 1} if workers.gpu else {})},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.absolute().parent),
            failure_config=FailureConfig(max_failures=workers.retries),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise worker_error(error) from error


def _worker(config: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    from ledgerlm.baselines.sequence.training import train_rank

    train_rank(RankConf.model_validate(config), lambda line: ray.train.report(dict(line)))
