"""Cutting a document's tokens into windows that fit the context: whole events, the newest served first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def windows(token_events: NDArray[np.integer], context: int) -> list[slice]:
    """Cuts a document into windows of whole events, filled from the newest event backwards.

    Only an event that is longer than the context is cut inside. The oldest window takes what is left, so it alone may
    be short, and no token is lost.

    Args:
        token_events: event index of each token, oldest first, not decreasing; header tokens -1
            (`ledgerlm.text.tokenizer.token_events`).
        context: tokens a window may hold, the BOS token that each window will get not counted.

    Returns:
        Slices of the tokens, oldest first, that cover them without gap or overlap.
    """
    if context < 1:
        raise ValueError(f"a window of {context} tokens holds nothing; give at least 1")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(token_events)) + 1))
    cuts: list[slice] = []
    end = len(token_events)
    while end > 0:
        earliest = max(end - context, 0)
        boundary = int(np.searchsorted(starts, earliest))
        start = int(starts[boundary]) if boundary < len(starts) and starts[boundary] < end else earliest
        cuts.append(slice(start, end))
        end = start
    return cuts[::-1]
