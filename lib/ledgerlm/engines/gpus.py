"""Which device a Python worker of Spark opens a model on: of GPUs the one that Spark gave its task, one model on each.

Spark schedules GPUs like cores, once it is told of them (`spark.executor.resource.gpu.amount`,
`spark.task.resource.gpu.amount`, a discovery script): a task's `TaskContext.resources()` names the addresses that are
its own while it runs. Without that every worker of a machine would open its copy on the first GPU.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from typing import TYPE_CHECKING, TypeVar

from ledgerlm.engines.session import setting
from ledgerlm.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DEVICE = r"^(cpu|cuda)$"
"""What a setting `device` may be."""

_PER_TASK, _PER_EXECUTOR = "spark.task.resource.gpu.amount", "spark.executor.resource.gpu.amount"
_REMEDY = (
    f"start Spark with --conf {_PER_EXECUTOR}=1 --conf {_PER_TASK}=1 and a discovery script (docs/clusters.md), "
    "or set device to cpu"
)

Model = TypeVar("Model")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerDevice:
    """Where the Python workers of a session open a model.

    Attributes:
        kind: cpu or cuda.
        assigned: whether Spark gives each task a GPU; else a session has one worker, and that the first GPU.
        steady: whether all tasks of a worker have the same device, so that its model may stay open between them.
    """

    kind: str = "cpu"
    assigned: bool = False
    steady: bool = True

    @classmethod
    def of(cls, spark: SparkSession, kind: str) -> WorkerDevice:
        """Of a session, for a `device` as it was set.

        Raises:
            ConfigError: workers would share a GPU.
        """
        return cls.told(
            kind,
            master=setting(spark, "spark.master", ""),
            per_task=setting(spark, _PER_TASK, "") or None,
            per_executor=setting(spark, _PER_EXECUTOR, "") or None,
        )

    @classmethod
    def told(cls, kind: str, *, master: str, per_task: str | None, per_executor: str | None) -> WorkerDevice:
        """From Spark's settings.

        Args:
            kind: cpu or cuda.
            master: `spark.master`.
            per_task: `spark.task.resource.gpu.amount`.
            per_executor: `spark.executor.resource.gpu.amount`; a platform may not tell.

        Raises:
            ConfigError: workers would share a GPU.
        """
        if kind == "cpu":
            return cls()
        if master == "local" or master.startswith("local["):  # which knows no resources
            if master not in {"local", "local[1]"}:
                raise ConfigError(
                    f"device: cuda, but {master} runs several Python workers in one place, and each would open its "
                    "copy of the model on the first GPU; set spark.master to local[1], or device to cpu"
                )
            return cls(kind=kind)
        if per_task is None:
            raise ConfigError(
                "device: cuda, but Spark knows of no GPUs, and every Python worker of a machine would open its copy of "
                f"the model on the first one; {_REMEDY}"
            )
        if float(per_task) != 1:
            few = "a Python worker would use one of its GPUs, and the others nobody"
            many = "several Python workers would each open their copy of the model on one GPU"
            raise ConfigError(
                f"device: cuda, but with {_PER_TASK}={per_task} {many if float(per_task) < 1 else few}; {_REMEDY}"
            )
        return cls(kind=kind, assigned=True, steady=per_executor == "1")

    def here(self) -> str:
        """The device of the task that calls, as torch names it.

        Raises:
            EngineError: Spark gave the task no GPU, or one that is hidden from this process.
        """
        if self.kind == "cpu":
            return "cpu"
        # Before CUDA starts: as nvidia-smi numbers GPUs, and with it discovery scripts.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        return f"cuda:{index_of(_address(), os.environ) if self.assigned else 0}"

    @contextmanager
    def model(self, opened: _lru_cache_wrapper[Model], what: Hashable) -> Iterator[Model]:
        """A model on the device of the task that calls; it stays open between a worker's tasks if all have that device.

        Args:
            opened: function under `lru_cache(maxsize=1)` that opens `what` on a device, its second argument.
            what: describes the model.
        """
        try:
            yield opened(what, self.here())
        finally:
            if not self.steady:
                import torch

                opened.cache_clear()
                torch.cuda.empty_cache()


def _address() -> str:
    from pyspark import TaskContext

    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context is not None else None
    if gpus is None or not gpus.addresses:
        raise EngineError(f"Spark gave the task no GPU, though {_PER_TASK} is set; look at the cluster's workers")
    return str(gpus.addresses[0])


def index_of(address: str, environment: Mapping[str, str]) -> int:
    """Place of a GPU among those that a process sees.

    Args:
        address: as a discovery script gave it: nvidia-smi's index, or a name (`GPU-…`, `MIG-…`).
        environment: of the process; `CUDA_VISIBLE_DEVICES` leaves GPUs out and orders the others.

    Raises:
        EngineError: the process does not see this GPU.
    """
    visible = [one.strip() for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    if address in visible:
        return visible.index(address)
    if visible or not address.isdecimal():
        raise EngineError(
            f"Spark gave the task GPU {address}, which is not in CUDA_VISIBLE_DEVICES={','.join(visible)} of its "
            "executor; let the discovery script give the indices or names that stand there"
        )
    return int(address)


def usable(device: str) -> str:
    """The same device, if torch sees it in this process.

    Raises:
        EngineError: it does not.
    """
    import torch

    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= (seen := torch.cuda.device_count()):
        raise EngineError(
            f"the model is to be opened on {device}, but torch sees {seen} GPUs here; look at the discovery script of "
            "the workers, at their CUDA_VISIBLE_DEVICES, and whether their torch was built for CUDA"
        )
    return device
