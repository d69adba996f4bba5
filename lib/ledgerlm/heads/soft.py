"""Heads that learn probabilities instead of labels: trees upon a linear head, both by cross entropy.

A label is a draw and tells little of the probability that it was drawn with; where that is known, as on a simulated
bank, a client teaches many times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ledgerlm.heads.tasks import Floats

if TYPE_CHECKING:
    import lightgbm as lgb

_CLIP = 5.0  # deviations at which a feature is cut
_STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)  # L2 penalties to choose from, for the mean loss of a client
_ROUNDS, _PATIENCE = 500, 20
_TREES = {
    "objective": "cross_entropy",
    "metric": "cross_entropy",
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "num_threads": 1,
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, kw_only=True)
class SoftHead:
    """A fitted head.

    Attributes:
        mean: of each feature.
        deviation: of each feature; 1 where it never varies.
        weights: (features + 1) x classes; the last row is the bias.
        trees: LightGBM's text of what the trees add to the log-odds of each class, of two classes the second; none
            where they add nothing.
    """

    mean: Floats
    deviation: Floats
    weights: Floats
    trees: tuple[str, ...] = ()

    def linear(self, x: Floats) -> Floats:
        """Logarithms of the linear head's probabilities, rows x classes."""
        return _log_softmax(self._standard(x), self.weights)

    def probabilities(self, x: Floats) -> Floats:
        """Rows x classes, sum 1."""
        logs = self.linear(x)
        if not self.trees:
            return np.asarray(np.exp(logs))
        raised = _log_odds(logs[:, -len(self.trees) :])
        raised += np.stack([one.predict(x, raw_score=True, num_threads=1) for one in self._boosters], axis=1)
        p = 1 / (1 + np.exp(-raised))
        return np.hstack([1 - p, p]) if len(self.trees) == 1 else np.asarray(p / p.sum(axis=1, keepdims=True))

    @cached_property
    def _boosters(self) -> list[lgb.Booster]:
        import lightgbm as lgb

        return [lgb.Booster(model_str=text) for text in self.trees]

    def _standard(self, x: Floats) -> Floats:
        return np.asarray(np.clip((x - self.mean) / self.deviation, -_CLIP, _CLIP))


def fit_soft(x: Floats, p: Floats, choosing: tuple[Floats, Floats], *, seed: int) -> SoftHead:
    """Fits a head to probabilities.

    Args:
        x: rows x features.
        p: rows x classes, each row with sum 1.
        choosing: features and probabilities of other rows, which choose the penalty and the number of trees.
        seed: of the rows and features that a tree sees.
    """
    deviation = x.std(axis=0)
    blank = SoftHead(
        mean=x.mean(axis=0),
        deviation=np.where(deviation > 0, deviation, 1.0),
        weights=np.zeros((x.shape[1] + 1, p.shape[1])),
    )
    asked, known = choosing
    candidates = [replace(blank, weights=weights) for weights in _linear(blank._standard(x), p)]
    best = min(candidates, key=lambda one: cross_entropy(known, np.exp(one.linear(asked))))
    raised = replace(best, trees=tuple(_trees(best, x, p, choosing, seed)))
    return min((best, raised), key=lambda one: cross_entropy(known, one.probabilities(asked)))


def cross_entropy(p: Floats, said: Floats) -> float:
    """Mean log loss of what was said, expected over labels that are drawn with probabilities `p`; rows x classes."""
    return float(-(p * np.log(np.maximum(said, 1e-15))).sum(axis=1).mean())


def _linear(x: Floats, p: Floats) -> Iterator[Floats]:
    """The weights of each penalty, from the strongest on, each fit beginning where the one before ended."""
    from scipy.optimize import minimize

    shape = (x.shape[1] + 1, p.shape[1])
    weights = np.zeros(shape)
    for strength in _STRENGTHS:

        def loss(flat: Floats, strength: float = strength) -> tuple[float, Floats]:
            w = flat.reshape(shape)
            logs = _log_softmax(x, w)
            error = (np.exp(logs) - p) / len(x)
            slope = np.vstack([x.T @ error + strength * w[:-1], error.sum(axis=0)])
            penalty = 0.5 * strength * float((w[:-1] ** 2).sum())
            return float(-(p * logs).sum() / len(x)) + penalty, slope.ravel()

        weights = minimize(loss, weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x.reshape(
            shape
        )
        yield weights


def _trees(linear: SoftHead, x: Floats, p: Floats, choosing: tuple[Floats, Floats], seed: int) -> Iterator[str]:
    """The trees of each class, of two classes of the second one, grown from what the linear head says."""
    import lightgbm as lgb

    asked, known = choosing
    base, base_asked = (_log_odds(linear.linear(one)) for one in (x, asked))
    for place in range(p.shape[1]) if p.shape[1] > 2 else (1,):
        # Copies: LightGBM warns of columns of a matrix.
        data = lgb.Dataset(x, p[:, place].copy(), init_score=base[:, place].copy())
        held = lgb.Dataset(asked, known[:, place].copy(), init_score=base_asked[:, place].copy(), reference=data)
        stop = lgb.early_stopping(_PATIENCE, verbose=False)
        booster = lgb.train(_TREES | {"seed": seed}, data, _ROUNDS, valid_sets=[held], callbacks=[stop])
        yield str(booster.model_to_string())


def _log_softmax(x: Floats, weights: Floats) -> Floats:
    from scipy.special import log_softmax

    return np.asarray(log_softmax(x @ weights[:-1] + weights[-1], axis=1))


def _log_odds(logs: Floats) -> Floats:
    """Log-odds of probabilities that are given by their logarithms."""
    return np.asarray(logs - np.log1p(-np.minimum(np.exp(logs), 1 - 1e-12)))
