"""Metrics against scikit-learn's, plain and under weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ledgerlm.heads.metrics import COMPARED, METRICS, Metric, metrics_of, value
from ledgerlm.heads.tasks import Floats, Kind


def _rows(kind: Kind) -> tuple[Floats, Floats, Floats]:
    generator = np.random.default_rng(7)
    if kind == "regression":
        y = generator.normal(size=200)
        return y, (y + generator.normal(size=200))[:, None], generator.integers(0, 4, 200).astype(float)
    classes = 2 if kind == "binary" else 4
    y = generator.integers(0, classes, 200).astype(float)
    p = generator.dirichlet(np.ones(classes), 200) + 0.3 * np.eye(classes)[y.astype(int)]
    p = np.round(p / p.sum(axis=1, keepdims=True), 2)  # rounding makes ties
    p[:, -1] = 1 - p[:, :-1].sum(axis=1)
    return y, p.clip(0.001, 0.999), generator.integers(0, 4, 200).astype(float)


def _sklearn(name: str, kind: Kind, y: Floats, p: Floats, w: Floats) -> float:
    onehot, chosen = np.eye(p.shape[1])[y.astype(int)] if kind != "regression" else y, p.argmax(axis=1)
    f1 = {"labels": range(p.shape[1]), "sample_weight": w}
    found = {
        "roc_auc": lambda: sk.roc_auc_score(y, p[:, 1], sample_weight=w),
        "roc_auc_ovr": lambda: sk.roc_auc_score(onehot, p, average="macro", sample_weight=w),
        "average_precision": lambda: (
            sk.average_precision_score(y, p[:, 1], sample_weight=w)
            if kind == "binary"
            else sk.average_precision_score(onehot, p, average="macro", sample_weight=w)
        ),
        "f1": lambda: sk.f1_score(y, chosen, sample_weight=w),
        "f1_weighted": lambda: sk.f1_score(y, chosen, average="weighted", **f1),
        "accuracy": lambda: sk.accuracy_score(y, chosen, sample_weight=w),
        "log_loss": lambda: -np.average(np.log(p[np.arange(len(y)), y.astype(int)]), weights=w),
        "brier": lambda: np.average(
            (p[:, 1] - y) ** 2 if kind == "binary" else ((p - onehot) ** 2).sum(axis=1), weights=w
        ),
        "f1_macro": lambda: sk.f1_score(y, chosen, average="macro", **f1),
        "precision_macro": lambda: sk.precision_score(y, chosen, average="macro", zero_division=0, **f1),
        "recall_macro": lambda: sk.recall_score(y, chosen, average="macro", zero_division=0, **f1),
        "top_3": lambda: np.average(np.sort(p, axis=1)[:, -3] <= p[np.arange(len(y)), y.astype(int)], weights=w),
        "calibration_error": lambda: _calibration_error(y, p, w),
        "mae": lambda: sk.mean_absolute_error(y, p[:, 0], sample_weight=w),
        "rmse": lambda: sk.root_mean_squared_error(y, p[:, 0], sample_weight=w),
    }
    return float(found[name]())


def _calibration_error(y: Floats, p: Floats, w: Floats) -> float:
    """By hand: ten bins of equally many rows, by what was said."""
    said, came = (p[:, 1], y == 1) if p.shape[1] == 2 else (p.max(axis=1), p.argmax(axis=1) == y)
    order = np.argsort(said, kind="stable").reshape(10, 20)
    return float(sum(abs((w[part] * (said[part] - came[part])).sum()) for part in order) / w.sum())


@pytest.mark.parametrize(
    ("metric", "kind"),
    [pytest.param(one, kind, id=f"{kind}-{one.name}") for one in (*METRICS, *COMPARED) for kind in one.kinds],
)
def test_equals_sklearn_plain_and_weighted(metric: Metric, kind: Kind) -> None:
    y, p, weights = _rows(kind)
    both = metric.measure(y, p, np.stack([np.ones(len(y)), weights]))
    assert both[0] == pytest.approx(_sklearn(metric.name, kind, y, p, np.ones(len(y))), abs=1e-12)
    assert both[1] == pytest.approx(_sklearn(metric.name, kind, y, p, weights), abs=1e-12)
    assert value(metric, y, p) == pytest.approx(both[0], abs=1e-12)


def test_weights_equal_repeated_rows() -> None:
    y, p, weights = _rows("binary")
    again = np.repeat(np.arange(len(y)), weights.astype(int))
    for metric in metrics_of("binary"):
        assert metric.measure(y, p, weights[None])[0] == pytest.approx(value(metric, y[again], p[again]), abs=1e-12)


def test_a_missing_class_leaves_auc_undefined() -> None:
    auc = metrics_of("binary")[0]
    assert auc.name == "roc_auc"
    assert np.isnan(value(auc, np.zeros(3), np.full((3, 2), 0.5)))


def test_main_metrics_come_first() -> None:
    assert [metrics_of(kind)[0].name for kind in ("binary", "multiclass", "regression")] == [
        "roc_auc",
        "roc_auc_ovr",
        "mae",
    ]
