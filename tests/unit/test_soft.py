"""Heads that learn probabilities: the linear part, the trees upon it, and that a rerun gives the same."""

from __future__ import annotations

import numpy as np
import pytest

from ledgerlm.heads.soft import cross_entropy, fit_soft
from ledgerlm.heads.tasks import Floats


def clients(count: int, classes: int, *, crossed: float) -> tuple[Floats, Floats]:
    """Features, and probabilities that follow them; `crossed` by a product that no linear head can see."""
    draw = np.random.default_rng(7)
    x = draw.normal(size=(count, 6))
    scores = np.stack([x[:, k] + crossed * x[:, 4] * x[:, 5] * (-1) ** k for k in range(classes)], axis=1)
    p = np.exp(scores)
    return x, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_trees_add_what_the_linear_head_cannot_say(classes: int) -> None:
    x, p = clients(3000, classes, crossed=1.0)
    head = fit_soft(x[:2000], p[:2000], (x[2000:2500], p[2000:2500]), seed=1)
    asked, known = x[2500:], p[2500:]
    linear, both = cross_entropy(known, np.exp(head.linear(asked))), cross_entropy(known, head.probabilities(asked))
    assert len(head.trees) == (1 if classes == 2 else 3)
    assert np.allclose(head.probabilities(asked).sum(axis=1), 1.0)
    assert cross_entropy(known, known) < both < linear - 0.05
    again = fit_soft(x[:2000], p[:2000], (x[2000:2500], p[2000:2500]), seed=1)
    assert again.probabilities(asked).tobytes() == head.probabilities(asked).tobytes()


def test_a_linear_truth_is_found_from_few_clients_and_a_constant_feature_says_nothing() -> None:
    x, p = clients(900, 2, crossed=0.0)
    x = np.hstack([x, np.ones((len(x), 1))])
    head = fit_soft(x[:300], p[:300], (x[300:600], p[300:600]), seed=1)
    assert cross_entropy(p[600:], head.probabilities(x[600:])) - cross_entropy(p[600:], p[600:]) < 0.01
