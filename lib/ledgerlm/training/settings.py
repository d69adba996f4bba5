"""Settings that all trainings share; light to import, so that the command line stays quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ledgerlm.config import Conf

FACTS, METRICS = "training.json", "metrics.jsonl"


class WorkersConf(Conf):
    """Processes of a training."""

    ranks: int = Field(2, ge=1, description="processes that train together")
    threads: int = Field(1, ge=1, description="cores of each rank; ranks times threads must fit the cluster")
    gpu: bool = Field(False, description="one GPU for each rank")
    retries: int = Field(2, ge=0, description="restarts from the newest checkpoint after a worker was lost")


def _alone(content: Any) -> Any:
    return {"ranks": 1, "threads": 2, **content} if isinstance(content, Mapping) else content


# Networks that one process trains in minutes: a second one would mostly wait.
OneWorkerConf = Annotated[WorkersConf, BeforeValidator(_alone)]
ONE_WORKER = WorkersConf(ranks=1, threads=2)


class RankConf(Conf):
    """What each rank of any training is told."""

    folder: Path = Field(description="folder of checkpoints, metrics and the result; all ranks see it")
    seed: int = Field(0, description="of weights and order")
    threads: int = Field(1, ge=1, description="torch threads of a rank on CPUs")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the network is")

    @property
    def result(self) -> Path:
        """Folder of what was trained: the best so far, until `training.json` beside it says that training has ended."""
        return self.folder / "result"


def placed(workers: WorkersConf) -> dict[str, Any]:
    """The part of a `RankConf` that the processes decide."""
    return {"threads": workers.threads, "device": "cuda" if workers.gpu else "cpu"}


def cosine(share: float, *, warm_up: float = 0.0, final: float) -> float:
    """Learning rate as a share of the highest: a linear rise, then half a cosine.

    Args:
        share: how much of the training is done; while the rate rises, at the end of the step.
        warm_up: share of the training in which the rate rises.
        final: where the cosine ends.
    """
    if share < warm_up:
        return share / warm_up
    left = (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up)))) / 2
    return final + (1 - final) * left
