"""A loss in which whole answers alone compete: at each of their tokens those that some answer goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Choices:
    """Answers, and what may follow each beginning of them.

    The probability of an answer is the product over its tokens of their probability among the tokens that may stand
    there. These products sum to one over the answers, so that nothing has to be learnt of what else could be said; a
    token without a rival, such as the one that ends an answer behind a chat template, is certain.

    Attributes:
        tokens: all tokens of answers, ascending, int64 [U].
        allowed: for each beginning, which of them may follow, bool [beginnings, U].
        places: beginning -> its row of `allowed`; the empty one is row 0.
    """

    tokens: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    places: dict[tuple[int, ...], int]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> Choices:
        """The choices between answers, none of which begins another."""
        tokens = np.unique(np.array([token for answer in answers for token in answer], dtype=np.int64))
        places: dict[tuple[int, ...], int] = {(): 0}
        for answer in answers:
            for step in range(1, len(answer)):
                places.setdefault(tuple(answer[:step]), len(places))
        allowed = np.zeros((len(places), len(tokens)), dtype=bool)
        for answer in answers:
            for step, token in enumerate(answer):
                allowed[places[tuple(answer[:step])], np.searchsorted(tokens, token)] = True
        return cls(tokens, allowed, places)

    def rows(self, positions: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of `allowed` of each target.

        Args:
            positions: where in a pack each target is predicted; those of one answer follow each other, and between two
                answers there is a gap.
            targets: the tokens of whole answers, one after the other.
        """
        beginning: tuple[int, ...] = ()
        rows, last = [], -2
        for position, target in zip(positions.tolist(), targets.tolist(), strict=True):
            beginning = beginning if position == last + 1 else ()
            rows.append(self.places[beginning])
            beginning, last = (*beginning, target), position
        return np.array(rows, dtype=np.int64)
