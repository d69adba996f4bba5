"""Profit, lift, fairness and uplift on clients whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from ledgerlm.applications.campaign import Economy
from ledgerlm.evaluation.campaign import best_cutoff, curves, decile_rows, fairness_rows
from ledgerlm.evaluation.uplift import (
    Experiment,
    qini_coefficient,
    qini_curve,
    qini_table,
    transformed_outcome,
)
from ledgerlm.heads.tasks import Floats

ECONOMY = Economy(cost=1.0, value=5.0)


def known() -> tuple[Floats, Floats]:
    """A hundred clients; the best thirty answer, and the score knows it."""
    return np.linspace(0.99, 0.0, 100), np.r_[np.ones(30), np.zeros(70)]


def test_cut_off_of_known_clients_is_where_the_answers_end() -> None:
    p, y = known()
    cut = best_cutoff(p, y, ECONOMY, count=200, seed=1)
    assert cut.share == 0.3
    assert cut.profit == pytest.approx((30 * 5 - 30) / 100)
    assert cut.share_low < 0.3 < cut.share_high
    assert cut.probability == pytest.approx(p[29])
    # 81 clients lie above a probability of 0.2, where the contact would pay.
    assert cut.profit_at_threshold == pytest.approx((30 * 5 - (p >= 0.2).sum()) / 100)


def test_nobody_is_contacted_when_no_contact_pays() -> None:
    p, y = known()
    cut = best_cutoff(p, y * 0, ECONOMY, count=100, seed=1)
    assert (cut.share, cut.profit) == (0.0, 0.0)


def test_curves_and_deciles_of_known_clients() -> None:
    p, y = known()
    found = curves(p, y, ECONOMY)
    assert found.gain[[0, 15, 30, 100]] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert found.lift[[1, 30, 60, 100]] == pytest.approx([1 / 0.3, 1 / 0.3, 0.5 / 0.3, 1.0])
    assert found.profit[-1] == pytest.approx((150 - 100) / 100)
    rows = decile_rows(p, y, ECONOMY)
    assert [row[3] for row in rows] == [1.0] * 3 + [0.0] * 7
    assert rows[2][5] == 1.0
    assert rows[0][7] == 10 * 5 - 10
    assert sum(row[6] for row in rows) == pytest.approx((5 * p - 1).sum())


def test_fairness_by_group() -> None:
    groups = np.array(["a"] * 4 + ["b"] * 4, dtype=object)
    p, y = np.array([0.9, 0.8, 0.2, 0.1] * 2), np.array([1, 1, 0, 0, 1, 0, 1, 0.0])
    contacted = np.array([True, True, False, False, True, False, False, False])
    first, second = fairness_rows(groups, p, y, contacted)
    assert first == ["a", 4, 0.5, 1.0, 1.0, 0.5, 0.5, 0.0]
    assert second == ["b", 4, 0.25, 0.5, 0.5, 0.5, 0.5, 0.0]


def experiment(rows: int = 6000) -> tuple[Experiment, Floats]:
    """Contacts help a client by its number `gain`; half are contacted."""
    generator = np.random.default_rng(5)
    gain = generator.uniform(0, 0.5, rows)
    treated = generator.uniform(size=rows) < 0.5
    y = (generator.uniform(size=rows) < 0.2 + gain * treated).astype(float)
    return Experiment(y=y, treated=treated), gain


def test_qini_of_a_perfect_a_random_and_a_wrong_order() -> None:
    found, gain = experiment()
    perfect = np.where(found.treated, 1.0, -1.0) * found.y
    noise = np.random.default_rng(9).uniform(size=len(gain))
    assert qini_coefficient(perfect, found) == pytest.approx(1.0)
    assert abs(qini_coefficient(noise, found)) < 0.03
    assert qini_coefficient(np.zeros(len(gain)), found) == pytest.approx(0.0, abs=1e-12)
    assert qini_coefficient(gain, found) > 0.1
    assert qini_coefficient(-gain, found) < -0.1


def test_qini_curve_ends_at_the_whole_effect() -> None:
    found, gain = experiment()
    share, gained = qini_curve(gain, found)
    effect = found.y[found.treated].mean() - found.y[~found.treated].mean()
    assert (share[0], gained[0], share[-1]) == (0.0, 0.0, 1.0)
    assert gained[-1] == pytest.approx(effect)


def test_qini_table_has_intervals_around_the_coefficient() -> None:
    found, gain = experiment(2000)
    [(name, coefficient, low, high, best)] = qini_table({"gain": gain}, found, count=100, seed=2)
    assert name == "gain"
    assert low < coefficient < high
    assert low > 0
    assert best == pytest.approx(0.42, abs=0.08)


def test_the_mean_of_the_transformed_outcome_is_the_uplift() -> None:
    found, _ = experiment(40_000)
    outcome = transformed_outcome(found.y, found.treated, found.treated.mean())
    assert outcome.mean() == pytest.approx(found.y[found.treated].mean() - found.y[~found.treated].mean(), abs=1e-9)
