"""Columns of a sample: their values as text, and what can be counted of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ledgerlm.events.guesses.words import ABSENT

Kind = Literal["text", "time", "number", "float", "bool", "nested"]
"""How a file types a column; csv and JSON know text alone."""
Sure = Literal["sure", "unsure", "open"]

CACHED = 512
"""Columns of which what was found is remembered."""
_SHOWN = 3  # examples of a column
_WIDTH = 32  # signs of an example


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One column of a sample; another with the same values is another one.

    Attributes:
        name: as it stands in the file.
        values: trimmed texts, one a row; empty for none.
        kind: how the file types it.
    """

    name: str
    values: Sequence[str] = field(repr=False)
    kind: Kind = "text"

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value stands there, without those that mean none."""
        return Counter(value for value in self.values if value and value.lower() not in ABSENT)

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """Words that stand for none, beside the empty value."""
        return tuple(sorted({value for value in self.values if value and value.lower() in ABSENT}))

    @property
    def filled(self) -> int:
        """Rows with a value."""
        return self.counts.total()

    @property
    def distinct(self) -> int:
        """Different values."""
        return len(self.counts)

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.filled == len(self.values) == self.distinct

    def share(self, values: Counter[str]) -> float:
        """The share of the filled rows that hold one of these."""
        return sum(self.counts[value] for value in values) / self.filled if self.filled else 0.0

    @property
    def examples(self) -> str:
        """Some values for a reader, the most frequent first, those of many signs cut."""
        shown = (value if len(value) <= _WIDTH else f"{value[: _WIDTH - 1]}…" for value, _ in self.counts.most_common())
        return ", ".join(f"'{value}'" for _, value in zip(range(_SHOWN), shown, strict=False))


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One thing that a draft says, and why.

    Attributes:
        key: where it stands in the spec: `time.format`.
        value: what is written, for a reader.
        why: what was seen, with examples.
        sure: whether the data decide it; `unsure` is marked in the draft, `open` is left to be chosen.
        ids: examples that may name somebody: told to who looks, and not written into files.
    """

    key: str
    value: str
    why: str
    sure: Sure = "sure"
    ids: str = ""
