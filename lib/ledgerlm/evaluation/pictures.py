"""What the report draws, as small JSON values: curves, confusion matrices, importances, the map of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ledgerlm.evaluation.intervals import Predictions
from ledgerlm.heads.metrics import confidence
from ledgerlm.heads.samples import Sample
from ledgerlm.heads.tasks import Floats, Ints
from ledgerlm.heads.vectors import Matrix

_DIGITS = 4


def pooled(sample: Sample, predictions: Sequence[Predictions]) -> tuple[Floats, Floats]:
    """Labels and out-of-fold predictions of all development rows under the first seed, one prediction a row."""
    first = [one for one in predictions if one.seed == predictions[0].seed]
    return np.concatenate([sample.y[one.rows] for one in first]), np.concatenate([one.p for one in first])


def roc_points(y: Floats, p: Floats, names: Sequence[str], points: int = 150) -> list[dict[str, Any]]:
    """ROC curves: of the second class for two classes, else of each class against the rest.

    Returns:
        class, fpr and tpr of at most `points` points.
    """
    from sklearn.metrics import roc_curve

    curves = []
    for k in range(1, 2) if p.shape[1] == 2 else range(p.shape[1]):
        fpr, tpr, _ = roc_curve(y == k, p[:, k])
        kept = np.unique(np.linspace(0, len(fpr) - 1, min(points, len(fpr))).astype(int))
        curves.append({"class": names[k], "fpr": _numbers(fpr[kept]), "tpr": _numbers(tpr[kept])})
    return curves


def calibration_bins(y: Floats, p: Floats, bins: int = 10) -> list[dict[str, float]]:
    """What was said against what came: bins of equally many rows by probability.

    For two classes the probability of the second one; for more that of the predicted class, and how often it was right.

    Returns:
        predicted, observed and rows of each bin, rising.
    """
    said, came = confidence(y, p)
    parts = np.array_split(np.argsort(said, kind="stable"), min(bins, len(said)))
    return [
        {"predicted": _number(said[part].mean()), "observed": _number(came[part].mean()), "rows": len(part)}
        for part in parts
    ]


def confusion(y: Floats, p: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(y.astype(int), p.argmax(axis=1), labels=range(len(names)))
    return {"classes": list(names), "matrix": matrix.tolist()}


def importances(gains: Sequence[Floats], matrix: Matrix, top: int = 30) -> dict[str, Any]:
    """Share of the loss saved, by feature and by group, mean over folds.

    Returns:
        `features`: feature, group, share of the `top` ones, largest first; `groups`: group to share.
    """
    mean = np.mean([gain / max(float(gain.sum()), 1e-12) for gain in gains], axis=0)
    best = [int(place) for place in np.argsort(-mean)[:top] if mean[place] > 0]
    groups: dict[str, float] = {}
    for group, share in zip(matrix.groups, mean, strict=True):
        groups[group] = groups.get(group, 0.0) + float(share)
    return {
        "features": [
            {"feature": matrix.names[place], "group": matrix.groups[place], "share": _number(mean[place])}
            for place in best
        ],
        "groups": {group: _number(share) for group, share in sorted(groups.items(), key=lambda item: -item[1])},
    }


def projection(matrix: Matrix, samples: Sequence[Sample], seed: int, most: int = 2000) -> dict[str, Any]:
    """A flat map of clients: the two main directions of their standardised vectors.

    Args:
        matrix: vectors of labelled clients.
        samples: tasks whose labels colour the map.
        seed: of the draw when there are more than `most` clients.
        most: points of the map.

    Returns:
        `x`, `y`, `explained` (share of the variance of both), and `labels`: task to class name or value of each
        point, None where it has none.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    if min(matrix.x.shape) < 2:
        return {}
    places: Ints = np.arange(matrix.x.shape[0])
    if len(places) > most:
        places = np.sort(np.random.default_rng(seed).choice(places, most, replace=False))
    directions = PCA(n_components=2, random_state=seed)
    flat = directions.fit_transform(StandardScaler().fit_transform(matrix.x[places].toarray()))
    labels: dict[str, list[Any]] = {}
    for sample in samples:
        of_row: Mapping[int, float] = dict(zip(sample.rows.tolist(), sample.y.tolist(), strict=True))
        names = sample.task.class_names
        labels[sample.task.name] = [
            None if value is None else (names[int(value)] if names else value)
            for value in (of_row.get(int(place)) for place in places)
        ]
    return {
        "x": _numbers(flat[:, 0]),
        "y": _numbers(flat[:, 1]),
        "explained": _numbers(directions.explained_variance_ratio_),
        "labels": labels,
    }


def _number(value: Any) -> float:
    return round(float(value), _DIGITS)


def _numbers(values: Any) -> list[float]:
    return [_number(value) for value in values]
