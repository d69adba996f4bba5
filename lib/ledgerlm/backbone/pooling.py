"""Pooling: from the token states of packs to the parts of each document's vector, by sums that run over windows."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DocumentSums:
    """Running sums of token states per document; a document may be spread over windows and packs in any order.

    Sums are in fp64, so that the variance is safe and the order of windows does not show in the fp32 result.
    """

    def __init__(
        self, documents: int, width: int, parts: Collection[str], half_life: float, device: torch.device
    ) -> None:
        self._half_life = half_life
        self._parts = [part for part in ("mean", "recent", "last_event", "last_token") if part in parts]
        if "std" in parts and "mean" not in self._parts:
            self._parts.append("mean")
        self._wanted = frozenset(parts)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self._sums = {part: zeros(documents, width) for part in self._parts}
        self._weights = {part: zeros(documents) for part in self._parts}
        if "std" in parts:
            self._squares = zeros(documents, width)
        if "max" in parts:
            self._max = torch.full((documents, width), -torch.inf, device=device)

    def add(self, states: Tensor, document: Tensor, age: Tensor, last: Tensor, weight: Tensor) -> None:
        """Adds pooled tokens.

        Args:
            states: `[N, d]` fp32 states, the mean over the chosen layers.
            document: `[N]` row of each token's document.
            age: `[N]` how many events come after the token's event in its document.
            last: `[N]` whether it is the document's last pooled token.
            weight: `[N]` how much the token counts in the mean and the deviation.
        """
        wide = states.double()
        for part in self._parts:
            if part == "mean":
                self._add("mean", wide, document, weight.double())
            elif part == "recent":
                self._add("recent", wide, document, torch.exp2(-age.double() / self._half_life))
            else:
                chosen = (last if part == "last_token" else age == 0).nonzero()[:, 0]
                ones = torch.ones(len(chosen), dtype=torch.float64, device=states.device)
                self._add(part, wide[chosen], document[chosen], ones)
        if "std" in self._wanted:
            self._squares.index_add_(0, document, wide * wide * weight.double()[:, None])
        if "max" in self._wanted:
            self._max.scatter_reduce_(0, document[:, None].expand(-1, states.shape[1]), states, "amax")

    def _add(self, part: str, wide: Tensor, document: Tensor, weight: Tensor) -> None:
        self._sums[part].index_add_(0, document, wide * weight[:, None])
        self._weights[part].index_add_(0, document, weight)

    def result(self) -> dict[str, Tensor]:
        """Each wanted part, `[documents, d]` in fp32; rows of documents without a pooled token are not finite."""
        means = {part: self._sums[part] / self._weights[part][:, None] for part in self._parts}
        parts = dict(means)
        if "std" in self._wanted:
            squares = self._squares / self._weights["mean"][:, None]
            parts["std"] = (squares - means["mean"].square()).clamp(min=0).sqrt()
        if "max" in self._wanted:
            parts["max"] = self._max
        return {part: parts[part].float() for part in parts if part in self._wanted}

    def blocks(self) -> dict[str, NDArray[np.float64]]:
        """The sums as `StateLayout.blocks` names them, `[documents]` and `[documents, d]`."""
        found = {}
        if "mean" in self._sums:
            found = {"weight": self._weights["mean"], "sum": self._sums["mean"]}
        if "std" in self._wanted:
            mean = self._sums["mean"] / self._weights["mean"][:, None]
            found["spread"] = (self._squares - mean * self._sums["mean"]).clamp(min=0)
        if "recent" in self._sums:
            found |= {"recent_weight": self._weights["recent"], "recent": self._sums["recent"]}
        for part in self._wanted & {"last_event", "last_token"}:
            found[part] = self._sums[part] / self._weights[part][:, None]
        if "max" in self._wanted:
            found["max"] = self._max.double()
        return {name: block.cpu().numpy() for name, block in found.items()}
