"""The processes that train together, and the few numbers they agree on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """A group of processes, or one alone.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: where tensors must be to be exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def current(cls) -> Ranks:
        """The default process group of torch, or one process alone when there is none."""
        if not torch.distributed.is_initialized():
            return cls()
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what only one may write."""
        return self.rank == 0

    def total(self, values: NDArray[np.generic]) -> NDArray[np.float64]:
        """Sum over the ranks, number by number."""
        return self._agreed(values, torch.distributed.ReduceOp.SUM)

    def least(self, value: float) -> int:
        """Least of the ranks' whole numbers."""
        return int(self._agreed(np.array([value]), torch.distributed.ReduceOp.MIN)[0])

    def most(self, value: float) -> float:
        """Greatest of the ranks' numbers."""
        return float(self._agreed(np.array([value]), torch.distributed.ReduceOp.MAX)[0])

    def wait(self) -> None:
        """Returns when every rank has come here."""
        self.least(0)

    def _agreed(self, values: NDArray[np.generic], how: torch.distributed.ReduceOp.RedOpType) -> NDArray[np.float64]:
        tensor: Tensor = torch.from_numpy(values.astype(np.float64)).to(self.device)
        if self.size > 1:
            torch.distributed.all_reduce(tensor, op=how)
        return tensor.cpu().numpy()
