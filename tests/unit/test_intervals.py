"""Bootstrap intervals: coverage, pairing, clients drawn whole; and the corrected t-test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ledgerlm.evaluation.intervals import Predictions, bootstrap, corrected_t_test, fold_values, interval, resamples
from ledgerlm.heads.metrics import metrics_of
from ledgerlm.heads.tasks import Floats

AUC = metrics_of("binary")[0]


def _one_fold(p: Floats) -> list[Predictions]:
    return [Predictions(seed=1, fold=0, rows=np.arange(len(p)), p=np.stack([1 - p, p], axis=1))]


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth = stats.norm.cdf(1 / np.sqrt(2))  # AUC of two unit normals one apart
    covered = 0
    for turn in range(120):
        y = (np.arange(160) % 2).astype(float)
        score = stats.norm.cdf(generator.normal(size=160) + y)
        fold = _one_fold(score)
        drawn = bootstrap(AUC, y, np.arange(160), fold, count=200, seed=turn)
        low, high = interval(drawn, fold_values(AUC, y, fold)[0])
        covered += low <= truth <= high
    assert 0.88 <= covered / 120 <= 0.99


def test_same_predictions_differ_by_exactly_nothing_and_pairing_narrows() -> None:
    generator = np.random.default_rng(5)
    y = generator.integers(0, 2, 300).astype(float)
    one = np.clip(0.5 + 0.2 * (y - 0.5) + generator.normal(0, 0.2, 300), 0, 1)
    other = np.clip(one + generator.normal(0, 0.01, 300), 0, 1)
    clients = np.arange(300)
    first = bootstrap(AUC, y, clients, _one_fold(one), count=300, seed=9)
    assert np.array_equal(first, bootstrap(AUC, y, clients, _one_fold(one), count=300, seed=9))
    second = bootstrap(AUC, y, clients, _one_fold(other), count=300, seed=9)
    unpaired = bootstrap(AUC, y, clients, _one_fold(other), count=300, seed=10)
    assert np.std(second - first) < 0.3 * np.std(unpaired - first)


def test_rows_of_a_client_are_drawn_together() -> None:
    clients = np.array([0, 0, 1, 2, 2, 2])
    weights = np.concatenate(list(resamples(clients, 50, seed=1)))
    assert weights.shape == (50, 6)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 5])
    assert np.array_equal(weights[:, [0, 2, 3]].sum(axis=1), np.full(50, 3.0))


def test_bootstrap_centres_on_the_mean_over_folds() -> None:
    generator = np.random.default_rng(8)
    y = generator.integers(0, 2, 400).astype(float)
    p = np.clip(y * 0.3 + generator.uniform(0, 0.7, 400), 0, 1)
    p[200:] *= 0.2  # the second fold's model says smaller numbers: pooling would mix them, folds must not
    both = np.stack([1 - p, p], axis=1)
    folds = [
        Predictions(seed=1, fold=k, rows=np.arange(k * 200, k * 200 + 200), p=both[k * 200 : k * 200 + 200])
        for k in range(2)
    ]
    drawn = bootstrap(AUC, y, np.arange(400), folds, count=500, seed=2)
    assert drawn.mean() == pytest.approx(fold_values(AUC, y, folds).mean(), abs=0.005)


def test_the_order_of_a_folds_rows_does_not_matter() -> None:
    generator = np.random.default_rng(6)
    y = generator.integers(0, 2, 100).astype(float)
    [plain] = _one_fold(np.clip(0.3 * y + generator.uniform(0, 0.7, 100), 0, 1))
    rows = generator.permutation(100)
    mixed = Predictions(seed=1, fold=0, rows=rows, p=plain.p[rows])
    drawn = [bootstrap(AUC, y, np.arange(100), [one], count=50, seed=3) for one in (plain, mixed)]
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-12)


def test_many_rows_are_drawn_in_several_turns() -> None:
    sizes = [len(weights) for weights in resamples(np.arange(400_000), 21, seed=1)]
    assert len(sizes) > 1
    assert sum(sizes) == 21


def test_corrected_test_is_wider_than_the_plain_one() -> None:
    differences = np.array([0.01, 0.02, 0.0, 0.03, 0.015])
    found = corrected_t_test(differences, held_out=0.2)
    plain = stats.ttest_1samp(differences, 0.0)
    factor = np.sqrt((1 / 5 + 0.2 / 0.8) / (1 / 5))
    assert found.p_value == pytest.approx(2 * stats.t.sf(plain.statistic / factor, 4))
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.015)


def test_equal_methods_are_not_told_apart() -> None:
    assert corrected_t_test(np.zeros(5), held_out=0.2).p_value == 1.0


def test_undefined_resamples_are_left_out() -> None:
    low, high = interval(np.array([np.nan, 1.0, 2.0]), 1.6)
    assert (low, high) == pytest.approx((1.125, 2.075))
    assert all(np.isnan(interval(np.array([np.nan]), 1.0)))
