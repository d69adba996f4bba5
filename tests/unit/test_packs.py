"""Packs: every window in exactly one pack, positions from 0, packs within the budget."""

from __future__ import annotations

import numpy as np

from ledgerlm.backbone.packs import pack, pack_plan, packs, pair_plan


def test_a_pack_is_one_row_sorted_by_length() -> None:
    row = pack([np.array([5, 6, 7], np.int32), np.array([8], np.int32), np.array([9, 9], np.int32)], [10, 20, 30])
    assert row.input_ids.tolist() == [8, 9, 9, 5, 6, 7]
    assert row.position_ids.tolist() == [0, 0, 1, 0, 1, 2]
    assert row.cu_seqlens.tolist() == [0, 1, 3, 6]
    assert row.owners.tolist() == [20, 30, 10]
    assert row.lengths.tolist() == [1, 2, 3]
    assert {row.input_ids.dtype, row.position_ids.dtype, row.cu_seqlens.dtype} == {np.dtype(np.int32)}


def test_the_plan_fills_packs_to_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 1000)
    plan = pack_plan(lengths, 512)
    assert np.array_equal(np.sort(np.concatenate(plan)), np.arange(1000))
    totals = np.array([lengths[members].sum() for members in plan])
    assert totals.max() <= 512
    assert totals[:-1].min() > 512 - 90


def test_two_windows_of_a_client_stand_together() -> None:
    random = np.random.default_rng(1)
    clients, lengths = random.integers(0, 60, 200), random.integers(1, 40, 200)
    plan = pair_plan(lengths, clients, 256, random)
    assert np.array_equal(np.sort(np.concatenate(plan)), np.arange(200))
    assert max(lengths[members].sum() for members in plan) <= 256
    alone = sum((np.bincount(clients[members], minlength=60) % 2).sum() for members in plan)
    assert alone == (np.bincount(clients, minlength=60) % 2).sum(), "only the odd one of a client has no partner"
    assert [members.tolist() for members in pair_plan(np.zeros(0, np.int64), np.zeros(0, np.int64), 9, random)] == []


def test_a_window_beyond_the_budget_is_a_pack_of_its_own() -> None:
    assert [members.tolist() for members in pack_plan(np.array([3, 20, 2, 30]), 10)] == [[2, 0], [1], [3]]


def test_a_stream_is_packed_with_a_bounded_buffer() -> None:
    random = np.random.default_rng(3)
    windows = [(owner, np.full(random.integers(1, 40), owner, np.int32)) for owner in range(300)]
    taken = 0

    def stream() -> object:
        nonlocal taken
        for window in windows:
            taken += 1
            yield window

    rows = packs(stream(), token_budget=128, buffer_tokens=512)  # type: ignore[arg-type]
    first = next(rows)
    assert taken < 60, "the stream must not be read far ahead"
    rest = list(rows)
    owners = np.concatenate([row.owners for row in (first, *rest)])
    assert np.array_equal(np.sort(owners), np.arange(300))
    for row in (first, *rest):
        assert len(row.input_ids) <= 128
        assert np.array_equal(np.repeat(row.owners, row.lengths), row.input_ids)
