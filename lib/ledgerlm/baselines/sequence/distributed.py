"""Training by Ray Train: workers of plain torch that average their gradients."""

from __future__ import annotations

import json
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
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    environment = {"OMP_NUM_THREADS": str(workers.threads), "OMP_WAIT_POLICY": "passive"}
    trainer = TorchTrainer(
        _worker,
        train_loop_config=conf.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.threads, **({"GPU": 1} if workers.gpu else {})},
        ),
        run_config=RunConfig(
            name=conf.folder.name,
            storage_path=str(conf.folder.absolute().parent),
            failure_config=FailureConfig(max_failures=workers.retries),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise worker_error(error) from error
    facts = conf.result / "training.json"
    if not facts.exists():
        raise EngineError(f"Ray Train ended without {facts}; look at Ray's worker logs")
    curve: list[dict[str, float]] = json.loads(facts.read_text())
    return curve


def _worker(config: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    from ledgerlm.baselines.sequence.training import train_rank

    train_rank(RankConf.model_validate(config), lambda line: ray.train.report(dict(line)))
