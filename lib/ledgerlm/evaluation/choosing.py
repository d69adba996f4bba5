"""With which head a representation is shown: chosen by inner folds of each fold's training rows, alike for all.

A board that gives every representation the same single head compares heads where that head suits one of them: trees
over hundreds of sparse columns with few rows lose to a linear head on their main directions, whatever the columns hold.
So each representation is fitted with trees, with a linear head, and as a weighted mean of both; what its training rows
say is best is asked about the rows held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.evaluation.intervals import Predictions, fold_values
from ledgerlm.evaluation.protocol import split_predictions
from ledgerlm.heads.boosting import LightGBMConf, to_probabilities
from ledgerlm.heads.linear import LinearConf
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.heads.parallel import Fit, Fitted
from ledgerlm.heads.samples import Fold, Sample, fold_fits, make_folds
from ledgerlm.heads.tasks import Floats

TREES: Literal["lightgbm"] = "lightgbm"
LINEAR: Literal["linear"] = "linear"
STACK = "stack"
# The trees' share in the mean of both heads.
_SHARES = (0.5, 0.25, 0.75)


class HeadsConf(Conf):
    """Which heads every representation gets."""

    heads: tuple[Literal["lightgbm", "linear"], ...] = Field(
        (TREES, LINEAR),
        min_length=1,
        description="heads that every representation is fitted with; of several, and their weighted mean, inner folds "
        "of the training rows choose one for each fold",
    )
    inner_folds: int = Field(3, ge=2, description="folds of a fold's training rows that choose the head")
    lightgbm: LightGBMConf = Field(LightGBMConf(), description="settings of LightGBM")
    linear: LinearConf = Field(LinearConf(), description="settings of the linear head")

    def of(self, head: str) -> LightGBMConf | LinearConf:
        """A head's settings."""
        return self.lightgbm if head == TREES else self.linear


@dataclass(frozen=True, kw_only=True)
class MethodFits:
    """The fits of one method.

    Attributes:
        inside: the inner folds of each fold; empty where there is one head alone.
        outer: head -> a fit for each fold.
        inner: head -> for each fold, a fit for each inner fold.
    """

    inside: Sequence[Sequence[Fold]]
    outer: Mapping[str, Sequence[Fit]]
    inner: Mapping[str, Sequence[Sequence[Fit]]]

    def listed(self) -> list[Fit]:
        """All of them, in one order."""
        inner = [fit for of_head in self.inner.values() for of_fold in of_head for fit in of_fold]
        return [*(fit for of_head in self.outer.values() for fit in of_head), *inner]

    def taken(self, results: Iterator[Fitted]) -> MethodResults:
        """Their results, from an iterator in the order of `listed`."""
        outer = {head: [next(results) for _ in fits] for head, fits in self.outer.items()}
        inner = {
            head: [[next(results) for _ in of_fold] for of_fold in of_head] for head, of_head in self.inner.items()
        }
        return MethodResults(inside=self.inside, outer=outer, inner=inner)


@dataclass(frozen=True, kw_only=True)
class MethodResults:
    """What the fits of one method gave; as `MethodFits`."""

    inside: Sequence[Sequence[Fold]]
    outer: Mapping[str, Sequence[Fitted]]
    inner: Mapping[str, Sequence[Sequence[Fitted]]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a method says with each head, and with the chosen one.

    Attributes:
        by_head: head -> split -> predictions of each fold.
        chosen: the head of each fold.
        best: split -> predictions of each fold with its chosen head.
        gains: of each fold, the loss that the trees' splits on each column saved; empty without trees.
    """

    by_head: Mapping[str, Mapping[str, Sequence[Predictions]]]
    chosen: Sequence[str]
    best: Mapping[str, Sequence[Predictions]]
    gains: Sequence[Floats]

    def facts(self, sample: Sample) -> dict[str, Any]:
        """`means` (head -> the task's main metric in cross-validation) and `chosen` (head -> folds)."""
        metric = metrics_of(sample.task.kind)[0]
        means = {
            head: float(np.nanmean(fold_values(metric, sample.y, of_split["cross_validation"])))
            for head, of_split in self.by_head.items()
        }
        return {"means": means, "chosen": dict(Counter(self.chosen).most_common())}


def inner_folds(sample: Sample, folds: Sequence[Fold], conf: HeadsConf) -> list[list[Fold]]:
    """Folds of each fold's training rows; none where there is nothing to choose.

    Raises:
        DataError: for a class with fewer clients in a fold's training rows than inner folds.
    """
    if len(conf.heads) == 1:
        return []
    return [
        make_folds(replace(sample, development=fold.train), conf.inner_folds, [fold.seed + fold.number])
        for fold in folds
    ]


def method_fits(
    sample: Sample,
    folds: Sequence[Fold],
    inside: Sequence[Sequence[Fold]],
    conf: HeadsConf,
    named: Mapping[int, str],
) -> MethodFits:
    """The fits of one method.

    Args:
        sample: the rows of a task.
        folds: the folds that are judged.
        inside: from `inner_folds`.
        conf: heads.
        named: seed of a fold -> name of the method's matrix.
    """
    plain = replace(sample, test=sample.test[:0])  # inner folds are asked about their own rows alone
    outer: dict[str, list[Fit]] = {}
    inner: dict[str, list[list[Fit]]] = {}
    for head in conf.heads:
        outer[head] = [fit for fold in folds for fit in fold_fits(sample, [fold], named[fold.seed], conf.of(head))]
        inner[head] = [
            fold_fits(plain, within, named[fold.seed], conf.of(head))
            for fold, within in zip(folds, inside, strict=bool(inside))
        ]
    return MethodFits(inside=inside, outer=outer, inner=inner)


def shown(sample: Sample, folds: Sequence[Fold], results: MethodResults) -> Shown:
    """What a method says with each of its heads, and with the one that its training rows choose in each fold."""
    said = {head: split_predictions(sample, folds, fitted) for head, fitted in results.outer.items()}
    gains = [one.gains for one in results.outer.get(TREES, ())]
    if not results.inside:
        [(head, only)] = said.items()
        return Shown(by_head=said, chosen=[head] * len(folds), best=only, gains=gains)
    choices = [
        _choice(sample, within, {head: of_head[place] for head, of_head in results.inner.items()})
        for place, within in enumerate(results.inside)
    ]
    stacked = {split: _mixed(said, split, [mean for _, mean in choices]) for split in said[TREES]}
    best = {split: _mixed(said, split, [share for share, _ in choices]) for split in said[TREES]}
    names = [TREES if share == 1.0 else LINEAR if share == 0.0 else STACK for share, _ in choices]
    return Shown(by_head={**said, STACK: stacked}, chosen=names, best=best, gains=gains)


def _choice(sample: Sample, within: Sequence[Fold], fitted: Mapping[str, Sequence[Fitted]]) -> tuple[float, float]:
    """The trees' share that is best on the inner folds: among all, and among true means of both heads."""
    metric = metrics_of(sample.task.kind)[0]
    rows = np.concatenate([fold.held_out for fold in within])
    p = {
        head: np.concatenate([to_probabilities(one.raw, sample.task) for one in of_head])
        for head, of_head in fitted.items()
    }
    sign = 1.0 if metric.higher_is_better else -1.0

    def worth(share: float) -> float:
        found = sign * value(metric, sample.y[rows], _mean(p[TREES], p[LINEAR], share))
        return -np.inf if np.isnan(found) else found

    stacked = max(_SHARES, key=worth)
    return max((stacked, 1.0, 0.0), key=worth), stacked


def _mixed(
    said: Mapping[str, Mapping[str, Sequence[Predictions]]], split: str, shares: Sequence[float]
) -> list[Predictions]:
    pairs = zip(said[TREES][split], said[LINEAR][split], shares, strict=False)  # without test rows there are none
    return [replace(trees, p=_mean(trees.p, linear.p, share)) for trees, linear, share in pairs]


def _mean(trees: Floats, linear: Floats, share: float) -> Floats:
    return share * trees + (1 - share) * linear
