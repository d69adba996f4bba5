"""Judges finished heads by their scores: the same labelled rows for all methods, on named slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ledgerlm.errors import DataError
from ledgerlm.evaluation.intervals import interval, resamples
from ledgerlm.evaluation.leaderboard import BOUNDS, Entry
from ledgerlm.evaluation.protocol import bounded
from ledgerlm.events.condition import Condition
from ledgerlm.heads.metrics import COMPARED, Metric, by_class, metrics_of, value
from ledgerlm.heads.tasks import Floats, Ints, Kind, Task

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_KEY = ("client_id", "as_of", "task")
_PER_CLASS = ("precision", "recall", "f1")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The rows of one task and slice that every method has scored.

    Attributes:
        task: what is predicted.
        slice: name of the slice.
        y: class index of each row.
        clients: number of each row's client, from 0.
        p: method -> rows x classes; with `bayes` and `reachable` where these bounds are known of all rows.
        left_out: rows of the slice that some method has not scored.
    """

    task: Task
    slice: str
    y: Floats
    clients: Ints
    p: Mapping[str, Floats]
    left_out: int

    @property
    def shares(self) -> Floats:
        """Share of the rows of each class."""
        return np.bincount(self.y.astype(int), minlength=self.task.outputs) / len(self.y)

    @property
    def minority(self) -> list[int]:
        """Classes with fewer rows than an even share."""
        return [k for k, share in enumerate(self.shares) if share < 1 / self.task.outputs]


def metrics_compared(kind: Kind) -> list[Metric]:
    """All metrics of a comparison."""
    return [*metrics_of(kind), *(metric for metric in COMPARED if kind in metric.kinds)]


def comparison_rows(
    labels: DataFrame,
    clients: DataFrame,
    scores: DataFrame,
    bounds: Mapping[str, DataFrame],
    *,
    heads: Mapping[str, Sequence[str]],
    slices: Mapping[str, Condition],
    max_rows: int,
) -> DataFrame:
    """Labelled rows of the slices beside what each method said of them.

    Args:
        labels: the `labels` table, of the tasks wanted.
        clients: the `clients` table.
        scores: the `scores` table.
        bounds: the tables `bayes` and `reachable`, as far as they are there.
        heads: method -> ids of its heads.
        slices: name -> SQL condition over the columns of clients and labels.
        max_rows: bound on the rows, about; whole clients are left out above it.

    Returns:
        client_id, as_of, task, label, `in` array<boolean> (one for each slice), then for each method and bound,
        numbered in order, `p0`, `p1` ... array<double>, null where it has no score.

    Raises:
        ConfigError: for a condition that Spark does not understand.
    """
    from pyspark.sql import functions as F

    known = labels.drop("run_id").join(clients.drop("run_id"), on="client_id", how="inner")
    for place, (name, condition) in enumerate(slices.items()):
        known = condition.marked(known, f"_in{place}", f"slices.{name}")
    inside = [F.coalesce(f"_in{place}", F.lit(False)) for place in range(len(slices))]
    marked = known.select(*_KEY, "label", F.array(*inside).alias("in")).where(F.exists("in", lambda one: one))
    rows = bounded(marked, max_rows)
    said = [scores.where(F.col("head_id").isin(list(ids))) for ids in heads.values()]
    for place, frame in enumerate([*said, *bounds.values()]):
        told = frame.select(*_KEY, F.col("probabilities").cast("array<double>").alias(f"p{place}"))
        rows = rows.join(told, on=list(_KEY), how="left")
    return rows


def judged_slices(
    frame: pd.DataFrame,
    tasks: Sequence[Task],
    methods: Sequence[str],
    slices: Sequence[str],
    bounds: Sequence[str] = (),
) -> Iterator[Compared]:
    """Splits the rows by task and slice, and keeps those that every method has scored.

    Args:
        frame: `comparison_rows`, read to this machine.
        tasks: tasks wanted.
        methods: in the order of the columns `p0`, `p1` ...
        slices: names, in the order of `in`.
        bounds: names of the columns that follow those of the methods.

    Raises:
        DataError: when a method scored a row twice or with another number of classes, or no row is left.
    """
    if frame.duplicated(list(_KEY)).any():
        raise DataError(
            "a method has several scores for one client, task and as_of; name one of its heads with STAGE:NAME"
        )
    placed = frame.sort_values(list(_KEY), ignore_index=True)
    inside = np.array(placed["in"].tolist(), dtype=bool).reshape(len(placed), len(slices))
    for task in tasks:
        for place, name in enumerate(slices):
            own = placed[inside[:, place] & (placed["task"] == task.name)]
            if len(own):
                yield _compared(task, name, own, methods, bounds)


def _compared(task: Task, name: str, own: pd.DataFrame, methods: Sequence[str], bounds: Sequence[str]) -> Compared:
    import pandas as pd

    columns = [f"p{place}" for place in range(len(methods))]
    full = own[own[columns].notna().all(axis=1)]
    if full.empty:
        missing = ", ".join(method for method, column in zip(methods, columns, strict=True) if own[column].isna().all())
        raise DataError(
            f"task {task.name}, slice {name}: none of {len(own)} labelled rows was scored by every method"
            + (f"; no scores at all from {missing}" if missing else "")
        )
    named = dict(zip(methods, columns, strict=True))
    known = {bound: f"p{place}" for place, bound in enumerate(bounds, len(methods))}
    named |= {bound: column for bound, column in known.items() if full[column].notna().all()}
    return Compared(
        task=task,
        slice=name,
        y=task.encode(full["label"].to_numpy(np.float64)),
        clients=pd.factorize(full["client_id"])[0].astype(np.int64),
        p={method: _probabilities(task, method, full[column]) for method, column in named.items()},
        left_out=len(own) - len(full),
    )


def _probabilities(task: Task, method: str, column: pd.Series[Any]) -> Floats:
    sizes = column.map(len).unique()
    if list(sizes) != [task.outputs]:
        raise DataError(
            f"task {task.name}: {method} gave {', '.join(map(str, sizes))} probabilities a row, but the labels have "
            f"{task.outputs} classes; train it on the same labels"
        )
    p = np.stack(column.tolist()).astype(np.float64)
    total = p.sum(axis=1, keepdims=True)
    if strange := int((~(np.isfinite(total) & (total > 0))).sum()):
        raise DataError(
            f"task {task.name}: {method} gave {strange:,} rows whose probabilities are no numbers or add up to 0; "
            "look at what scored them"
        )
    return np.asarray(p / total)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Every figure of one method: estimate and its value in each bootstrap resample, by name."""

    estimates: Mapping[str, float]
    drawn: Mapping[str, Floats]


def figures_of(compared: Compared, p: Floats, *, count: int, seed: int) -> Figures:
    """All metrics and the per-class figures of one method, with their resamples.

    Returns:
        Figures named as the metrics, `f1_minority` (mean F1 of the minority classes), and `precision: CLASS`,
        `recall: CLASS`, `f1: CLASS`.
    """
    once = _measure(compared, p, np.ones((1, len(compared.y))))
    parts = [_measure(compared, p, weights) for weights in resamples(compared.clients, count, seed)]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in once}
    return Figures(estimates={name: float(found[0]) for name, found in once.items()}, drawn=drawn)


def _measure(compared: Compared, p: Floats, weights: Floats) -> dict[str, Floats]:
    found = {metric.name: metric.measure(compared.y, p, weights) for metric in metrics_compared(compared.task.kind)}
    classes = by_class(compared.y, p, weights)
    if compared.minority:
        found["f1_minority"] = classes.f1[:, compared.minority].mean(axis=1)
    for part in _PER_CLASS:
        for k, name in enumerate(compared.task.class_names):
            found[f"{part}: {name}"] = getattr(classes, part)[:, k]
    return found


def entries_of(compared: Compared, figures: Mapping[str, Figures], *, split: str, baseline: str) -> list[Entry]:
    """Leaderboard rows: every figure with its interval, and the paired difference to the baseline.

    Both methods are seen under the same resampled clients, so what they share leaves the difference.
    """
    return [
        _entry(compared, method, name, figures, split=split, baseline=baseline)
        for method, own in figures.items()
        for name in own.estimates
        if not np.isnan(own.estimates[name])
    ]


def _entry(
    compared: Compared, method: str, name: str, figures: Mapping[str, Figures], *, split: str, baseline: str
) -> Entry:
    own, base = figures[method], figures.get(baseline)
    estimate = own.estimates[name]
    low, high = interval(own.drawn[name], estimate)
    delta: float | None = None
    reach: tuple[float | None, float | None] = (None, None)
    if base is not None and method != baseline and not np.isnan(base.estimates[name]):
        delta = estimate - base.estimates[name]
        reach = interval(own.drawn[name] - base.drawn[name], delta)
    return Entry(
        task=compared.task.name,
        method=method,
        metric=name,
        split=split,
        mean=estimate,
        std=float(np.nanstd(own.drawn[name])) if not np.isnan(own.drawn[name]).all() else 0.0,
        folds=1,
        seeds=1,
        low=_known(low),
        high=_known(high),
        baseline=None if delta is None else baseline,
        delta=delta,
        delta_low=_known(reach[0]),
        delta_high=_known(reach[1]),
    )


def _known(number: float | None) -> float | None:
    return None if number is None or np.isnan(number) else float(number)


def bound_of(compared: Compared) -> str | None:
    """The bound that methods are measured by: what can be reached from the events where it is known, else `bayes`."""
    return next((name for name in BOUNDS if name in compared.p), None)


def reached(compared: Compared) -> dict[str, dict[str, float]]:
    """Share of the reachable: gain over knowing only how frequent the classes are, against the gain of `bound_of`.

    Returns:
        Method -> metric -> share (1 is all that anyone can reach); empty without a bound. Metrics that the bound itself
        does not improve are left out.
    """
    bound = bound_of(compared)
    if bound is None:
        return {}
    constant = np.tile(compared.shares, (len(compared.y), 1))
    found: dict[str, dict[str, float]] = {method: {} for method in compared.p if method not in BOUNDS}
    for metric in metrics_compared(compared.task.kind):
        start, best = value(metric, compared.y, constant), value(metric, compared.y, compared.p[bound])
        gain = best - start
        if metric.name == "calibration_error" or np.isnan(gain) or gain * (1 if metric.higher_is_better else -1) <= 0:
            continue
        for method, shares in found.items():
            shares[metric.name] = (value(metric, compared.y, compared.p[method]) - start) / gain
    return found
