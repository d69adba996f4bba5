"""The windows that a rank trains on: on disk as flat tokens, read in an order that depends on seed and place alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ledgerlm.backbone.packs import Ids, Pack, pack, pack_plan, pair_plan
from ledgerlm.errors import DataError
from ledgerlm.training.loop import Place, Step
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.store import flatten

# Windows that are sorted by length and packed at once. It bounds the plan that is held in memory.
_ROUND_WINDOWS = 1 << 16
_FEWEST_HELD_OUT = 64  # windows that a held-out loss is a mean over, if there are so many


@dataclass(frozen=True, slots=True)
class WindowStore:
    """Windows of one rank; the tokens stay on disk and are mapped, so memory holds some twenty bytes a window.

    Attributes:
        tokens: all windows, one after the other, int32, memory-mapped.
        starts: first token of each window, and the end of the last, int64 [N + 1].
        kinds: place of each window's kind in `kind_names`, int8 [N].
        kind_names: what kinds of text there are (`compact`, `enriched` ...).
        clients: a hash of each window's client, int64 [N].
        targets: how many last tokens of each window are learnt, int32 [N]; None for all but the first.
    """

    tokens: Ids
    starts: NDArray[np.int64]
    kinds: NDArray[np.int8]
    kind_names: tuple[str, ...]
    clients: NDArray[np.int64]
    targets: Ids | None = None

    @classmethod
    def build(cls, files: Sequence[Path], kind_names: Sequence[str], folder: Path) -> WindowStore:
        """Streams staged Parquet files (`kind`, `client`, `input_ids`; some with `targets`) into one file.

        Args:
            files: read in this order.
            kind_names: known kinds.
            folder: takes the tokens; those of an earlier attempt are replaced.
        """
        names = tuple(sorted(kind_names))
        lists, beside = flatten(files, {"input_ids": np.int32}, ("kind", "client", "targets"), folder)
        tokens = lists["input_ids"]
        column = {name: beside.column(name) for name in beside.column_names}
        no_rows = np.zeros(0, np.int64)
        return cls(
            tokens.values.astype(np.int32, copy=False),
            tokens.starts,
            _places(column["kind"], names) if column else no_rows.astype(np.int8),
            names,
            column["client"].to_numpy() if column else no_rows,
            column["targets"].to_numpy().astype(np.int32) if "targets" in column else None,
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, int64 [N]."""
        return np.diff(self.starts)

    @property
    def learnt(self) -> NDArray[np.int64]:
        """Tokens of each window that are learnt, int64 [N]."""
        inner = self.lengths - 1
        return inner if self.targets is None else np.minimum(self.targets, inner)

    def pack(self, members: NDArray[np.int64]) -> Pack:
        """The pack of these windows."""
        rows = [self.tokens[self.starts[place] : self.starts[place + 1]] for place in members]
        return pack(rows, self.clients[members], None if self.targets is None else self.targets[members])


def _places(kinds: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.int8]:
    """Place of each kind in the sorted names."""
    parts = [np.zeros(0, np.int8)]
    for chunk in kinds.chunks:
        known = np.searchsorted(names, chunk.dictionary.to_numpy(zero_copy_only=False).astype(str))
        parts.append(known[chunk.indices.to_numpy()].astype(np.int8))
    return np.concatenate(parts)


def held_out_packs(
    store: WindowStore, kind: str, ranks: Ranks, *, most_tokens: int, pack_tokens: int = 4096
) -> list[Pack]:
    """This rank's share of the windows that the held-out loss of a kind is taken on.

    Over all ranks they are a window of each client, in the order of the clients' hashes, then a second one of each,
    and so on, up to `most_tokens` or 64 windows, whichever is more. A client's windows stand on one rank, so any number
    of ranks takes the same windows.

    Args:
        store: held-out windows.
        kind: of text.
        ranks: the processes that train together.
        most_tokens: most tokens over all ranks, beyond 64 windows.
        pack_tokens: most tokens of a pack.
    """
    members = np.flatnonzero(store.kinds == store.kind_names.index(kind))
    members = members[np.argsort(store.clients[members], kind="stable")]
    clients = store.clients[members]
    first = np.flatnonzero(np.r_[True, clients[1:] != clients[:-1]]) if len(clients) else np.zeros(0, np.int64)
    count = np.diff(np.r_[first, len(clients)])
    # The first window of a client is any of its windows: the oldest of a text may be short, the newest is always full.
    start = np.repeat(clients[first] % np.maximum(count, 1), count)
    turn = (np.arange(len(clients)) - np.repeat(first, count) - start) % np.repeat(count, count)
    order = np.lexsort((clients, turn))
    offered = np.stack([turn[order], clients[order], store.lengths[members][order]], axis=1)
    offered = offered[: _taken(offered[:, 2], most_tokens)]
    everyone = ranks.together(offered)
    everyone = everyone[np.lexsort((everyone[:, 1], everyone[:, 0]))]
    everyone = everyone[: _taken(everyone[:, 2], most_tokens)]
    if not len(everyone):
        return []
    last_turn, last_client = everyone[-1, :2]
    mine = (offered[:, 0] < last_turn) | ((offered[:, 0] == last_turn) & (offered[:, 1] <= last_client))
    chosen = members[order][: len(offered)][mine]
    return [store.pack(chosen[plan]) for plan in pack_plan(store.lengths[chosen], pack_tokens)]


def _taken(lengths: NDArray[np.int64], most_tokens: int) -> int:
    """How many windows of an order are taken; none where no tokens are wanted."""
    within = int(np.searchsorted(np.cumsum(lengths), most_tokens, side="right"))
    return min(len(lengths), max(within, _FEWEST_HELD_OUT)) if most_tokens else 0


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads packs of a store in shuffled order, in step with the other ranks.

    Every rank takes the same number of steps, so a rank with more windows leaves a few out at the end of a round; the
    order is drawn anew each epoch, so they are others each time.

    Attributes:
        store: this rank's windows.
        passes: for each kind how often it is read in an epoch; 0.25 reads another quarter in each epoch.
        pack_tokens: most tokens of a pack.
        packs_per_step: packs that a rank reads for one optimizer step.
        seed: of the order.
        ranks: the processes that train together.
        in_pairs: two windows of a client stand in the same pack, where it has two.
    """

    store: WindowStore
    passes: Mapping[str, float]
    pack_tokens: int
    packs_per_step: int
    seed: int
    ranks: Ranks
    in_pairs: bool = False

    def epoch_tokens(self) -> int:
        """Tokens of one epoch over all ranks, about: the rest of a partial pass is drawn anew each time."""
        of_kind = np.bincount(self.store.kinds, weights=self.store.lengths, minlength=len(self.store.kind_names))
        mine = sum(of_kind[place] * self.passes[name] for place, name in enumerate(self.store.kind_names))
        return int(self.ranks.total(np.array([mine]))[0])

    def steps(self, place: Place) -> Iterator[Step]:
        """Steps from a place on, without end; what dropout leaves out of a step depends on its place alone.

        Raises:
            DataError: a rank has too few windows for one step.
        """
        for epoch in _from(place.epoch):
            drawn = self._draw(epoch)
            parts = self.ranks.least(-(-len(drawn) // _ROUND_WINDOWS))
            first_part = place.part if epoch == place.epoch else 0
            taken = 0
            for part in range(first_part, parts):
                members = drawn[part * _ROUND_WINDOWS : (part + 1) * _ROUND_WINDOWS]
                first = place.step if (epoch, part) == (place.epoch, place.part) else 0
                for step in self._round(members, Place(epoch, part, first)):
                    taken += 1
                    torch.manual_seed(hash((self.seed, self.ranks.rank, epoch, part, step.after.step)) % (1 << 63))
                    yield step
            if not taken and epoch > place.epoch:
                raise DataError(
                    f"{self.ranks.size} ranks and {len(drawn)} training windows on this one: too few for a step of "
                    f"{self.packs_per_step} packs; give more documents or fewer ranks"
                )

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self.seed, epoch, self.ranks.rank))
        drawn = [np.zeros(0, np.int64)]
        for place, name in enumerate(self.store.kind_names):
            members = np.flatnonzero(self.store.kinds == place)
            whole, rest = divmod(self.passes[name], 1.0)
            drawn += [members] * int(whole)
            drawn.append(random.permutation(members)[: round(rest * len(members))])
        return random.permutation(np.concatenate(drawn))

    def _round(self, members: NDArray[np.int64], place: Place) -> Iterator[Step]:
        random = np.random.default_rng((self.seed, place.epoch, place.part, self.ranks.rank))
        plan = [members[chosen] for chosen in self._plan(members, random)]
        order = random.permutation(len(plan))
        steps = self.ranks.least(len(plan) // self.packs_per_step)
        of_step = order[: steps * self.packs_per_step].reshape(steps, self.packs_per_step)
        sizes = np.array([(self.store.lengths[of].sum(), self.store.learnt[of].sum()) for of in plan], np.int64)
        totals = self.ranks.total(sizes[of_step].sum(1) if steps else np.zeros((0, 2), np.int64)).astype(np.int64)
        for number in range(place.step, steps):
            packs = [self.store.pack(plan[chosen]) for chosen in of_step[number]]
            tokens, learnt = totals[number].tolist()
            # Each token that the step learns weighs the same, whatever pack and rank it stands on.
            weight = len(packs) * self.ranks.size / max(learnt, 1)
            yield Step(packs, tokens, replace(place, step=number + 1), weight)

    def _plan(self, members: NDArray[np.int64], random: np.random.Generator) -> list[NDArray[np.int64]]:
        lengths = self.store.lengths[members]
        if not self.in_pairs:
            return pack_plan(lengths, self.pack_tokens)
        return pair_plan(lengths, self.store.clients[members], self.pack_tokens, random)


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1
