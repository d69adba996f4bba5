"""What a rank reads: its share of staged Parquet files, lists of numbers laid flat on disk and mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from ledgerlm.training.ranks import Ranks

_READ_ROWS = 1024  # lists may be long


def files_of(folder: Path, ranks: Ranks) -> list[Path]:
    """This rank's share of the Parquet files of a folder, in the order of their names."""
    return sorted(folder.glob("*.parquet"))[ranks.rank :: ranks.size]


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists.

    Attributes:
        values: all lists, one after the other, memory-mapped.
        starts: first value of each list, and the end of the last, int64 [N + 1].
    """

    values: NDArray[np.generic]
    starts: NDArray[np.int64]


def flatten(
    files: Sequence[Path], lists: Mapping[str, DTypeLike], beside: Sequence[str], folder: Path
) -> tuple[dict[str, Lists], pa.Table]:
    """Streams Parquet files into flat arrays on disk, so that memory holds a few numbers a row.

    Args:
        files: read in this order.
        lists: column of lists of numbers -> type that its numbers get.
        beside: columns that are held in memory; one that the files lack is left out.
        folder: takes a flat file for each list; those of an earlier attempt are replaced.

    Returns:
        The lists by column, and a table of the columns beside them, in the order of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {name: [np.zeros(1, np.int64)] for name in lists}
    held: list[pa.Table] = []
    for name in lists:
        (folder / f"{name}.bin").write_bytes(b"")
    for path in files:
        file = pq.ParquetFile(path)
        known = [name for name in beside if name in file.schema_arrow.names]
        for batch in file.iter_batches(_READ_ROWS, columns=[*lists, *known]):
            for name, kind in lists.items():
                column = batch.column(name)
                lengths[name].append(np.diff(column.offsets.to_numpy()).astype(np.int64))
                with (folder / f"{name}.bin").open("ab") as flat:
                    column.flatten().to_numpy(zero_copy_only=False).astype(kind, copy=False).tofile(flat)
            held.append(pa.table({name: _coded(batch.column(name)) for name in known}))
    found = {}
    for name, kind in lists.items():
        starts = np.cumsum(np.concatenate(lengths[name]))
        values = np.memmap(folder / f"{name}.bin", kind, "r") if starts[-1] else np.zeros(0, kind)
        found[name] = Lists(values, starts)
    return found, pa.concat_tables(held) if held else pa.table({})


def _coded(column: pa.Array) -> pa.Array:
    """Texts that say of which kind a row is cost a number each."""
    return column.dictionary_encode() if pa.types.is_string(column.type) else column
