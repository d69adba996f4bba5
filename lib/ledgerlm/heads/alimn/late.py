"""Late fusion: scores of several networks put together by average or stacking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ledgerlm.heads.tasks import Floats


def fit_stacking(raw: Floats, y: Floats) -> tuple[float, ...]:
    """Logistic regression (Wolpert's stacking, 1992) on log-odds of clients that no member was trained on.

    Args:
        raw: log-odds, rows x members.
        y: labels 0 and 1.

    Returns:
        Weight of each member, then the bias.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1.0).fit(raw, y)
    return (*map(float, fitted.coef_[0]), float(fitted.intercept_[0]))


def late_logit(probabilities: Floats, raw: Floats, weights: Sequence[float]) -> Floats:
    """Log-odds of the fused score.

    Args:
        probabilities: calibrated probabilities of the members, rows x members.
        raw: log-odds of the members, rows x members.
        weights: from `fit_stacking`; empty for the average.
    """
    from scipy.special import logit

    if weights:
        return np.asarray(raw @ np.asarray(weights[:-1]) + weights[-1])
    return np.asarray(logit(np.clip(probabilities.mean(axis=1), 1e-9, 1 - 1e-9)))


def probability(log_odds: Floats) -> Floats:
    """1 / (1 + exp(-log-odds))."""
    from scipy.special import expit

    return np.asarray(expit(log_odds))
