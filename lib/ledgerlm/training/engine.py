"""What changes the weights: plain torch for small networks, DeepSpeed for all that it pays for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.training.checkpoints import TAG, Checkpoints
from ledgerlm.training.ranks import Ranks

_STATE = "state.safetensors"
# Written by us, so that the loop and DeepSpeed cannot disagree.
_OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


class Engine(ABC):
    """A module with its optimizer, over all ranks.

    Attributes:
        module: what is trained; it is called through the engine.
    """

    module: nn.Module
    _optimizer: Any

    @abstractmethod
    def __call__(self, *inputs: Any) -> Any:
        """What the module says."""

    @abstractmethod
    def learn(self, loss: Tensor) -> None:
        """Adds a batch's gradient; the last batch of a step changes the weights.

        The gradient of a step is the mean over its batches and over the ranks.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes this rank's part of a checkpoint."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            DataError: it cannot be read.
        """

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @abstractmethod
    def close(self) -> None:
        """Gives back what the engine holds beside the module."""


class PlainEngine(Engine):
    """Plain torch: gradients are averaged in one exchange, checkpoints are safetensors and rank 0's alone."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        *,
        clip: float | None,
        batches_per_step: int = 1,
    ) -> None:
        """Wraps a module.

        Args:
            module: what is trained.
            optimizer: Adam or AdamW.
            ranks: the processes that train together.
            clip: largest norm of the gradient.
            batches_per_step: batches of a rank for one change of the weights.
        """
        self.module, self._optimizer, self._ranks, self._clip = module, optimizer, ranks, clip
        self._batches, self._seen = batches_per_step, 0

    def __call__(self, *inputs: Any) -> Any:
        """What the module says."""
        return self.module(*inputs)

    def learn(self, loss: Tensor) -> None:
        """Adds a batch's gradient; the last batch of a step changes the weights."""
        torch.autograd.backward(loss / self._batches)
        self._seen += 1
        if self._seen % self._batches:
            return
        trained = [each for each in self.module.parameters() if each.requires_grad]
        if self._ranks.size > 1:
            for each in trained:
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
            self._ranks.average([each.grad for each in trained if each.grad is not None])
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def close(self) -> None:
        """Holds nothing."""

    def save(self, folder: Path) -> None:
        """Writes weights and Adam's moments, by rank 0."""
        if not self._ranks.first:
            return
        # Cloned, since safetensors refuses tensors that share memory.
        found = {f"model/{name}": value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        for place, state in self._optimizer.state_dict()["state"].items():
            for name, value in state.items():
                found[f"adam/{place}/{name}"] = torch.as_tensor(value).cpu().clone()
        save_file(found, folder / _STATE)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        weights: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in load_file(folder / _STATE).items():
            kind, _, rest = key.partition("/")
            if kind == "adam":
                number, _, name = rest.partition("/")
                moments[int(number)][name] = value
            else:
                weights[rest] = value
        self.module.load_state_dict(weights)
        groups: list[Any] = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})


class DeepSpeedEngine(Engine):
    """DeepSpeed: ZeRO shards of weights, gradients and moments, offload, bf16."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        checkpoints: Checkpoints,
        settings: Mapping[str, Any],
        *,
        clip: float,
        batches_per_step: int = 1,
        bf16: bool = False,
    ) -> None:
        """Starts DeepSpeed around a module; the process group exists already.

        Args:
            module: what is trained.
            optimizer: of torch.
            checkpoints: where the training may go on from.
            settings: of a file in `conf/deepspeed`.
            clip: largest norm of the gradient.
            batches_per_step: batches of a rank for one change of the weights.
            bf16: whether weights and products are bf16, with fp32 weights in the optimizer.

        Raises:
            ConfigError: the settings set what ledgerlm sets.
        """
        import deepspeed

        if clash := sorted(set(_OURS) & set(settings)):
            raise ConfigError(f"the DeepSpeed file sets {clash}; take them out, the stage's own settings decide them")
        # Compiling the shared-memory all-reduce would take a C++ compiler and half a minute on each new machine, and
        # its waiting ranks spin; gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        complete = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": batches_per_step,
            "gradient_clipping": clip,
            "bf16": {"enabled": bf16},
            "steps_per_print": 1 << 60,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **settings,
            "checkpoint": {**settings.get("checkpoint", {}), "load_universal": checkpoints.adapted()},
        }
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._engine = deepspeed.initialize(model=module, optimizer=optimizer, config=complete)[0]
        self.module, self._optimizer = self._engine.module, self._engine.optimizer
        _restore(self.module, buffers)

    def __call__(self, *inputs: Any) -> Any:
        """What the module says."""
        return self._engine(*inputs)

    def learn(self, loss: Tensor) -> None:
        """Adds a batch's gradient; the last batch of a step changes the weights."""
        self._engine.backward(loss)
        self._engine.step()

    def save(self, folder: Path) -> None:
        """Writes this rank's part of a checkpoint."""
        self._engine.save_checkpoint(str(folder), TAG)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        path, _ = self._engine.load_checkpoint(str(folder), TAG)
        if path is None:
            raise DataError(f"the checkpoint {folder} cannot be read; delete it to start again")

    def close(self) -> None:
        """Gives back what the engine holds beside the module."""
        self._engine.destroy()


def zero_stage(settings: Mapping[str, Any]) -> int:
    """ZeRO stage of DeepSpeed settings."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def _restore(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """DeepSpeed casts buffers with the weights, but rotary frequencies in bf16 would be other positions."""
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        place = module.get_submodule(owner)
        setattr(place, attribute, buffer.to(getattr(place, attribute).device))
