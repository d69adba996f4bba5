"""Histories in memory and the padded batches that encoders read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledgerlm.baselines.sequence.settings import Fields, SlicesConf
from ledgerlm.training.store import Lists, flatten


@dataclass(frozen=True, slots=True)
class Histories:
    """Many histories, one after the other.

    Attributes:
        codes: events x categorical fields, int32; row numbers of embedding tables.
        numbers: events x numbers, float32, not yet scaled.
        starts: first event of each history, and the end of the last, int64.
    """

    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each history."""
        return np.diff(self.starts)

    @classmethod
    def from_arrow(cls, rows: pa.RecordBatch | pa.Table, shape: Fields) -> Histories:
        """Reads columns `codes` and `numbers` of `histories.assemble`."""
        flat = {name: _column(rows, name) for name in ("codes", "numbers")}
        numbers = flat["numbers"].flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        codes = flat["codes"].flatten().to_numpy(zero_copy_only=False).astype(np.int32)
        ends = np.cumsum(np.diff(flat["numbers"].offsets.to_numpy()) // len(shape.numbers), dtype=np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), ends))
        return cls(codes.reshape(starts[-1], len(shape.codes)), numbers.reshape(starts[-1], len(shape.numbers)), starts)

    @classmethod
    def from_files(cls, files: Sequence[Path], shape: Fields, folder: Path) -> Histories:
        """Streams Parquet files into flat arrays on disk and maps them, so that memory holds eight bytes a history.

        Args:
            files: read in this order.
            shape: fields of an event.
            folder: takes the two flat files; those of an earlier attempt are replaced.
        """
        kinds = {"codes": np.int32, "numbers": np.float32}
        lists, _ = flatten(files, kinds, (), folder)
        return cls.from_lists(lists, shape)

    @classmethod
    def from_lists(cls, lists: Mapping[str, Lists], shape: Fields) -> Histories:
        """Takes the columns `codes` and `numbers` as `flatten` left them."""
        starts = lists["numbers"].starts // len(shape.numbers)
        codes = lists["codes"].values.reshape(int(starts[-1]), len(shape.codes))
        numbers = lists["numbers"].values.reshape(int(starts[-1]), len(shape.numbers))
        return cls(codes.astype(np.int32, copy=False), numbers.astype(np.float32, copy=False), starts)


def _column(rows: pa.RecordBatch | pa.Table, name: str) -> pa.ListArray:
    column = rows.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences.

    Attributes:
        codes: sequences x events x fields, int64, 0 where padded.
        numbers: sequences x events x numbers, float32, 0 where padded.
        lengths: events of each sequence, int64.
        clients: number of the client of each sequence within the batch, int64.
    """

    codes: Tensor
    numbers: Tensor
    lengths: Tensor
    clients: Tensor

    @property
    def mask(self) -> Tensor:
        """Sequences x events, true where there is an event."""
        return torch.arange(self.codes.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @property
    def days(self) -> Tensor:
        """Sequences x events: days from the first event of the sequence."""
        gaps = torch.expm1(self.numbers[..., -1]).clamp(min=0.0)
        return torch.cumsum(torch.cat([torch.zeros_like(gaps[:, :1]), gaps[:, 1:]], dim=1), dim=1)

    def to(self, device: str) -> Batch:
        """The same on a device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pad(
    histories: Histories, starts: NDArray[np.int64], lengths: NDArray[np.int64], clients: NDArray[np.int64]
) -> Batch:
    """Copies runs of events into a padded batch.

    Args:
        histories: where the events stand.
        starts: first event of each run.
        lengths: events of each run.
        clients: number of each run's client within the batch.
    """
    longest = int(lengths.max())
    codes = np.zeros((len(starts), longest, histories.codes.shape[1]), np.int64)
    numbers = np.zeros((len(starts), longest, histories.numbers.shape[1]), np.float32)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        codes[row, :length] = histories.codes[start : start + length]
        numbers[row, :length] = histories.numbers[start : start + length]
    return Batch(*(torch.from_numpy(each) for each in (codes, numbers, lengths, clients)))


def whole(histories: Histories, members: NDArray[np.int64]) -> Batch:
    """Whole histories as a batch."""
    return pad(histories, histories.starts[members], histories.lengths[members], np.arange(len(members)))


def draw_slices(
    histories: Histories, members: NDArray[np.int64], conf: SlicesConf, random: np.random.Generator
) -> Batch:
    """Random runs of events, `conf.slices` of each history; lengths and places are uniform (CoLES, algorithm 1).

    Args:
        histories: where the events stand.
        members: histories to take.
        conf: number and lengths of slices.
        random: draws them.
    """
    clients = np.repeat(np.arange(len(members)), conf.slices)
    available = histories.lengths[members][clients]
    most = np.minimum(available, conf.longest)
    least = np.minimum(most, conf.shortest)
    lengths = random.integers(least, most + 1)
    starts = histories.starts[members][clients] + random.integers(0, available - lengths + 1)
    return pad(histories, starts, lengths, clients)


def drop_events(batch: Batch, share: float) -> Batch:
    """Leaves out random events of each sequence, at least one of each stays."""
    keep = (torch.rand(batch.codes.shape[:2]) >= share) & batch.mask
    keep[:, 0] |= ~keep.any(1)
    lengths = keep.sum(1)
    order = torch.argsort((~keep).int(), dim=1, stable=True)[:, : int(lengths.max())]
    there = (torch.arange(order.shape[1]) < lengths[:, None])[..., None]
    codes = batch.codes.gather(1, order[..., None].expand(-1, -1, batch.codes.shape[-1])) * there
    numbers = batch.numbers.gather(1, order[..., None].expand(-1, -1, batch.numbers.shape[-1])) * there
    return Batch(codes, numbers, lengths, batch.clients)
