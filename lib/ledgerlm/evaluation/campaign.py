"""What a campaign manager asks of a score: deciles, gain, lift and profit, the best cut-off, fairness by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledgerlm.applications.campaign import Economy
from ledgerlm.evaluation.intervals import interval, resamples
from ledgerlm.heads.tasks import Floats

_POINTS = 101  # of a drawn curve


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Figures by the share of clients contacted, best first.

    Attributes:
        share: share contacted, from 0 to 1.
        gain: share of all answers that they give.
        lift: their answer rate as a multiple of everyone's; from the first client on.
        profit: money made, per client of all.
        expected: money that the probabilities promise, per client of all.
    """

    share: Floats
    gain: Floats
    lift: Floats
    profit: Floats
    expected: Floats

    def drawn(self, name: str) -> tuple[list[float], list[float]]:
        """At most 101 points of one curve, for a figure."""
        places = np.unique(np.linspace(1, len(self.share) - 1, min(_POINTS, len(self.share) - 1)).astype(int))
        return np.round(self.share[places], 4).tolist(), np.round(getattr(self, name)[places], 4).tolist()


def curves(p: Floats, y: Floats, economy: Economy) -> Curves:
    """Gain, lift and profit by falling probability.

    Args:
        p: calibrated probability of each client.
        y: 1 for who answered.
        economy: cost and value.
    """
    order = np.argsort(-p, kind="stable")
    count = np.arange(1, len(p) + 1)
    answers = np.cumsum(y[order])
    profit = economy.value * answers - economy.cost * count
    expected = economy.value * np.cumsum(p[order]) - economy.cost * count
    rate = max(float(y.mean()), 1e-12)
    return Curves(
        share=np.r_[0.0, count / len(p)],
        gain=np.r_[0.0, answers / max(float(answers[-1]), 1e-12)],
        lift=np.r_[np.nan, answers / count / rate],
        profit=np.r_[0.0, profit / len(p)],
        expected=np.r_[0.0, expected / len(p)],
    )


def decile_rows(p: Floats, y: Floats, economy: Economy) -> list[list[Any]]:
    """One row a tenth of the clients, best first.

    Returns:
        decile, clients, mean probability, answer rate, lift, cumulative gain, expected profit, profit made.
    """
    order = np.argsort(-p, kind="stable")
    found, answers = [], 0.0
    for decile, part in enumerate(np.array_split(order, 10), 1):
        answers += float(y[part].sum())
        found.append(
            [
                decile,
                len(part),
                float(p[part].mean()),
                float(y[part].mean()),
                float(y[part].mean() / max(float(y.mean()), 1e-12)),
                answers / max(float(y.sum()), 1e-12),
                float((economy.value * p[part] - economy.cost).sum()),
                float((economy.value * y[part] - economy.cost).sum()),
            ]
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOff:
    """The share of clients whose contact made the most money.

    Attributes:
        share: best share, with the 95 % interval `share_low` to `share_high` over resampled clients.
        probability: lowest probability among them.
        profit: money made there, per client of all, with its interval.
        profit_at_threshold: the same when the cut is where probability times value meets the cost.
    """

    share: float
    share_low: float
    share_high: float
    probability: float
    profit: float
    profit_low: float
    profit_high: float
    profit_at_threshold: float


def best_cutoff(p: Floats, y: Floats, economy: Economy, *, count: int, seed: int) -> CutOff:
    """Finds the cut-off with the highest profit, and how sure it is.

    The maximum is taken in each resample anew, so the interval of the share is that of the choice. The profit at a
    maximum found on the same clients is flattered; its interval is about the share found, held fixed.

    Args:
        p: probability of each client.
        y: 1 for who answered.
        economy: cost and value.
        count: resamples of clients.
        seed: of the resamples.
    """
    order = np.argsort(-p, kind="stable")
    made = economy.value * y[order] - economy.cost
    total = np.r_[0.0, np.cumsum(made)]
    best = int(total.argmax())
    shares, profits = [], []
    for weights in resamples(np.arange(len(p)), count, seed):
        drawn = weights[:, order]
        running = np.concatenate((np.zeros((len(drawn), 1)), np.cumsum(drawn * made, axis=1)), axis=1)
        clients = np.concatenate((np.zeros((len(drawn), 1)), np.cumsum(drawn, axis=1)), axis=1)
        at = running.argmax(axis=1)
        shares.append(np.take_along_axis(clients, at[:, None], axis=1)[:, 0] / len(p))
        profits.append(running[:, best] / len(p))
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975])
    profit = float(total[best]) / len(p)
    profit_low, profit_high = interval(np.concatenate(profits), profit)
    return CutOff(
        share=best / len(p),
        share_low=float(low),
        share_high=float(high),
        probability=float(p[order][best - 1]) if best else 1.0,
        profit=profit,
        profit_low=profit_low,
        profit_high=profit_high,
        profit_at_threshold=float(total[int((p >= economy.threshold).sum())]) / len(p),
    )


def fairness_rows(groups: NDArray[np.object_], p: Floats, y: Floats, contacted: NDArray[np.bool_]) -> list[list[Any]]:
    """How each group fares.

    Returns:
        group, clients, selection rate, the same relative to the most selected group, true positive rate, mean
        probability, answer rate, and their difference (calibration).
    """
    names = sorted({str(name) for name in groups})
    chosen = {name: groups == name for name in names}
    most = max(float(contacted[rows].mean()) for rows in chosen.values())
    found = []
    for name, rows in chosen.items():
        selected = float(contacted[rows].mean())
        answered = rows & (y == 1)
        found.append(
            [
                name,
                int(rows.sum()),
                selected,
                selected / most if most else None,
                float(contacted[answered].mean()) if answered.any() else None,
                float(p[rows].mean()),
                float(y[rows].mean()),
                float(p[rows].mean() - y[rows].mean()),
            ]
        )
    return found
