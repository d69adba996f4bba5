"""Training by Ray Train: workers of plain torch that average their gradients."""

from __future__ import annotations

import json
from typing import Any

from ledgerlm.baselines.sequence.settings import RankConf, WorkersConf
from ledgerlm.engines.ray import run_workers
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
    run_workers(
        _worker,
        conf.model_dump(mode="json"),
        conf.folder,
        ranks=workers.count,
        threads=workers.threads,
        gpu=workers.gpu,
        retries=workers.retries,
    )
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
