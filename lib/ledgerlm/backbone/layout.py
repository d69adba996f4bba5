"""What the numbers of a state are, how two states become one, and how a state becomes the parts of an embedding.

A state holds the running sums of one window's tokens under a backbone and a definition. All parts of a definition
fold: the state of two windows together follows from theirs alone. Deviations are kept as squared distances from the
window's own mean and put together as in Chan, Golub and LeVeque (1979): plain sums of squares in fp32 would lose the
deviation of numbers whose mean is many times larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ledgerlm.backbone.definition import SURPRISE_STATISTICS, EmbeddingDefinition
from ledgerlm.errors import ConfigError

Sums = NDArray[np.float64]
"""States, `[N, size]`, while they are added up; at rest they are fp32."""
NOTHING_TO_POOL = "nothing_to_pool"
NOT_FINITE = "not_finite"
"""Why a text has no state, or a client no vector."""
_COUNT, _SUM, _SPREAD, _MAX = range(4)  # a field's surprise


@dataclass(frozen=True)
class StateLayout:
    """The numbers of a state, in order.

    Attributes:
        definition: resolved.
        width: numbers of a token's state, the backbone's width.
    """

    definition: EmbeddingDefinition
    width: int

    def __post_init__(self) -> None:
        if self.definition.max_tokens is not None:
            raise ConfigError(
                f"definition: max_tokens {self.definition.max_tokens} reads the newest tokens of a document, but "
                "windows are read whole and folded; leave it out, or embed documents"
            )

    @classmethod
    def of_size(cls, definition: EmbeddingDefinition, size: int) -> StateLayout:
        """The layout of states of so many numbers.

        Raises:
            ConfigError: states of this definition cannot have so many.
        """
        none = cls(definition, 0).size
        each = cls(definition, 1).size - none
        width, rest = divmod(size - none, each) if each else (0, size - none)
        if rest or width < 0:
            raise ConfigError(f"no state of definition {definition.definition_id} has {size} numbers; embed again")
        return cls(definition, width)

    @cached_property
    def blocks(self) -> Mapping[str, slice]:
        """Name to place of each block.

        `weight` (how much the tokens count, as a rule how many they are), `sum` and `spread` (squared distances from
        the mean) of mean and deviation; `recent_weight` and `recent`: sums in which a token counts half for each
        half-life of events after its own; `last_event` and `last_token`: means; `max`; `surprise`: for each field
        count, sum, spread and maximum; `recent_surprise`: for each of the last events, the newest first, and each field
        count and sum.
        """
        wanted, width = set(self.definition.parts), self.width
        fields = len(self.definition.fields)
        moments = bool(wanted & {"mean", "std"})
        sizes = {
            "weight": moments,
            "sum": moments * width,
            "spread": ("std" in wanted) * width,
            "recent_weight": "recent" in wanted,
            "recent": ("recent" in wanted) * width,
            "last_event": ("last_event" in wanted) * width,
            "last_token": ("last_token" in wanted) * width,
            "max": ("max" in wanted) * width,
            "surprise": ("surprise" in wanted) * fields * 4,
            "recent_surprise": ("surprise" in wanted) * self.definition.surprise_events * fields * 2,
        }
        ends = np.cumsum([int(size) for size in sizes.values()]).tolist()
        return {
            name: slice(stop - int(size), stop) for (name, size), stop in zip(sizes.items(), ends, strict=True) if size
        }

    @property
    def size(self) -> int:
        """Numbers of a state."""
        return max((block.stop for block in self.blocks.values()), default=0)

    @property
    def names(self) -> list[str]:
        """Name of each number, such as `sum:0` or `surprise:17`."""
        return [f"{name}:{i}" for name, block in self.blocks.items() for i in range(block.stop - block.start)]

    def packed(self, found: Mapping[str, NDArray[np.float64]]) -> Sums:
        """States from their blocks, each `[N, ...]`."""
        rows = len(next(iter(found.values())))
        sizes = {name: block.stop - block.start for name, block in self.blocks.items()}
        return np.concatenate([found[name].reshape(rows, size) for name, size in sizes.items()], axis=1)

    def nothing(self, rows: int) -> Sums:
        """States of no token at all, which change nothing that they are put together with."""
        sums = np.zeros((rows, self.size))
        if "max" in self.blocks:
            sums[:, self.blocks["max"]] = -np.inf
        return sums

    def together(self, older: Sums, newer: Sums, events: NDArray[np.integer]) -> Sums:
        """States of two runs of events, row by row.

        Args:
            older: `[N, size]`.
            newer: `[N, size]`, of what comes right after.
            events: events of `newer`, `[N]`.
        """
        blocks, both = self.blocks, older + newer
        if "spread" in blocks:
            weights = older[:, blocks["weight"]], newer[:, blocks["weight"]]
            both[:, blocks["spread"]] += _between(
                weights, (older[:, blocks["sum"]], newer[:, blocks["sum"]]), both[:, blocks["weight"]]
            )
        if "recent" in blocks:
            faded = np.exp2(-events / self.definition.recent_half_life)[:, None]
            for name in ("recent_weight", "recent"):
                both[:, blocks[name]] = older[:, blocks[name]] * faded + newer[:, blocks[name]]
        for name in ("last_event", "last_token"):
            if name in blocks:
                both[:, blocks[name]] = newer[:, blocks[name]]
        if "max" in blocks:
            np.maximum(older[:, blocks["max"]], newer[:, blocks["max"]], out=both[:, blocks["max"]])
        if "surprise" in blocks:
            self._surprise_together(older, newer, events, both)
        return both

    def _surprise_together(self, older: Sums, newer: Sums, events: NDArray[np.integer], both: Sums) -> None:
        block, fields = self.blocks["surprise"], len(self.definition.fields)
        one, other, out = (sums[:, block].reshape(-1, fields, 4) for sums in (older, newer, both))
        out[..., _SPREAD] += _between(
            (one[..., _COUNT], other[..., _COUNT]), (one[..., _SUM], other[..., _SUM]), out[..., _COUNT]
        )
        out[..., _MAX] = np.maximum(one[..., _MAX], other[..., _MAX])
        both[:, block] = out.reshape(len(both), -1)
        block, last = self.blocks["recent_surprise"], self.definition.surprise_events
        # The newest events of the older run are older by the events of the newer one.
        place = np.arange(last) - np.asarray(events)[:, None]
        moved = np.take_along_axis(
            older[:, block].reshape(-1, last, fields * 2), np.maximum(place, 0)[..., None], axis=1
        )
        own = newer[:, block].reshape(-1, last, fields * 2)
        both[:, block] = np.where(place[..., None] >= 0, moved, own).reshape(len(both), -1)

    def parts(self, sums: Sums) -> dict[str, NDArray[np.float32]]:
        """The parts of each embedding, `[N, width of the part]`; not finite where nothing was added up."""
        blocks, made = self.blocks, {}
        with np.errstate(divide="ignore", invalid="ignore"):
            if "weight" in blocks:
                weight = sums[:, blocks["weight"]]
                made["mean"] = sums[:, blocks["sum"]] / weight
            if "spread" in blocks:
                made["std"] = np.sqrt(np.maximum(sums[:, blocks["spread"]], 0) / weight)
            if "recent" in blocks:
                made["recent"] = sums[:, blocks["recent"]] / sums[:, blocks["recent_weight"]]
            made |= {name: sums[:, blocks[name]] for name in ("last_event", "last_token", "max") if name in blocks}
            if "surprise" in blocks:
                made["surprise"] = self._profile(sums)
            return {part: made[part].astype(np.float32) for part in self.definition.parts}

    def _profile(self, sums: Sums) -> NDArray[np.float64]:
        fields = len(self.definition.fields)
        of_field = sums[:, self.blocks["surprise"]].reshape(-1, fields, 4)
        count = np.maximum(of_field[..., _COUNT], 1)
        mean = of_field[..., _SUM] / count
        std = np.sqrt(np.maximum(of_field[..., _SPREAD], 0) / count)
        last = self.definition.surprise_events
        events = sums[:, self.blocks["recent_surprise"]].reshape(-1, last, fields, 2)
        # One after the other: NumPy's own sum may take another order for another number of rows.
        recent_sums = reduce(np.add, [events[:, event] for event in range(last)])
        recent = np.where(recent_sums[..., 0] > 0, recent_sums[..., 1] / np.maximum(recent_sums[..., 0], 1) - mean, 0.0)
        columns = np.stack([mean, std, of_field[..., _MAX], recent], axis=2)
        return columns.reshape(len(sums), fields * len(SURPRISE_STATISTICS))


def _between(
    weights: tuple[NDArray[np.float64], NDArray[np.float64]],
    sums: tuple[NDArray[np.float64], NDArray[np.float64]],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What the distance of two means adds to the squared distances from the mean of both."""
    tiny = np.finfo(np.float64).tiny
    one, other = (total / np.maximum(share, tiny) for total, share in zip(sums, weights, strict=True))
    return (other - one) ** 2 * (weights[0] * weights[1] / np.maximum(weight, tiny))


def parts_array(parts: Mapping[str, NDArray[np.float32]]) -> pa.MapArray:
    """Named vectors as an Arrow map, built from flat arrays without a Python object per value."""
    rows = len(next(iter(parts.values())))
    widths = np.array([part.shape[1] for part in parts.values()], np.int64)
    ends = np.cumsum(np.tile(widths, rows))
    offsets = pa.array(np.concatenate((np.zeros(1, np.int64), ends)).astype(np.int32))
    flat = pa.array(np.concatenate(list(parts.values()), axis=1).ravel())
    names = pa.DictionaryArray.from_arrays(np.tile(np.arange(len(parts), dtype=np.int32), rows), pa.array(list(parts)))
    entries = pa.array(np.arange(rows + 1, dtype=np.int32) * len(parts))
    return pa.MapArray.from_arrays(entries, names.cast(pa.string()), pa.ListArray.from_arrays(offsets, flat))


def vectors_array(vectors: NDArray[np.float32]) -> pa.ListArray:
    """Vectors of one length as an Arrow list, `[N, length]`."""
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * np.int32(vectors.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))
