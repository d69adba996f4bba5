"""Clients as flat arrays: structured matrix, sentence states and labels, out of Arrow, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.network import Batch
from ledgerlm.heads.alimn.settings import Shape
from ledgerlm.heads.tasks import Ints
from ledgerlm.heads.vectors import Block, to_matrix

SENTENCES = "sentences"


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Some clients with all that a network reads.

    Attributes:
        x: structured features, fp32 `[N, F]`.
        starts: first sentence of each client, and the end of the last, int64 `[N + 1]`.
        states: states of the sentences, fp32 `[T, d]`.
        domains: place of each sentence's tag, int64 `[T]`.
        documents: number of each sentence's document within its client, int64 `[T]`.
        texts: the sentences, for reasons.
    """

    x: NDArray[np.float32]
    starts: Ints
    states: NDArray[np.float32]
    domains: Ints
    documents: Ints
    texts: pa.Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def owners(self) -> Ints:
        """Client of each sentence, int64 `[T]`."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def batch(self, rows: Ints, y: NDArray[np.float64] | None = None) -> Batch:
        """The network's input for these clients; `y` are all clients' labels."""
        lengths = np.diff(self.starts)[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        chosen = np.repeat(self.starts[:-1][rows], lengths) + within
        key = np.stack([owner, self.documents[chosen]], axis=1)
        pairs, document = np.unique(key, axis=0, return_inverse=True)
        labels = np.full(len(rows), np.nan) if y is None else y[rows]
        return Batch(
            x=torch.from_numpy(self.x[rows]),
            states=torch.from_numpy(self.states[chosen]),
            domains=torch.from_numpy(self.domains[chosen]),
            document=torch.from_numpy(document.reshape(-1).astype(np.int64)),
            client=torch.from_numpy(pairs[:, 0].astype(np.int64)),
            y=torch.from_numpy(labels.astype(np.float32)),
        )

    def shape(self, domains: Sequence[str]) -> Shape:
        """Sizes that a network is made for."""
        return Shape(features=self.x.shape[1], state=self.states.shape[1], domains=len(domains))


def clients_of(
    rows: pa.RecordBatch | pa.Table, blocks: Sequence[Block], domains: Sequence[str], width: int | None = None
) -> Clients:
    """Takes clients out of Arrow.

    Args:
        rows: the blocks' columns, and `sentences` array<struct<document, domain, state, text>> (may be absent).
        blocks: columns of the structured matrix.
        domains: tags in order; another one stops the run.
        width: numbers that a state must have; left out, what is found.

    Raises:
        DataError: a state of another length, or an unknown tag.
    """
    count = rows.num_rows
    x = to_matrix(rows, blocks).toarray() if blocks else np.zeros((count, 0), np.float32)
    if SENTENCES not in rows.schema.names:
        none = np.zeros(0, np.int64)
        return Clients(
            x=x,
            starts=np.zeros(count + 1, np.int64),
            states=np.zeros((0, width or 0), np.float32),
            domains=none,
            documents=none,
            texts=pa.array([], pa.string()),
        )
    column = rows.column(SENTENCES)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    states = flat.field("state")
    total = len(flat)
    values = states.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    found = len(values) // total if total else width or 0
    if len(values) != total * found or found != (width or found):
        raise DataError(f"sentence states have {found} numbers, {width or 'one length'} is needed; run the read stage")
    places = pc.index_in(flat.field("domain"), value_set=pa.array(list(domains), pa.string()))
    if places.null_count:
        strange = flat.field("domain").filter(places.is_null())[0].as_py()
        raise DataError(
            f"a sentence has the domain '{strange}', known are {', '.join(domains)}; train the network again"
        )
    return Clients(
        x=x,
        starts=np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))),
        states=values.reshape(total, found),
        domains=places.to_numpy(zero_copy_only=False).astype(np.int64),
        documents=flat.field("document").to_numpy(zero_copy_only=False).astype(np.int64),
        texts=flat.field("text"),
    )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rank's share of the staged clients.

    Attributes:
        clients: what the networks read.
        labels: task to class index of each client, NaN where it has none.
        held_out: clients that are not trained on.
        keys: `client_id` and `as_of`.
    """

    clients: Clients
    labels: dict[str, NDArray[np.float64]]
    held_out: NDArray[np.bool_]
    keys: pa.Table

    @classmethod
    def read(cls, files: Sequence[Path], blocks: Sequence[Block], domains: Sequence[str], tasks: Sequence[str]) -> Rows:
        """Reads staged files: the columns of `clients_of`, `label_TASK`, `held_out`, `client_id`, `as_of`.

        Memory is about 4 bytes for each number of the rank's clients.
        """
        table = pa.concat_tables([pq.read_table(path) for path in files]).combine_chunks()
        labels = {task: table.column(f"label_{task}").to_numpy(zero_copy_only=False) for task in tasks}
        return cls(
            clients=clients_of(table, blocks, domains),
            labels={task: values.astype(np.float64) for task, values in labels.items()},
            held_out=table.column("held_out").to_numpy(zero_copy_only=False),
            keys=table.select(["client_id", "as_of"]),
        )

    def places(self, task: str, *, held_out: bool) -> Ints:
        """Labelled clients of one side of the split."""
        return np.flatnonzero(~np.isnan(self.labels[task]) & (self.held_out == held_out))
