"""Windows: whole events, newest first served, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from ledgerlm.backbone.windows import windows


def _events(*sizes: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Event index per token for events of these sizes after a header of 3 tokens."""
    return np.concatenate((np.full(3, -1), np.repeat(np.arange(len(sizes)), sizes))).astype(np.int32)


def test_a_short_document_is_one_window() -> None:
    assert windows(_events(4, 4), 20) == [slice(0, 11)]
    assert windows(_events(4, 4), 11) == [slice(0, 11)]


def test_cut_between_events_with_the_rest_in_the_oldest_window() -> None:
    assert windows(_events(4, 4, 4, 4), 10) == [slice(0, 3), slice(3, 11), slice(11, 19)]


def test_an_event_longer_than_the_context_is_cut_inside() -> None:
    cuts = windows(_events(2, 25, 2), 10)
    assert cuts == [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 32)]


@pytest.mark.parametrize("context", [1, 7, 31, 64])
def test_no_token_lost_and_no_event_cut(context: int) -> None:
    random = np.random.default_rng(context)
    events = _events(*random.integers(1, 12, 200))
    cuts = windows(events, context)
    assert np.array_equal(np.concatenate([np.arange(len(events))[cut] for cut in cuts]), np.arange(len(events)))
    assert max(cut.stop - cut.start for cut in cuts) <= context
    inner = [cut.start for cut in cuts[1:]]
    if context > 12:
        assert all(events[start] != events[start - 1] for start in inner)
        # The newest window is as full as whole events allow.
        newest = cuts[-1]
        event_before = int((events == events[newest.start - 1]).sum())
        assert newest.stop - newest.start + event_before > context


def test_nothing_to_cut() -> None:
    assert windows(np.array([], dtype=np.int32), 5) == []
    with pytest.raises(ValueError, match="0 tokens"):
        windows(_events(1), 0)
