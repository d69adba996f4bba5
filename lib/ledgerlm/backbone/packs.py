"""Packs: many windows in one flat row without padding, so that every position the model computes is a real token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pack:
    """One flat row of windows.

    Attributes:
        input_ids: token ids of all windows, one after the other, int32 [T].
        position_ids: place of each token in its own window, from 0, int32 [T].
        cu_seqlens: where each window starts, and the end of the last, int32 [S + 1].
        owners: what the caller gave with each window (a document's number), int64 [S].
        targets: how many last tokens of each window are learnt, int32 [S]; None for all but the first.
    """

    input_ids: Ids
    position_ids: Ids
    cu_seqlens: Ids
    owners: NDArray[np.int64]
    targets: Ids | None = None

    @property
    def lengths(self) -> Ids:
        """Tokens of each window, int32 [S]."""
        return np.diff(self.cu_seqlens)


def pack(sequences: Sequence[Ids], owners: Sequence[int] | NDArray[np.int64], targets: Ids | None = None) -> Pack:
    """Lays windows one after the other; sorted by length, so that windows of equal length stand together.

    Args:
        sequences: token ids of each window, none empty.
        owners: one number per window.
        targets: how many last tokens of each window are learnt; None for all but the first.
    """
    lengths = np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))
    order = np.argsort(lengths, kind="stable")
    cu_seqlens = np.concatenate((np.zeros(1, np.int32), np.cumsum(lengths[order], dtype=np.int32)))
    return Pack(
        input_ids=np.concatenate([sequences[place] for place in order]).astype(np.int32, copy=False),
        position_ids=np.arange(cu_seqlens[-1], dtype=np.int32) - np.repeat(cu_seqlens[:-1], lengths[order]),
        cu_seqlens=cu_seqlens,
        owners=np.asarray(owners, dtype=np.int64)[order],
        targets=None if targets is None else targets[order],
    )


def pack_plan(lengths: NDArray[np.integer], token_budget: int) -> list[NDArray[np.int64]]:
    """Which windows go into which pack: sorted by length, then cut where the budget is full.

    Args:
        lengths: tokens of each window.
        token_budget: most tokens a pack may hold; a longer window is a pack of its own.

    Returns:
        For each pack the window numbers, shortest windows first; every window stands in exactly one pack.
    """
    return _cut(np.argsort(lengths, kind="stable"), lengths, token_budget)


def pair_plan(
    lengths: NDArray[np.integer], clients: NDArray[np.int64], token_budget: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Which windows go into which pack, so that two windows of a client stand together, in random company.

    Args:
        lengths: tokens of each window; the order of a client's windows says which are paired.
        clients: client of each window.
        token_budget: most tokens a pack may hold; a longer pair is a pack of its own.
        random: draws the order of the pairs.

    Returns:
        For each pack the window numbers; every window stands in exactly one pack.
    """
    if not len(lengths):
        return []
    together = np.argsort(clients, kind="stable")
    ordered = clients[together]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(ordered)) - np.repeat(first, np.diff(np.r_[first, len(ordered)]))
    starts = np.flatnonzero(place % 2 == 0)
    pairs = np.split(together, starts[1:])
    of_pairs = np.add.reduceat(lengths[together], starts)
    plan = _cut(random.permutation(len(pairs)), of_pairs, token_budget)
    return [np.concatenate([pairs[number] for number in chosen]) for chosen in plan]


def _cut(order: NDArray[np.int64], lengths: NDArray[np.integer], token_budget: int) -> list[NDArray[np.int64]]:
    """Cuts an order of units where the budget is full."""
    ends = np.cumsum(lengths[order], dtype=np.int64)
    plan: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        full = int(ends[start - 1]) + token_budget if start else token_budget
        stop = max(int(np.searchsorted(ends, full, side="right")), start + 1)
        plan.append(order[start:stop])
        start = stop
    return plan


def packs(windows: Iterable[tuple[int, Ids]], *, token_budget: int, buffer_tokens: int) -> Iterator[Pack]:
    """Packs a stream of windows with memory bounded by the buffer.

    Args:
        windows: (owner, token ids) pairs in any order.
        token_budget: most tokens a pack may hold; a longer window is a pack of its own.
        buffer_tokens: tokens that are gathered and sorted by length before packs are cut from them.

    Yields:
        Packs; every window stands in exactly one, in an order that depends on the stream alone.
    """
    buffer: list[Ids] = []
    owners: list[int] = []
    held = 0
    for owner, ids in windows:
        buffer.append(ids)
        owners.append(owner)
        held += len(ids)
        if held >= buffer_tokens:
            yield from _drain(buffer, owners, token_budget)
            buffer, owners, held = [], [], 0
    yield from _drain(buffer, owners, token_budget)


def _drain(buffer: list[Ids], owners: list[int], token_budget: int) -> Iterator[Pack]:
    lengths = np.fromiter(map(len, buffer), dtype=np.int64, count=len(buffer))
    for members in pack_plan(lengths, token_budget):
        yield pack([buffer[place] for place in members], [owners[place] for place in members])
