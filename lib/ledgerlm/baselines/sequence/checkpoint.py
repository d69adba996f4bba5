"""What trainings of small networks share: checkpoints without pickles, and gradients averaged over the workers."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ledgerlm.backbone.ranks import Ranks

_FOLDER, _STATE, _CURVE = "checkpoint", "state.safetensors", "curve.json"


def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over the workers."""
    if ranks.size == 1:
        return
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([each.reshape(-1) for each in gradients])
    torch.distributed.all_reduce(flat)
    flat /= ranks.size
    start = 0
    for each in parameters:
        each.grad = flat[start : start + each.numel()].view_as(each)
        start += each.numel()


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    curve: Sequence[Mapping[str, float]],
    ranks: Ranks,
    *,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights, Adam's moments and the curve, by the first worker; all have come here when it returns.

    Args:
        folder: working folder of the training.
        model: the network.
        optimizer: Adam or AdamW.
        curve: a line for each finished epoch.
        ranks: the workers.
        beside: further weights to keep, such as those of the best epoch.
    """
    if ranks.first:
        aside, place = folder / f"{_FOLDER}.aside", folder / _FOLDER
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(_state(model, optimizer, beside or {}), aside / _STATE)
        (aside / _CURVE).write_text(json.dumps(list(curve)))
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
    ranks.wait()


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Cloned, since safetensors refuses tensors that share memory, as the best weights may with the model's.
    found = {f"model/{name}": value.detach().cpu().clone() for name, value in model.state_dict().items()}
    found |= {f"beside/{name}": value.detach().cpu().clone() for name, value in beside.items()}
    for place, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            found[f"adam/{place}/{name}"] = torch.as_tensor(value).cpu().clone()
    return found


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, curve: list[dict[str, float]]
) -> dict[str, Tensor]:
    """Takes up a training where its last checkpoint left it; nothing happens where there is none.

    Args:
        folder: as given to `save_checkpoint`.
        model: gets the weights.
        optimizer: gets the moments.
        curve: gets the lines.

    Returns:
        What was kept `beside`.
    """
    place = folder / _FOLDER
    if not (place / _CURVE).exists():
        return {}
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "beside": {}}
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in load_file(place / _STATE).items():
        kind, _, rest = key.partition("/")
        if kind == "adam":
            number, _, name = rest.partition("/")
            moments[int(number)][name] = value
        else:
            parts[kind][rest] = value
    model.load_state_dict(parts["model"])
    groups: list[Any] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})
    curve[:] = json.loads((place / _CURVE).read_text())
    return parts["beside"]
