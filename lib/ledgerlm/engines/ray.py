"""The one place that starts or joins Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from tenacity import Retrying, stop_after_attempt

from ledgerlm.config import Conf
from ledgerlm.errors import EngineError, LedgerError
from ledgerlm.files import place_of

# Set before Ray starts, so that its daemons and workers inherit them.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_enable_open_telemetry": "0",
    # Ray's default of 15 lets any other process starve a rank, and with it all ranks that wait for it.
    "RAY_worker_niceness": "0",
    # A rank's report waits until the controller looks: with Ray's default of 2 s, short epochs are mostly waiting.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Spinning OpenMP threads on contended cores slow everything many times.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}
# A Ray of this machine alone, which ends with the run: no node is ever taken from it, and nobody reads its metrics. An
# actor of Ray Train that only looks on costs as much as a rank's start.
_LOCAL = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "LOG_NAME_UPDATE_INTERVAL_S": "10",
}
# Ray gives its own agents 15 seconds to come up (ray-project/ray#65983). A slow machine that reads their files from the
# disk for the first time needs longer; the next attempt finds them in memory.
_ATTEMPTS = 3


class RayConf(Conf):
    """Ray part of an engine profile."""

    address: str | None = Field(
        None,
        description="address of a running Ray cluster, or `auto` for the one of this machine; left out or `local`, one "
        "is started",
    )
    cpus: int | None = Field(None, description="cores of the local Ray; left out, all of the machine", ge=1)
    object_store_gb: float = Field(0.5, description="memory of the local object store, GB", gt=0)
    dashboard: bool = Field(
        False, description="whether the local Ray has its web page, at 127.0.0.1:8265; eight processes more"
    )


class RayEngine:
    """A Ray connection that is opened on first need and closed once, at the end of a run."""

    def __init__(self, settings: RayConf) -> None:
        self.settings = settings
        self._started = False

    @property
    def cluster(self) -> str | None:
        """Address of the cluster that is joined; None where a local Ray is started."""
        return None if self.settings.address == "local" else self.settings.address

    def start(self) -> None:
        """Starts a local Ray, or joins the cluster of the profile; later calls do nothing.

        Raises:
            EngineError: when the cluster cannot be reached or the local Ray does not come up.
        """
        # Ray reads its environment as it is imported, and without a token its daemons die.
        for key, value in (_ENVIRONMENT if self.cluster else _ENVIRONMENT | _LOCAL).items():
            os.environ.setdefault(key, value)
        import ray

        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if self.cluster:
            options["address"] = self.cluster
        else:
            options |= {
                # Else Ray would join a cluster that happens to run on this machine.
                "address": "local",
                "num_cpus": self.settings.cpus,
                "object_store_memory": int(self.settings.object_store_gb * 2**30),
                "include_dashboard": self.settings.dashboard,
                "dashboard_host": "127.0.0.1",
                "_node_ip_address": "127.0.0.1",
            }
        attempts = Retrying(stop=stop_after_attempt(1 if self.cluster else _ATTEMPTS), reraise=True)
        try:
            attempts(ray.init, **options)
        except Exception as error:  # Ray raises many types here; the cause stays chained
            where = self.cluster or "this machine"
            raise EngineError(f"cannot start or join Ray at {where}: {error}; run 'ledgerlm doctor'") from error
        self._started = True

    def stop(self) -> None:
        """Leaves the cluster, or ends the local Ray that this object started."""
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def run_workers(
    work: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    folder: Path,
    *,
    ranks: int,
    threads: int,
    gpu: bool,
    retries: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a training function on the workers of Ray Train; Ray must have been started.

    Args:
        work: what each worker does.
        config: given to it; JSON values.
        folder: working folder of the training. Ray calls it the experiment.
        ranks: processes.
        threads: cores of each.
        gpu: whether each has a GPU.
        retries: how often the workers are started anew after a failure.
        environment: further variables of their processes.

    Raises:
        LedgerError: the worker's own error, or EngineError for any other failure.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    # Threads are set once and do not spin.
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", **(environment or {})}
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=gpu, resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(
            name=folder.name,
            **storage_of(folder.absolute().parent),
            failure_config=FailureConfig(max_failures=retries),
            worker_runtime_env={"env_vars": variables},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _worker_error(error) from error


def storage_of(folder: Path) -> dict[str, Any]:
    """Settings of Ray Train's `RunConfig` for what it keeps itself: in a folder that all workers see, or at its URL."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    place = place_of(folder.absolute())
    if place is None:
        return {"storage_path": str(folder.absolute())}
    there = place.at(folder.absolute())
    return {"storage_path": there.path, "storage_filesystem": PyFileSystem(FSSpecHandler(there.fs))}


def _worker_error(error: Exception) -> LedgerError:
    """The workers' own error when it is one that a user can act on."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, LedgerError):
                return type(seen)(str(seen))
            seen = getattr(seen, "cause", None) or seen.__cause__
    first = next(iter(failures.values()), error)
    return EngineError(f"training failed in a Ray Train worker: {first}")
