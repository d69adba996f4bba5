"""The processes that train together, and the few numbers they agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T", bound=np.generic)


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

    def together(self, rows: NDArray[T]) -> NDArray[T]:
        """The rows of all ranks, those of rank 0 first; a rank may have none.

        Args:
            rows: of this rank, in any number; of one type and, but for their number, one shape on all ranks.
        """
        if self.size == 1:
            return rows
        counts = np.zeros(self.size)
        counts[self.rank] = len(rows)
        each = self.total(counts).astype(np.int64)
        padded = np.zeros((max(int(each.max()), 1), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        mine = torch.from_numpy(padded).to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(found, mine)
        return np.concatenate([part.cpu().numpy()[:count] for part, count in zip(found, each, strict=True)])

    def average(self, gradients: list[Tensor]) -> None:
        """Replaces tensors by their mean over the ranks, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([each.reshape(-1) for each in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for each in gradients:
            each.copy_(flat[start : start + each.numel()].view_as(each))
            start += each.numel()

    def _agreed(self, values: NDArray[np.generic], how: torch.distributed.ReduceOp.RedOpType) -> NDArray[np.float64]:
        tensor: Tensor = torch.from_numpy(values.astype(np.float64)).to(self.device)
        if self.size > 1:
            torch.distributed.all_reduce(tensor, op=how)
        return tensor.cpu().numpy()
