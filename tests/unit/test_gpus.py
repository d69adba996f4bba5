"""Which GPU a Python worker of Spark opens a model on, and what is refused before work begins."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

import pytest
import torch

from ledgerlm.engines import gpus
from ledgerlm.engines.gpus import WorkerDevice, index_of, usable
from ledgerlm.errors import ConfigError, EngineError

CLUSTER = "spark://head:7077"


def told(master: str = CLUSTER, per_task: str | None = "1", per_executor: str | None = "1") -> WorkerDevice:
    return WorkerDevice.told("cuda", master=master, per_task=per_task, per_executor=per_executor)


def test_on_cpu_nothing_is_asked_of_spark() -> None:
    device = WorkerDevice.told("cpu", master="local[8]", per_task=None, per_executor=None)
    assert (device.here(), device.steady) == ("cpu", True)


@pytest.mark.parametrize(
    ("asked", "why", "remedy"),
    [
        ({"per_task": None, "per_executor": None}, "Spark knows of no GPUs", "spark.task.resource.gpu.amount=1"),
        ({"per_task": "0.25"}, "several Python workers", "spark.task.resource.gpu.amount=1"),
        ({"per_task": "2", "per_executor": "4"}, "the others nobody", "spark.task.resource.gpu.amount=1"),
        ({"master": "local[*]"}, "local[*] runs several Python workers", "local[1]"),
        ({"master": "local[4]", "per_task": "1"}, "local[4] runs several Python workers", "local[1]"),
        ({"master": "local-cluster[2,2,1024]", "per_task": None}, "Spark knows of no GPUs", "discovery script"),
    ],
)
def test_more_workers_than_gpus_are_refused_with_a_remedy(asked: dict[str, str], why: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        told(**asked)
    assert why in str(refused.value) and remedy in str(refused.value)
    assert "cpu" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "visible", "index"),
    [
        ("3", {}, 3),
        ("3", {"CUDA_VISIBLE_DEVICES": ""}, 3),
        ("3", {"CUDA_VISIBLE_DEVICES": "2, 3"}, 1),
        ("GPU-b", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 1),
    ],
)
def test_an_address_is_a_place_among_what_the_process_sees(address: str, visible: dict[str, str], index: int) -> None:
    assert index_of(address, visible) == index


@pytest.mark.parametrize(("address", "visible"), [("1", {"CUDA_VISIBLE_DEVICES": "2,3"}), ("GPU-a", {})])
def test_a_hidden_gpu_is_refused(address: str, visible: dict[str, str]) -> None:
    with pytest.raises(EngineError, match=f"gave the task GPU {address}.*CUDA_VISIBLE_DEVICES"):
        index_of(address, visible)


def test_an_assigned_gpu_is_the_tasks_and_a_lone_worker_has_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr(gpus, "_address", lambda: "5")
    assert told().here() == "cuda:5"
    assert told(master="local[1]", per_task=None, per_executor=None).here() == "cuda:0"


@pytest.mark.parametrize(("per_executor", "steady"), [("1", True), ("4", False), (None, False)])
def test_a_workers_tasks_have_one_gpu_only_where_its_executor_has_one(per_executor: str | None, steady: bool) -> None:
    assert told(per_executor=per_executor).steady == steady


def test_outside_of_a_task_there_is_no_gpu() -> None:
    with pytest.raises(EngineError, match="gave the task no GPU"):
        told().here()


def test_a_model_stays_open_only_where_a_worker_always_has_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given, opened = iter("0010"), []
    monkeypatch.setattr(gpus, "_address", lambda: next(given))

    @lru_cache(maxsize=1)
    def open_model(what: Hashable, device: str) -> str:
        opened.append(device)
        return f"{what} on {device}"

    for _ in range(2):
        with told().model(open_model, "model") as model:
            assert model == "model on cuda:0"
    assert opened == ["cuda:0"]
    several = told(per_executor="2")
    with several.model(open_model, "model") as model:
        assert model == "model on cuda:1"
    # The worker beside it may get this GPU next: nothing is left on it.
    assert open_model.cache_info().currsize == 0
    with pytest.raises(ValueError, match="of the task"), several.model(open_model, "model"):
        raise ValueError("of the task")
    assert open_model.cache_info().currsize == 0


def test_a_gpu_that_torch_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable("cuda:1") == "cuda:1" and usable("cpu") == "cpu"
    with pytest.raises(EngineError, match="cuda:2, but torch sees 2 GPUs"):
        usable("cuda:2")
