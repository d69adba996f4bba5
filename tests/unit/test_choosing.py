"""The linear head, and the choice of a head inside the training rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ledgerlm.errors import DataError
from ledgerlm.evaluation.choosing import LINEAR, STACK, TREES, HeadsConf, Shown, inner_folds, method_fits, shown
from ledgerlm.heads.boosting import LightGBMConf, to_probabilities
from ledgerlm.heads.linear import LinearConf, Reduced, linear_raw
from ledgerlm.heads.metrics import auc
from ledgerlm.heads.parallel import run_local
from ledgerlm.heads.samples import Sample, make_folds
from ledgerlm.heads.tasks import Floats, Task

QUICK = LightGBMConf(n_estimators=30, min_data_in_leaf=5, num_leaves=7, learning_rate=0.1)
YES = Task(name="yes", kind="binary", classes=(0.0, 1.0), class_names=("no", "yes"))


def sample_of(task: Task, y: Floats, *, test: int = 0) -> Sample:
    rows = np.arange(len(y))
    return Sample(
        task=task,
        rows=rows,
        y=y,
        clients=rows,
        development=rows[: len(y) - test],
        test=rows[len(y) - test :],
        strata=(y if task.kind != "regression" else y > np.median(y)).astype(np.int64),
    )


def spread(rows: int = 300, columns: int = 400, seed: int = 0, told: float = 0.5) -> tuple[sparse.csr_matrix, Floats]:
    """A weak direction that all columns tell a little of: no single one can be split on."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=rows)
    x = told * hidden[:, None] * rng.choice([-1, 1], columns) + rng.normal(size=(rows, columns))
    return sparse.csr_matrix(x), (hidden > 0).astype(float)


def corner(rows: int = 300, seed: int = 0) -> tuple[sparse.csr_matrix, Floats]:
    """Two columns, neither of which tells anything alone."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    return sparse.csr_matrix(x), ((x[:, 0] > 0) != (x[:, 1] > 0)).astype(float)


def judged(x: sparse.csr_matrix, sample: Sample, conf: HeadsConf) -> Shown:
    folds = make_folds(sample, 3, [1])
    fits = method_fits(sample, folds, inner_folds(sample, folds, conf), conf, {1: "m"})
    results = iter(fitted for _, fitted in run_local(fits.listed(), {"m": x}))
    found = shown(sample, folds, fits.taken(results))
    assert next(results, None) is None
    return found


@pytest.mark.parametrize(("made", "best"), [(spread(told=0.12), LINEAR), (corner(), TREES)])
def test_the_head_that_suits_the_columns_is_chosen_by_the_training_rows(
    made: tuple[sparse.csr_matrix, Floats], best: str
) -> None:
    x, y = made
    sample = sample_of(YES, y, test=30)
    found = judged(x, sample, HeadsConf(lightgbm=QUICK))
    facts = found.facts(sample)
    assert facts["means"].keys() == {TREES, LINEAR, STACK}
    other = LINEAR if best == TREES else TREES
    assert facts["means"][best] > facts["means"][other] + 0.05
    assert other not in facts["chosen"] and sum(facts["chosen"].values()) == 3
    assert [one.rows.tolist() for one in found.best["test"]] == [sample.test.tolist()] * 3
    assert len(found.gains) == 3
    # What is shown is what the chosen head says.
    for place, head in enumerate(found.chosen):
        if head == best:
            np.testing.assert_array_equal(
                found.best["cross_validation"][place].p, found.by_head[best]["cross_validation"][place].p
            )


def test_the_choice_never_looks_at_the_rows_held_out() -> None:
    _, y = spread()
    sample = sample_of(YES, y)
    [first, *_] = folds = make_folds(sample, 3, [1])
    conf = HeadsConf(lightgbm=QUICK)
    inside = inner_folds(sample, folds, conf)
    seen = {int(row) for fold in inside[0] for row in np.r_[fold.train, fold.held_out]}
    assert seen == set(first.train.tolist()) and not seen & set(first.held_out.tolist())
    for fit in method_fits(sample, folds, inside, conf, {1: "m"}).inner[TREES][0]:
        assert not set(fit.rows.tolist()) & set(fit.ask.tolist())
        assert not {*fit.rows.tolist(), *fit.ask.tolist()} & set(first.held_out.tolist())


def test_one_head_alone_needs_no_choice() -> None:
    x, y = spread(rows=90, columns=20)
    sample = sample_of(YES, y)
    found = judged(x, sample, HeadsConf(heads=(LINEAR,)))
    assert found.chosen == [LINEAR] * 3 and not found.gains
    assert found.best is found.by_head[LINEAR]


def test_three_classes_and_numbers() -> None:
    x, y = spread(rows=240)
    rng = np.random.default_rng(3)
    three = Task(name="three", kind="multiclass", classes=(0.0, 1.0, 2.0), class_names=("a", "b", "c"))
    labels = y + (rng.random(len(y)) < 0.3)
    p = to_probabilities(linear_raw(x[:160], labels[:160], x[160:], three, LinearConf(), seed=0), three)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert auc(labels[160:] == 0, p[:, 0], np.ones((1, 80)))[0] > 0.8
    assert linear_raw(x[:160], labels[:160], x[:0], three, LinearConf(), seed=0).shape == (0, 3)
    amount = Task(name="amount", kind="regression")
    said = linear_raw(x[:160], 100 + 10 * y[:160], x[160:], amount, LinearConf(), seed=0)
    assert said.shape == (80, 1) and abs(float(np.corrcoef(said[:, 0], y[160:])[0, 1])) > 0.6
    found = judged(x, sample_of(amount, 100 + 10 * y), HeadsConf(lightgbm=QUICK))
    assert set(found.chosen) <= {LINEAR, STACK}  # the mean absolute error is to be small


def test_columns_of_any_scale_or_none_are_borne() -> None:
    x, _ = spread(rows=120, columns=10)
    odd = sparse.csr_matrix(np.c_[x.toarray() * 1e9, np.zeros(120), np.full(120, 3.0)])
    reduced = Reduced(odd, LinearConf(), 0)(odd)
    assert np.isfinite(reduced).all() and float((reduced**2).sum(axis=1).mean()) == pytest.approx(1, rel=0.05)
    with pytest.raises(DataError, match="yes"):
        linear_raw(odd, np.zeros(120), odd, YES, LinearConf(), seed=0)
