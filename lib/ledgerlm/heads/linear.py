"""Penalised linear heads over standardised columns and their principal components.

Where columns are many and labelled rows few, trees that look at one column at a time cannot use hundreds of sparse
ones; a linear head on their main directions can. The strength of the penalty is chosen by folds of the training rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.heads.tasks import Floats, Task, counts_by_class, refuse_one_class

if TYPE_CHECKING:
    from scipy import sparse

Dense = NDArray[np.float32]

# Numbers that are dense at once: some hundred megabytes, whatever the matrix.
_NUMBERS_AT_ONCE = 40_000_000


class LinearConf(Conf):
    """Settings of the linear head: logistic regression, or ridge regression for a number."""

    clip: float = Field(5.0, gt=0, description="deviations at which a standardised column is cut")
    components: int = Field(100, ge=1, description="principal components that the head reads; as many as there are")
    strengths: tuple[float, ...] = Field(
        (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        min_length=1,
        description="inverse penalties to choose from, for rows whose squared length is 1 on average",
    )
    folds: int = Field(3, ge=2, description="folds of the training rows that choose the strength")


class Standard:
    """Columns less their mean, in deviations, as the training rows have them.

    Args:
        x: training rows x columns.
        clip: deviations at which a column is cut.
    """

    def __init__(self, x: sparse.csr_matrix, clip: float = np.inf) -> None:
        from sklearn.utils.sparsefuncs import mean_variance_axis

        self._mean, variance = mean_variance_axis(x.astype(np.float64), axis=0)
        self._inverse = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
        self._clip = clip

    def __call__(self, x: sparse.csr_matrix) -> Floats:
        """Rows x columns, dense."""
        return np.asarray(np.clip((x.toarray() - self._mean) * self._inverse, -self._clip, self._clip), np.float64)


class Reduced:
    """Columns standardised, cut, and turned into their main directions, as the training rows have them.

    Args:
        x: training rows x columns.
        conf: settings.
        seed: of the rows that are looked at where they are too many, and of the directions.
    """

    def __init__(self, x: sparse.csr_matrix, conf: LinearConf, seed: int) -> None:
        from sklearn.decomposition import PCA

        self._standard = Standard(x, conf.clip)
        most = max(2, _NUMBERS_AT_ONCE // max(1, x.shape[1]))
        drawn = np.random.default_rng(seed).permutation(x.shape[0])[:most]
        some = self._standardised(x[np.sort(drawn)])
        count = min(conf.components, some.shape[0] - 1, some.shape[1])
        self._pca = PCA(count, random_state=seed).fit(some)
        # To a squared length of 1 on average, so that a penalty means the same for few columns as for many.
        self._scale = max(float(np.sqrt(self._pca.explained_variance_.sum())), 1e-12)

    def __call__(self, x: sparse.csr_matrix) -> Dense:
        """Rows x components."""
        parts = [self._pca.transform(part) for part in self._parts(x)]
        return np.asarray(np.concatenate(parts) / self._scale if parts else np.zeros((0, 1)), np.float32)

    def _parts(self, x: sparse.csr_matrix) -> Iterator[Dense]:
        step = max(1, _NUMBERS_AT_ONCE // max(1, x.shape[1]))
        return (self._standardised(x[start : start + step]) for start in range(0, x.shape[0], step))

    def _standardised(self, x: sparse.csr_matrix) -> Dense:
        return self._standard(x).astype(np.float32)


def linear_raw(
    x: sparse.csr_matrix, y: Floats, ask: sparse.csr_matrix, task: Task, conf: LinearConf, *, seed: int
) -> Floats:
    """Trains a linear head and asks it.

    Args:
        x: training rows x columns.
        y: from `Task.encode`.
        ask: rows x columns to score.
        task: what is predicted.
        conf: settings.
        seed: of the folds that choose the strength.

    Returns:
        Raw scores as those of the trees: log-odds, logits of each class, or values; rows x outputs.

    Raises:
        DataError: all rows are of one class.
    """
    if task.kind != "regression":
        refuse_one_class(task, counts_by_class(task, y))
    reduced = Reduced(x, conf, seed)
    known, asked = reduced(x), reduced(ask)
    head = _chosen(known, y, task, conf, seed)
    if not len(asked):
        return np.zeros((0, 1 if task.kind != "multiclass" else task.outputs))
    if task.kind == "regression":
        return np.asarray(head.predict(asked), np.float64)[:, None]
    raw = np.asarray(head.decision_function(asked), np.float64)
    return raw[:, None] if task.kind == "binary" else _of_all_classes(raw, head.classes_, task)


def penalised(task: Task, strength: float) -> Any:
    """A head of one strength, not fitted yet.

    Args:
        task: what is predicted.
        strength: inverse of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    return Ridge(alpha=1 / strength) if task.kind == "regression" else LogisticRegression(C=strength, max_iter=2000)


def _chosen(known: Dense, y: Floats, task: Task, conf: LinearConf, seed: int) -> Any:
    """The head with the strength that the folds of the training rows choose, fitted on all of them."""
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

    middle = penalised(task, conf.strengths[len(conf.strengths) // 2])
    if task.kind == "regression":
        folds: Any = KFold(conf.folds, shuffle=True, random_state=seed)
        ridge = GridSearchCV(
            middle, {"alpha": [1 / one for one in conf.strengths]}, cv=folds, scoring="neg_mean_squared_error"
        )
        return ridge.fit(known, y).best_estimator_
    fewest = int(np.bincount(y.astype(int), minlength=task.outputs)[np.unique(y.astype(int))].min())
    if fewest < conf.folds:  # a class that not every fold has cannot choose
        return middle.fit(known, y)
    folds = StratifiedKFold(conf.folds, shuffle=True, random_state=seed)
    logistic = GridSearchCV(middle, {"C": list(conf.strengths)}, cv=folds, scoring="neg_log_loss")
    return logistic.fit(known, y).best_estimator_


def _of_all_classes(raw: Floats, classes: Floats, task: Task) -> Floats:
    """Logits of every class of the task; one that no training row has gets a very small one."""
    if raw.ndim == 1:  # two of the classes were there
        raw = np.stack([-raw / 2, raw / 2], axis=1)
    found = np.full((len(raw), task.outputs), raw.min(initial=0.0) - 20.0)
    found[:, classes.astype(int)] = raw
    return found
