"""Labelled rows in memory, and the padded batches that the network reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ledgerlm.baselines.sequence.batches import Histories, whole
from ledgerlm.heads.recurrent.model import Inputs
from ledgerlm.heads.recurrent.settings import RowsShape
from ledgerlm.training.store import flatten


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a head.

    Attributes:
        histories: events of each row, of one event or more.
        metadata: rows x attributes, int32.
        context: rows x numbers, float32.
        labels: class index of each row, int64; empty where nothing is known.
    """

    histories: Histories
    metadata: NDArray[np.int32]
    context: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.histories)

    @classmethod
    def from_arrow(cls, rows: pa.RecordBatch | pa.Table, shape: RowsShape) -> Rows:
        """Reads the columns of `inputs.head_rows`, and `label` if it is there."""
        names = rows.schema.names
        labels = rows.column("label").to_numpy(zero_copy_only=False).astype(np.int64) if "label" in names else None
        return cls(
            Histories.from_arrow(rows, shape.fields),
            _matrix(rows, "metadata", len(shape.context.codes)).astype(np.int32),
            _matrix(rows, "context", len(shape.context.numbers)).astype(np.float32),
            np.zeros(0, np.int64) if labels is None else labels,
        )

    @classmethod
    def from_files(cls, files: Sequence[Path], shape: RowsShape, folder: Path) -> Rows:
        """Reads staged rows; events go to flat files on disk, memory holds what is a few numbers a row.

        Args:
            files: read in this order.
            shape: fields and context.
            folder: takes the flat files.
        """
        kinds = {"codes": np.int32, "numbers": np.float32, "metadata": np.int32, "context": np.float32}
        lists, beside = flatten(files, kinds, ("label",), folder)
        histories = Histories.from_lists(lists, shape.fields)
        rows = len(histories)
        return cls(
            histories,
            lists["metadata"].values.reshape(rows, len(shape.context.codes)).astype(np.int32),
            lists["context"].values.reshape(rows, len(shape.context.numbers)).astype(np.float32),
            beside.column("label").to_numpy().astype(np.int64) if files else np.zeros(0, np.int64),
        )

    def batch(self, members: NDArray[np.int64]) -> Inputs:
        """Some rows, padded to the longest of them."""
        return Inputs(
            whole(self.histories, members),
            torch.from_numpy(self.metadata[members].astype(np.int64)),
            torch.from_numpy(self.context[members]),
        )


def _matrix(rows: pa.RecordBatch | pa.Table, name: str, width: int) -> NDArray[np.generic]:
    column = rows.column(name)
    flat = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).flatten()
    found: NDArray[np.generic] = flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
    return found


def batches_alike(
    lengths: NDArray[np.int64], size: int, random: np.random.Generator, *, together: int = 16
) -> Iterator[NDArray[np.int64]]:
    """Random batches whose rows are of like length, so that little is padded.

    Args:
        lengths: events of each row.
        size: rows of a batch; a last one that would be smaller is left out.
        random: draws the order.
        together: batches that are put in order of length among themselves.
    """
    order = random.permutation(len(lengths))
    found = []
    for start in range(0, len(order), size * together):
        pool = order[start : start + size * together]
        alike = pool[np.argsort(lengths[pool], kind="stable")]
        found += [alike[at : at + size] for at in range(0, len(alike), size) if at + size <= len(alike)]
    for place in random.permutation(len(found)):
        yield found[place]


def batches_in_order(lengths: NDArray[np.int64], events_at_once: int = 32_768) -> Iterator[NDArray[np.int64]]:
    """All rows, longest first, in batches of at most so many padded events (a longer row has one of its own)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, events_at_once // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count
