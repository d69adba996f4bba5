"""Training of a head by Ray Train: workers of plain torch that average their gradients."""

from __future__ import annotations

import json
from typing import Any

from ledgerlm.baselines.sequence.settings import WorkersConf
from ledgerlm.engines.ray import run_workers
from ledgerlm.heads.recurrent.settings import WorkerConf


def train_on_ray(conf: WorkerConf, workers: WorkersConf) -> list[dict[str, float]]:
    """Trains a head; Ray must have been started. A training that was killed goes on after its last epoch.

    Returns:
        The curve: a line for each epoch.
    """
    run_workers(
        _worker,
        conf.model_dump(mode="json"),
        conf.folder,
        ranks=workers.count,
        threads=workers.threads,
        gpu=workers.gpu,
        retries=workers.retries,
    )
    curve: list[dict[str, float]] = json.loads((conf.folder / "training.json").read_text(encoding="utf-8"))
    return curve


def _worker(config: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    from ledgerlm.heads.recurrent.training import train_rank

    train_rank(WorkerConf.model_validate(config), lambda line: ray.train.report(dict(line)))
