"""The low-data study (LLM4ES, low-data gain): how good a representation is when few clients have a label.

Vectors are made without labels, so only the head starves. Each draw takes a few labelled clients of a fold's training
part, fits a strongly regularised linear head on their vectors, and asks it about the fold's held-out clients; all
methods see the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ledgerlm.evaluation.intervals import Predictions, fold_values
from ledgerlm.evaluation.protocol import Fold, Sample
from ledgerlm.heads.metrics import metrics_of
from ledgerlm.heads.tasks import Floats, Ints

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Labelled rows that a head is fitted on, and the fold whose held-out rows it is asked about."""

    labelled: int
    fold: Fold
    rows: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class LowDataEntry:
    """A row of the `low_data` table; see its schema."""

    task: str
    method: str
    metric: str
    labelled: int
    mean: float
    std: float
    draws: int
    baseline: str | None
    delta: float | None
    delta_std: float | None

    def row(self) -> dict[str, Any]:
        """The entry by column names."""
        return asdict(self)


def draw(sample: Sample, folds: Sequence[Fold], counts: Sequence[int], repeats: int) -> list[Draw]:
    """Draws labelled clients at random, at least one of each class; more than there are becomes all.

    Args:
        sample: the labelled rows of a task.
        folds: each gives `repeats` draws of every size.
        counts: labelled rows of a draw.
        repeats: draws of a size and fold.
    """
    made = []
    for fold in folds:
        for repeat in range(repeats):
            order = np.random.default_rng((fold.seed, fold.number, repeat)).permutation(fold.train)
            if sample.task.kind != "regression":
                _, first = np.unique(sample.y[order], return_index=True)
                order = np.concatenate((order[np.sort(first)], np.delete(order, first)))
            least = max(2, sample.task.outputs) if sample.task.kind != "regression" else 2
            made += [Draw(labelled=count, fold=fold, rows=order[: max(count, least)]) for count in counts]
    return made


def predictions(sample: Sample, x: sparse.csr_matrix, draws: Sequence[Draw], strength: float) -> Iterator[Predictions]:
    """What the head of each draw says about its held-out rows.

    Args:
        sample: the labelled rows.
        x: vectors of all rows of the matrix.
        draws: from `draw`, those of a fold one after the other.
        strength: of the L2 penalty, a feature.
    """
    fold, scale, held = None, None, np.zeros((0, 0))
    for one in draws:
        if one.fold is not fold:
            fold = one.fold
            scale = _scaling(x[sample.rows[fold.train]])
            held = _dense(x[sample.rows[fold.held_out]], *scale)
        assert scale is not None and fold is not None
        known = _dense(x[sample.rows[one.rows]], *scale)
        p = _said(sample, known, sample.y[one.rows], held, strength)
        yield Predictions(seed=fold.seed, fold=fold.number, rows=fold.held_out, p=p)


def _said(sample: Sample, known: Floats, y: Floats, held: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression, Ridge

    penalty = strength * known.shape[1]
    if sample.task.kind == "regression":
        return np.asarray(Ridge(alpha=penalty).fit(known, y).predict(held), np.float64)[:, None]
    head = LogisticRegression(C=1 / penalty, max_iter=500).fit(known, y)
    return np.asarray(head.predict_proba(held), np.float64)


def _scaling(x: sparse.csr_matrix) -> tuple[Floats, Floats]:
    """Mean and inverse deviation of each feature over a fold's training clients, which takes no label."""
    from sklearn.utils.sparsefuncs import mean_variance_axis

    mean, variance = mean_variance_axis(x, axis=0)
    return mean, np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)


def _dense(x: sparse.csr_matrix, mean: Floats, inverse: Floats) -> Floats:
    return np.asarray((x.toarray() - mean) * inverse, np.float64)


def entries(
    sample: Sample, draws: Sequence[Draw], said: Mapping[str, Sequence[Predictions]], baseline: str
) -> list[LowDataEntry]:
    """Mean and deviation over the draws of a size, and of the paired difference to the baseline, main metric.

    Args:
        sample: the labelled rows.
        draws: from `draw`.
        said: method -> predictions of each draw.
        baseline: method that the others are set against, if it is among them.
    """
    metric = metrics_of(sample.task.kind)[0]
    values = {name: fold_values(metric, sample.y, of_draws) for name, of_draws in said.items()}
    sizes = np.array([one.labelled for one in draws])
    made = []
    for name, own in values.items():
        for size in np.unique(sizes):
            chosen = own[sizes == size]
            apart = chosen - values[baseline][sizes == size] if baseline in values and name != baseline else None
            made.append(
                LowDataEntry(
                    task=sample.task.name,
                    method=name,
                    metric=metric.name,
                    labelled=int(size),
                    mean=float(np.nanmean(chosen)),
                    std=float(np.nanstd(chosen)),
                    draws=int((~np.isnan(chosen)).sum()),
                    baseline=None if apart is None else baseline,
                    delta=None if apart is None else float(np.nanmean(apart)),
                    delta_std=None if apart is None else float(np.nanstd(apart)),
                )
            )
    return made


def report_section(found: Sequence[LowDataEntry]) -> dict[str, Any]:
    """Curves and a table for the report."""
    tasks = list(dict.fromkeys(one.task for one in found))
    methods = list(dict.fromkeys(one.method for one in found))
    sizes = sorted({one.labelled for one in found})
    figures, tables = [], []
    for task in tasks:
        own = {(one.method, one.labelled): one for one in found if one.task == task}
        metric = next(iter(own.values())).metric
        series = {method: [sizes, [own[method, size].mean for size in sizes]] for method in methods}
        figures.append(
            {"kind": "lines", "series": series, "x": "labelled clients", "y": metric, "caption": task}
            | {"logarithmic": True}
        )
        cells = [
            [method, *(f"{own[method, size].mean:.3f} ± {own[method, size].std:.3f}" for size in sizes)]
            for method in methods
        ]
        tables.append(
            {"kind": "table", "heading": task, "columns": ["method", *map(str, sizes)], "rows": cells, "note": metric}
        )
    note = (
        "A linear head on few labelled clients; mean and deviation over draws, the same draws for all methods. A draw "
        "has at least one client of each class."
    )
    return {"title": "Few labels", "note": note, "blocks": [{"kind": "figures", "figures": figures}, *tables]}
