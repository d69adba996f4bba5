"""How sure a figure is: paired bootstrap over clients, and a t-test that knows that folds share training clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ledgerlm.heads.metrics import Metric
from ledgerlm.heads.tasks import Floats, Ints

# Weights are made for so many numbers at a time, which bounds memory to some hundred megabytes.
_NUMBERS_AT_ONCE = 8_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What one model said about the rows it had not seen.

    Attributes:
        seed: seed of the folds.
        fold: number of the fold.
        rows: places of these rows among the task's rows.
        p: rows x classes, or rows x 1 for a regression.
    """

    seed: int
    fold: int
    rows: Ints
    p: Floats


def fold_values(metric: Metric, y: Floats, predictions: Sequence[Predictions]) -> Floats:
    """The metric of each fold, in the order of `predictions`."""
    return np.array([metric.measure(y[one.rows], one.p, np.ones((1, len(one.rows))))[0] for one in predictions])


def resamples(clients: Ints, count: int, seed: int) -> Iterator[Floats]:
    """Draws clients with replacement, as weights of rows; all rows of a client are drawn together.

    Args:
        clients: for each row the number of its client, from 0.
        count: how many resamples.
        seed: the same seed and clients give the same resamples, which pairs the methods.

    Yields:
        Weights, some resamples x rows.
    """
    generator = np.random.default_rng(seed)
    total = int(clients.max()) + 1
    step = max(1, _NUMBERS_AT_ONCE // max(total, len(clients)))
    for start in range(0, count, step):
        drawn = generator.multinomial(total, np.full(total, 1 / total), size=min(step, count - start))
        yield drawn[:, clients].astype(np.float64)


def bootstrap(
    metric: Metric, y: Floats, clients: Ints, predictions: Sequence[Predictions], *, count: int, seed: int
) -> Floats:
    """The mean over folds under resampled clients.

    A client that is drawn twice counts twice in whichever fold it lies, so the interval is about the very figure on
    the leaderboard (the mean over folds and seeds of predictions that were out of fold), and two methods that are
    given the same `clients`, `count` and `seed` see the same resamples.

    Returns:
        One value for each resample; NaN where no fold defines the metric.
    """
    values = []
    for weights in resamples(clients, count, seed):
        per_fold = np.stack([metric.measure(y[one.rows], one.p, weights[:, one.rows]) for one in predictions])
        known = ~np.isnan(per_fold)
        total = np.where(known, per_fold, 0.0).sum(axis=0)
        values.append(np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0)))
    return np.concatenate(values)


def interval(values: Floats, estimate: float, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, moved so that their mean is the estimate.

    A resample repeats clients, which flatters average precision; the shift takes that out.

    Args:
        values: from `bootstrap`, or the difference of two such.
        estimate: the figure that the interval is about.
        level: share of the resamples within.

    Returns:
        Low and high; NaN when no resample is defined.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) + (estimate - defined.mean())
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """Result of `corrected_t_test`: mean difference, its interval, and the two-sided p value."""

    mean: float
    low: float
    high: float
    p_value: float


def corrected_t_test(differences: Floats, held_out: float, level: float = 0.95) -> PairedTest:
    """Corrected resampled t-test (Nadeau and Bengio 2003, "Inference for the generalization error", eq. 9).

    Folds share training clients, so the plain standard error of their mean is too small; the variance is scaled by
    1/n + test/train instead of 1/n.

    Args:
        differences: of two methods on the same folds (and seeds), at least two.
        held_out: share of the clients that a fold holds out, between 0 and 1.
        level: of the interval.
    """
    from scipy import stats

    count = len(differences)
    mean = float(np.mean(differences))
    error = float(np.sqrt((1 / count + held_out / (1 - held_out)) * np.var(differences, ddof=1)))
    if error == 0.0:
        return PairedTest(mean=mean, low=mean, high=mean, p_value=1.0 if mean == 0.0 else 0.0)
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return PairedTest(mean=mean, low=mean - reach, high=mean + reach, p_value=p_value)
