"""Calibration: better probabilities where they were wrong, the same order, and nothing lost in JSON."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit

from ledgerlm.heads.calibration import Calibrator, Method, brier, fit_calibrator, log_loss
from ledgerlm.heads.metrics import METRICS, value
from ledgerlm.heads.tasks import Floats, Task

BINARY = Task(name="bad", kind="binary", classes=(0.0, 1.0), class_names=("good", "bad"))
FOUR = Task(name="age", kind="multiclass", classes=(0.0, 1.0, 2.0, 3.0), class_names=("a", "b", "c", "d"))
BRIER = next(metric for metric in METRICS if metric.name == "brier")


def _overconfident(kind: str) -> tuple[Floats, Floats]:
    """Raw scores three times too sure, with labels drawn from the true probabilities."""
    generator = np.random.default_rng(4)
    if kind == "binary":
        truth = generator.uniform(0.02, 0.6, 6000)
        return 3 * logit(truth)[:, None] + 1, (generator.uniform(size=6000) < truth).astype(float)
    truth = generator.dirichlet(np.ones(4), 6000).clip(0.01)
    truth /= truth.sum(axis=1, keepdims=True)
    y = np.array([generator.choice(4, p=row) for row in truth])
    return 3 * log_softmax(np.log(truth), axis=1), y.astype(float)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
@pytest.mark.parametrize("task", [BINARY, FOUR], ids=lambda task: task.kind)
def test_makes_overconfident_scores_better_on_new_rows(method: Method, task: Task) -> None:
    raw, y = _overconfident(task.kind)
    calibrator = fit_calibrator(method, raw[:4000], y[:4000], task)
    before, after = (value(BRIER, y[4000:], one.apply(raw[4000:], task)) for one in (Calibrator(), calibrator))
    assert after < 0.93 * before
    p = calibrator.apply(raw, task)
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))
    assert p.min() > 0


def test_sigmoid_finds_the_line() -> None:
    raw, y = _overconfident("binary")
    (curve,) = fit_calibrator("sigmoid", raw, y, BINARY).curves
    assert curve.slope == pytest.approx(1 / 3, rel=0.1)
    assert curve.shift == pytest.approx(-1 / 3, abs=0.1)


def test_keeps_the_order() -> None:
    raw, y = _overconfident("binary")
    for method in ("sigmoid", "isotonic", "temperature"):
        p = fit_calibrator(method, raw, y, BINARY).apply(np.sort(raw, axis=0), BINARY)
        assert np.all(np.diff(p[:, 1]) >= 0)


def test_never_turns_a_useless_score_around() -> None:
    generator = np.random.default_rng(1)
    y = (generator.uniform(size=500) < 0.3).astype(float)
    raw = (-y + generator.normal(size=500))[:, None]
    (curve,) = fit_calibrator("sigmoid", raw, y, BINARY).curves
    assert curve.slope == 0.0
    assert expit(curve.shift) == pytest.approx(y.mean(), abs=0.01)


@pytest.mark.parametrize("method", ["none", "sigmoid", "isotonic", "temperature"])
def test_survives_json(method: Method) -> None:
    raw, y = _overconfident("multiclass")
    calibrator = fit_calibrator(method, raw, y, FOUR)
    again = Calibrator.model_validate_json(calibrator.model_dump_json())
    assert np.array_equal(again.apply(raw, FOUR), calibrator.apply(raw, FOUR))


def test_a_regression_is_left_alone() -> None:
    task = Task(name="spend", kind="regression")
    raw = np.array([[1.5], [2.5]])
    assert np.array_equal(fit_calibrator("sigmoid", raw, raw[:, 0], task).apply(raw, task), raw)


@pytest.mark.parametrize("method", ["none", "sigmoid", "isotonic", "temperature"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_head_that_is_quite_sure_is_no_division_by_zero(method: Method, kind: str) -> None:
    task = BINARY if kind == "binary" else FOUR
    raw, y = _overconfident(kind)
    raw[:20] = np.where(np.arange(raw.shape[1]) == 0, -np.inf, raw[:20])
    raw[20:40, 0] = np.inf if kind == "binary" else 1e6
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        p = fit_calibrator(method, raw, y, task).apply(raw, task)
        losses = log_loss(y, p), brier(y, p)
    assert np.isfinite(p).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))
    assert all(np.isfinite(loss).all() for loss in losses)
    assert (p[:20, 0] > p[20:40, 0]).all() if kind == "binary" else (p[20:40, 0] > p[:20, 0]).all()
