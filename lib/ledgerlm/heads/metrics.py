"""Metrics that count each row with a weight, so that one pass gives a figure and all its bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ledgerlm.heads.calibration import brier, log_loss
from ledgerlm.heads.tasks import Floats, Kind

# (labels, predictions, weights) -> one value for each row of weights.
Measure = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of merit.

    Attributes:
        name: name on the leaderboard.
        kinds: tasks that it applies to.
        measure: takes labels (rows; class indices, or values of a regression), predictions (rows x classes; one
            column for a regression) and weights (resamples x rows), and gives one value for each resample, NaN where
            it is not defined.
        higher_is_better: direction.
    """

    name: str
    kinds: tuple[Kind, ...]
    measure: Measure
    higher_is_better: bool = True


def _ratio(above: Floats, below: Floats, empty: float = np.nan) -> Floats:
    out = np.full(np.broadcast(above, below).shape, empty)
    return np.asarray(np.divide(above, below, out=out, where=below > 0))


def _tied(score: Floats, weights: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, ascending; both resamples x distinct scores."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    return positives, np.add.reduceat(sorted_weights, starts, axis=1) - positives


def auc(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve: the chance that a positive row stands above a negative one, ties counted half."""
    positives, negatives = _tied(score, weights, positive)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio((below * positives).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def precision_area(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Average precision: precision at each distinct score, weighted by the recall gained there."""
    positives, negatives = (part[:, ::-1] for part in _tied(score, weights, positive))
    hits = np.cumsum(positives, axis=1)
    precision = _ratio(hits, hits + np.cumsum(negatives, axis=1), empty=0.0)
    return _ratio((precision * positives).sum(axis=1), positives.sum(axis=1))


def _one_vs_rest(measure: Callable[[NDArray[np.bool_], Floats, Floats], Floats]) -> Measure:
    """Macro mean over the classes; a class that a resample lacks leaves that resample undefined."""

    def macro(y: Floats, p: Floats, weights: Floats) -> Floats:
        per_class = [measure(y == k, p[:, k], weights) for k in range(p.shape[1])]
        return np.asarray(np.mean(per_class, axis=0))

    return macro


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How well each class is told from the others, all resamples x classes; 0 where nothing was predicted or there.

    Attributes:
        precision: share of the rows predicted to be of the class that are.
        recall: share of the class's rows that are predicted to be.
        f1: their harmonic mean.
        support: weight of the class's rows.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats


def by_class(y: Floats, p: Floats, weights: Floats) -> ClassFigures:
    """Precision, recall and F1 of each class, the likeliest class being the prediction."""
    true = np.eye(p.shape[1])[y.astype(int)]
    chosen = np.eye(p.shape[1])[p.argmax(axis=1)]
    there, said, hits = weights @ true, weights @ chosen, weights @ (true * chosen)
    return ClassFigures(
        precision=_ratio(hits, said, empty=0.0),
        recall=_ratio(hits, there, empty=0.0),
        f1=_ratio(2 * hits, there + said, empty=0.0),
        support=there,
    )


def _f1_weighted(y: Floats, p: Floats, weights: Floats) -> Floats:
    found = by_class(y, p, weights)
    return _ratio((found.f1 * found.support).sum(axis=1), found.support.sum(axis=1))


def _mean_of(loss: Callable[[Floats, Floats], Floats]) -> Measure:
    """A metric that is the weighted mean of a value of each row."""

    def mean(y: Floats, p: Floats, weights: Floats) -> Floats:
        return _ratio(weights @ loss(y, p), weights.sum(axis=1))

    return mean


def top(count: int) -> Measure:
    """Share of the rows whose true class is among the `count` likeliest."""

    def within(y: Floats, p: Floats) -> Floats:
        own = p[np.arange(len(y)), y.astype(int)]
        return np.asarray((p > own[:, None]).sum(axis=1) < count, np.float64)

    return _mean_of(within)


def confidence(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    """What was said and whether it came: of the second of two classes, else of the predicted class."""
    if p.shape[1] == 2:
        return p[:, 1], (y == 1).astype(np.float64)
    return p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)


def _calibration_error(y: Floats, p: Floats, weights: Floats, bins: int = 10) -> Floats:
    """Expected calibration error (Naeini 2015) over bins of equally many rows, as `pictures.calibration_bins`."""
    said, came = confidence(y, p)
    parts = np.array_split(np.argsort(said, kind="stable"), min(bins, len(said)))
    gaps = [np.abs(weights[:, part] @ (said - came)[part]) for part in parts]
    return _ratio(np.sum(gaps, axis=0), weights.sum(axis=1))


def _rmse(y: Floats, p: Floats, weights: Floats) -> Floats:
    return np.sqrt(_mean_of(lambda y, p: (y - p[:, 0]) ** 2)(y, p, weights))


_CLASSES: tuple[Kind, ...] = ("binary", "multiclass")
METRICS: tuple[Metric, ...] = (
    Metric(name="roc_auc", kinds=("binary",), measure=lambda y, p, w: auc(y == 1, p[:, 1], w)),
    Metric(name="roc_auc_ovr", kinds=("multiclass",), measure=_one_vs_rest(auc)),
    Metric(name="average_precision", kinds=("binary",), measure=lambda y, p, w: precision_area(y == 1, p[:, 1], w)),
    Metric(name="average_precision", kinds=("multiclass",), measure=_one_vs_rest(precision_area)),
    Metric(name="f1", kinds=("binary",), measure=lambda y, p, w: by_class(y, p, w).f1[:, 1]),
    Metric(name="f1_weighted", kinds=_CLASSES, measure=_f1_weighted),
    Metric(name="accuracy", kinds=_CLASSES, measure=_mean_of(lambda y, p: (p.argmax(axis=1) == y).astype(float))),
    Metric(name="log_loss", kinds=_CLASSES, measure=_mean_of(log_loss), higher_is_better=False),
    Metric(name="brier", kinds=_CLASSES, measure=_mean_of(brier), higher_is_better=False),
    Metric(
        name="mae", kinds=("regression",), measure=_mean_of(lambda y, p: np.abs(y - p[:, 0])), higher_is_better=False
    ),
    Metric(name="rmse", kinds=("regression",), measure=_rmse, higher_is_better=False),
)

# What a comparison of finished heads shows beside METRICS.
COMPARED: tuple[Metric, ...] = (
    Metric(name="f1_macro", kinds=_CLASSES, measure=lambda y, p, w: by_class(y, p, w).f1.mean(axis=1)),
    Metric(name="precision_macro", kinds=_CLASSES, measure=lambda y, p, w: by_class(y, p, w).precision.mean(axis=1)),
    Metric(name="recall_macro", kinds=_CLASSES, measure=lambda y, p, w: by_class(y, p, w).recall.mean(axis=1)),
    Metric(name="top_3", kinds=("multiclass",), measure=top(3)),
    Metric(name="calibration_error", kinds=_CLASSES, measure=_calibration_error, higher_is_better=False),
)


def metrics_of(kind: Kind) -> list[Metric]:
    """The metrics that apply to a kind of task; the first one is the task's main metric."""
    return [metric for metric in METRICS if kind in metric.kinds]


def value(metric: Metric, y: Floats, p: Floats) -> float:
    """The metric of these rows, each counted once; NaN where it is not defined (a class is missing)."""
    return float(metric.measure(y, p, np.ones((1, len(y))))[0])
