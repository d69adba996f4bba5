"""Calibration: turns a head's raw scores into probabilities that mean what they say; kept as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.heads.boosting import to_probabilities
from ledgerlm.heads.tasks import Floats, Task

Method = Literal["none", "sigmoid", "isotonic", "temperature"]

# A probability is kept this far from 0 and 1, so that no single client can make a log loss infinite.
_EDGE = 1e-4
# Logarithm of the smallest probability that a raw score is read as.
_SURE = -700.0
# Raw scores are read within these bounds: a likelihood of exactly 0 has none.
_FARTHEST = 700.0


def log_loss(y: Floats, p: Floats) -> Floats:
    """Logarithmic loss of each row; a probability of exactly 0 counts as the smallest that float64 tells from it.

    Args:
        y: class indices.
        p: rows x classes.
    """
    tiny = np.finfo(np.float64).eps
    return np.asarray(-np.log(np.clip(p[np.arange(len(y)), y.astype(int)], tiny, 1 - tiny)))


def brier(y: Floats, p: Floats) -> Floats:
    """Squared distance from the truth: (p - y)^2 for two classes, the sum over classes for more (Brier 1950)."""
    if p.shape[1] == 2:
        return np.asarray((p[:, 1] - y) ** 2)
    return np.asarray(((p - np.eye(p.shape[1])[y.astype(int)]) ** 2).sum(axis=1))


class Curve(Conf):
    """A rising function of the raw score of one class."""

    slope: float = Field(1.0, description="sigmoid: factor of the raw score")
    shift: float = Field(0.0, description="sigmoid: added to it")
    x: tuple[float, ...] = Field((), description="isotonic: raw scores of the steps, ascending")
    y: tuple[float, ...] = Field((), description="isotonic: probability at each step")

    def apply(self, score: Floats) -> Floats:
        """Probability of the class for each raw score."""
        from scipy.special import expit

        found = np.interp(score, self.x, self.y) if self.x else expit(self.slope * score + self.shift)
        return np.asarray(np.clip(found, _EDGE, 1 - _EDGE))


class Calibrator(Conf):
    """Fitted calibration of one head."""

    method: Method = Field("none", description="none, sigmoid, isotonic or temperature")
    curves: tuple[Curve, ...] = Field((), description="one for two classes, else one for each class, then normalised")
    temperature: float = Field(1.0, gt=0, description="temperature: divisor of the raw scores")

    def apply(self, raw: Floats, task: Task) -> Floats:
        """Probabilities of the classes, or the values of a regression.

        Args:
            raw: raw scores, rows x 1 for two classes or a regression, else rows x classes.
            task: what is predicted.

        Returns:
            Rows x classes, each row adding up to one; rows x 1 for a regression.
        """
        if task.kind == "regression":
            return to_probabilities(raw, task)
        raw = _bounded(raw)
        if self.method == "none":
            return to_probabilities(raw, task)
        if self.method == "temperature":
            return to_probabilities(raw / self.temperature, task)
        if task.kind == "binary":
            positive = self.curves[0].apply(raw[:, 0])
            return np.stack([1 - positive, positive], axis=1)
        each = np.stack([curve.apply(_against_rest(raw, k)) for k, curve in enumerate(self.curves)], axis=1)
        return np.asarray(each / each.sum(axis=1, keepdims=True))


def fit_calibrator(method: Method, raw: Floats, y: Floats, task: Task) -> Calibrator:
    """Fits a calibration on raw scores of rows that the scoring model had not seen.

    `sigmoid` is Platt's (1999) with his softened targets, `isotonic` the pool-adjacent-violators fit (Zadrozny and
    Elkan 2002; steps need some thousand rows), each one-vs-rest and normalised for more than two classes;
    `temperature` is one divisor of all logits (Guo et al. 2017).

    Args:
        method: what to fit; a regression is left as it is.
        raw: out-of-fold raw scores, rows x 1 or rows x classes.
        y: class indices.
        task: what is predicted.
    """
    if task.kind == "regression" or method == "none":
        return Calibrator()
    raw = _bounded(raw)
    if method == "temperature":
        return Calibrator(method=method, temperature=_temperature(raw, y, task))
    fit: Callable[[Floats, Floats], Curve] = _sigmoid if method == "sigmoid" else _isotonic
    if task.kind == "binary":
        return Calibrator(method=method, curves=(fit(raw[:, 0], y),))
    curves = tuple(fit(_against_rest(raw, k), (y == k).astype(np.float64)) for k in range(task.outputs))
    return Calibrator(method=method, curves=curves)


def _bounded(raw: Floats) -> Floats:
    """Raw scores without infinities; several logits keep their distances to the largest."""
    if np.isfinite(raw).all():
        return raw
    top = raw.max(axis=1, keepdims=True) if raw.shape[1] > 1 else np.zeros((len(raw), 1))
    top = np.where(np.isfinite(top), top, 0.0)
    return np.clip(raw, top - _FARTHEST, top + _FARTHEST)


def _against_rest(raw: Floats, k: int) -> Floats:
    """Log-odds of one class against all others, finite also where the head is sure."""
    from scipy.special import log_softmax

    log_p = np.clip(log_softmax(raw, axis=1)[:, k], _SURE, -1e-12)
    return np.asarray(log_p - np.log(-np.expm1(log_p)))


def _sigmoid(score: Floats, positive: Floats) -> Curve:
    from scipy.optimize import minimize
    from scipy.special import expit

    ones = positive.sum()
    zeros = len(positive) - ones
    target = np.where(positive > 0, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(place: Floats) -> tuple[float, Floats]:
        z = place[0] * score + place[1]
        error = expit(z) - target
        return float(np.logaddexp(0, z).sum() - (target * z).sum()), np.array([error @ score, error.sum()])

    start = np.array([1.0, 0.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return Curve(slope=float(found.x[0]), shift=float(found.x[1]))


def _isotonic(score: Floats, positive: Floats) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score, positive)
    return Curve(x=tuple(map(float, fitted.X_thresholds_)), y=tuple(map(float, fitted.y_thresholds_)))


def _temperature(raw: Floats, y: Floats, task: Task) -> float:
    from scipy.optimize import minimize_scalar
    from scipy.special import xlogy

    truth = np.eye(task.outputs)[y.astype(int)]

    def loss(log_temperature: float) -> float:
        p = to_probabilities(raw / np.exp(log_temperature), task)
        return float(-xlogy(truth, np.clip(p, 1e-15, 1)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))
