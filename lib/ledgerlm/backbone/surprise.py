"""Surprise: how unlikely the backbone finds a client's tokens, summed up per field of an event.

The profile's statistics (per field the mean, standard deviation and maximum of the tokens' negative log-likelihood, and
the last events' mean minus the whole) carry what a mean over hidden states loses, at no second forward pass.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Logits held at once: 4 MiB of fp32 stay in a CPU core's caches; a GPU wants larger products.
CPU_LOGITS = 1 << 20
GPU_LOGITS = 1 << 27


def token_surprise(states: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in nats, without ever holding the logits of the whole pack.

    Args:
        states: `[N, d]` hidden states after the final norm, at the position before each target.
        targets: `[N]` token ids.
        head: `[vocabulary, d]` output weights; their type is the type of the product.

    Returns:
        `[N]` in fp32.
    """
    budget = CPU_LOGITS if states.device.type == "cpu" else GPU_LOGITS
    rows = max(1, budget // head.shape[0])
    surprise = torch.empty(len(targets), dtype=torch.float32, device=states.device)
    for start in range(0, len(targets), rows):
        chunk = slice(start, start + rows)
        logits = functional.linear(states[chunk].to(head.dtype), head).float()
        surprise[chunk] = functional.cross_entropy(logits, targets[chunk], reduction="none")
    return surprise


class SurpriseSums:
    """Running sums of token surprise per document and field, in fp64."""

    def __init__(self, documents: int, fields: int, last_events: int, device: torch.device) -> None:
        self._shape = (documents, fields)
        self._last_events = last_events
        self._sums = torch.zeros(3, documents * fields, dtype=torch.float64, device=device)
        self._recent = torch.zeros(2, documents * last_events * fields, dtype=torch.float64, device=device)
        self._max = torch.zeros(documents * fields, dtype=torch.float32, device=device)  # surprise is never negative

    def add(self, surprise: Tensor, document: Tensor, field: Tensor, age: Tensor) -> None:
        """Adds tokens.

        Args:
            surprise: `[N]` negative log-likelihoods.
            document: `[N]` row of each token's document.
            field: `[N]` field of each token; beyond the last it counts as the last.
            age: `[N]` how many events come after the token's event in its document.
        """
        fields = self._shape[1]
        field = field.clamp(max=fields - 1)
        cell = document * fields + field
        wide = surprise.double()
        ones = torch.ones_like(wide)
        for row, values in enumerate((ones, wide, wide * wide)):
            self._sums[row].index_add_(0, cell, values)
        self._max.scatter_reduce_(0, cell, surprise, "amax")
        late = age < self._last_events
        place = (document[late] * self._last_events + age[late]) * fields + field[late]
        for row, values in enumerate((ones[late], wide[late])):
            self._recent[row].index_add_(0, place, values)

    def profile(self) -> Tensor:
        """The components of `surprise_names`, `[documents, fields * 4]` in fp32; a field without tokens is zero."""
        count, total, squares = self._sums
        documents, fields = self._shape
        recent_count, recent_total = self._recent.reshape(2, documents, self._last_events, fields).sum(2).flatten(1)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean * mean).clamp(min=0).sqrt()
        recent = torch.where(recent_count > 0, recent_total / recent_count.clamp(min=1) - mean, 0.0)
        components = torch.stack([mean, std, self._max.double(), recent], dim=1)
        return components.reshape(documents, -1).float()

    def blocks(self) -> dict[str, NDArray[np.float64]]:
        """The sums as `StateLayout.blocks` names them: `[documents, fields, 4]`, `[documents, events, fields, 2]`."""
        count, total, squares = self._sums
        spread = (squares - total * total / count.clamp(min=1)).clamp(min=0)
        of_fields = torch.stack([count, total, spread, self._max.double()], dim=1).reshape(*self._shape, 4)
        of_events = self._recent.T.reshape(self._shape[0], self._last_events, self._shape[1], 2)
        return {"surprise": of_fields.cpu().numpy(), "recent_surprise": of_events.cpu().numpy()}
