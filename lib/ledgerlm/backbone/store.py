"""The windows that a rank trains on: on disk as flat tokens, read in an order that depends on seed and place alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ledgerlm.backbone.packs import Ids, Pack, pack, pack_plan, pair_plan
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.errors import DataError

# Windows that are sorted by length and packed at once. It bounds the plan that is held in memory.
_ROUND_WINDOWS = 1 << 16
_READ_ROWS = 8192


@dataclass(frozen=True, slots=True)
class WindowStore:
    """Windows of one rank; the tokens stay on disk and are mapped, so memory holds seventeen bytes a window.

    Attributes:
        tokens: all windows, one after the other, int32, memory-mapped.
        starts: first token of each window, and the end of the last, int64 [N + 1].
        kinds: place of each window's kind in `kind_names`, int8 [N].
        kind_names: what kinds of text there are (`compact`, `enriched` ...).
        targets: how many last tokens of each window are learnt, int32 [N]; None for all but the first.
        clients: a hash of each window's client, int64 [N]; None when the files do not tell.
    """

    tokens: Ids
    starts: NDArray[np.int64]
    kinds: NDArray[np.int8]
    kind_names: tuple[str, ...]
    targets: Ids | None = None
    clients: NDArray[np.int64] | None = None

    @classmethod
    def build(cls, files: Sequence[Path], kind_names: Sequence[str], target: Path) -> WindowStore:
        """Streams staged Parquet files (`kind`, `input_ids`; some with `client` or `targets`) into one file.

        Args:
            files: read in this order.
            kind_names: known kinds.
            target: file that the tokens are written to; replaced when it exists.
        """
        lengths, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.int8)]
        targets: list[Ids] = []
        clients: list[NDArray[np.int64]] = []
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as flat:
            for path in files:
                file = pq.ParquetFile(path)
                known = [name for name in ("kind", "client", "input_ids", "targets") if name in file.schema_arrow.names]
                for batch in file.iter_batches(_READ_ROWS, columns=known):
                    ids = batch.column("input_ids")
                    lengths.append(np.diff(ids.offsets.to_numpy()).astype(np.int64))
                    named = batch.column("kind").to_numpy(zero_copy_only=False)
                    kinds.append(np.searchsorted(np.sort(kind_names), named.astype(str)).astype(np.int8))
                    ids.flatten().to_numpy().astype(np.int32, copy=False).tofile(flat)
                    if "targets" in known:
                        targets.append(batch.column("targets").to_numpy().astype(np.int32))
                    if "client" in known:
                        clients.append(batch.column("client").to_numpy())
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))))
        tokens = np.memmap(target, np.int32, "r") if starts[-1] else np.zeros(0, np.int32)
        learnt = np.concatenate(targets) if targets else None
        owners = np.concatenate(clients) if clients else None
        return cls(tokens, starts, np.concatenate(kinds), tuple(sorted(kind_names)), learnt, owners)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, int64 [N]."""
        return np.diff(self.starts)

    def pack(self, members: NDArray[np.int64]) -> Pack:
        """The pack of these windows."""
        rows = [self.tokens[self.starts[place] : self.starts[place + 1]] for place in members]
        owners = members if self.clients is None else self.clients[members]
        return pack(rows, owners, None if self.targets is None else self.targets[members])

    def packs_of(self, kind: str, *, token_budget: int, most_tokens: int) -> list[Pack]:
        """The first windows of a kind, in packs of at most `token_budget` tokens and `most_tokens` in all."""
        members = np.flatnonzero(self.kinds == self.kind_names.index(kind))
        lengths = self.lengths[members]
        members = members[np.cumsum(lengths) <= most_tokens]
        return [self.pack(members[plan]) for plan in pack_plan(self.lengths[members], token_budget)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stands; enough to go on after a kill.

    Attributes:
        epoch: epochs finished.
        part: rounds of `_ROUND_WINDOWS` windows finished in the epoch.
        step: optimizer steps finished in the round.
    """

    epoch: int = 0
    part: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank reads for one optimizer step.

    Attributes:
        packs: one for each forward pass.
        tokens: tokens of the step over all ranks.
        after: where reading stands when the step is done.
    """

    packs: Sequence[Pack]
    tokens: int
    after: Place


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
        """Steps from a place on, without end.

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
        lengths = np.array([self.store.lengths[chosen].sum() for chosen in plan], np.int64)
        tokens = self.ranks.total(lengths[of_step].sum(1) if steps else np.zeros(0, np.int64))
        for number in range(place.step, steps):
            packs = [self.store.pack(plan[chosen]) for chosen in of_step[number]]
            yield Step(packs, int(tokens[number]), replace(place, step=number + 1))

    def _plan(self, members: NDArray[np.int64], random: np.random.Generator) -> list[NDArray[np.int64]]:
        lengths = self.store.lengths[members]
        if not self.in_pairs or self.store.clients is None:
            return pack_plan(lengths, self.pack_tokens)
        return pair_plan(lengths, self.store.clients[members], self.pack_tokens, random)


def _from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1
