"""What contacting changes: Qini curves of uplift scores, with a control group, and the transformed outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ledgerlm.errors import DataError
from ledgerlm.evaluation.intervals import interval, resamples
from ledgerlm.heads.tasks import Floats

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Clients of whom some were contacted at random.

    Attributes:
        y: 1 for who answered, contacted or not.
        treated: who was contacted.
    """

    y: Floats
    treated: Flags


def transformed_outcome(y: Floats, treated: Flags, share: float) -> Floats:
    """y (t - e) / (e (1 - e)), whose mean given the features is the uplift (Athey and Imbens 2015).

    Args:
        y: 1 for who answered.
        treated: who was contacted.
        share: e, the share that was contacted, at random.

    Raises:
        DataError: everybody was contacted, or nobody.
    """
    if not 0 < share < 1:
        raise DataError(f"{share:.0%} of the clients were contacted; uplift needs both groups")
    return y * (treated - share) / (share * (1 - share))


def qini_curve(score: Floats, experiment: Experiment, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Answers gained when clients are contacted by falling score (Radcliffe 2007).

    At each depth: answers of the contacted less those of the control group, scaled to as many contacted clients.

    Args:
        score: of each client; equal scores are taken as one step.
        experiment: answers and groups.
        weights: how often each client counts; one time when left out.

    Returns:
        Share of the clients from 0 to 1, and answers gained for each contacted client of all, from 0.
    """
    counted = np.ones(len(score)) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    t = (counted * experiment.treated)[order]
    c = (counted * ~experiment.treated)[order]
    y = experiment.y[order]
    n_t, n_c, y_t, y_c = (np.cumsum(part)[last] for part in (t, c, t * y, c * y))
    scaled = np.divide(y_c * n_t, n_c, out=np.zeros(len(last)), where=n_c > 0)
    gained = (y_t - scaled) / max(float(n_t[-1]), 1.0)
    share = np.cumsum(counted[order])[last] / counted.sum()
    return np.r_[0.0, share], np.r_[0.0, gained]


def qini_coefficient(score: Floats, experiment: Experiment, weights: Floats | None = None) -> float:
    """Area between the Qini curve and the straight line of a random order, as a share of the perfect order's area.

    1 for the order that knows every answer (contacted who answered first, control who answered last), about 0 for a
    random order, below 0 for a wrong one.
    """
    perfect = np.where(experiment.treated, 1.0, -1.0) * experiment.y
    best = _area(perfect, experiment, weights)
    return _area(score, experiment, weights) / best if best > 0 else float("nan")


def _area(score: Floats, experiment: Experiment, weights: Floats | None) -> float:
    share, gained = qini_curve(score, experiment, weights)
    return float(np.trapezoid(gained, share) - gained[-1] / 2)


def qini_table(
    scores: Mapping[str, Floats], experiment: Experiment, *, count: int, seed: int
) -> list[tuple[str, float, float, float, float]]:
    """Qini coefficients with 95 % bootstrap intervals over clients, and the uplift among the best-scored third.

    Returns:
        For each score: name, coefficient, low, high, and the difference of the answer rates in its best third.
    """
    everyone = np.arange(len(experiment.y))
    rows = []
    for name, score in scores.items():
        drawn = [
            qini_coefficient(score, experiment, weights)
            for part in resamples(everyone, count, seed)
            for weights in part
        ]
        coefficient = qini_coefficient(score, experiment)
        low, high = interval(np.array(drawn), coefficient)
        best = score >= np.quantile(score, 2 / 3)
        rows.append((name, coefficient, low, high, _difference(experiment, best)))
    return rows


def _difference(experiment: Experiment, chosen: Flags) -> float:
    """Answer rate of the contacted less that of the control group, among the chosen; NaN without both."""
    groups = [experiment.y[chosen & side] for side in (experiment.treated, ~experiment.treated)]
    if any(len(group) == 0 for group in groups):
        return float("nan")
    return float(groups[0].mean() - groups[1].mean())
