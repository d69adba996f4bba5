"""The leaderboard: each method's figures with deviation, interval, and what sets it apart from the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ledgerlm.evaluation.intervals import Predictions, bootstrap, corrected_t_test, fold_values, interval
from ledgerlm.heads.metrics import Metric, metrics_of
from ledgerlm.heads.samples import Sample
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.schemas import LEADERBOARD

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Method -> split -> predictions of each fold.
Judged = Mapping[str, Mapping[str, Sequence[Predictions]]]
MAJORITY = "majority"
BAYES, REACHABLE = "bayes", "reachable"
BOUNDS = (REACHABLE, BAYES)
"""Rows that are no method: what the best that sees the events says, and what the hidden traits say; nearest first."""
CHANCE = 0.5  # ROC-AUC, of one class against the rest too, of who says the same of everybody
MEAN, MEDIAN = "constant_mean", "constant_median"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the `leaderboard` table; see its schema."""

    task: str
    method: str
    metric: str
    split: str
    mean: float
    std: float
    folds: int
    seeds: int
    low: float | None
    high: float | None
    baseline: str | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None

    def row(self) -> dict[str, Any]:
        """The entry by column names."""
        return asdict(self)


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


def leaderboard_rows(spark: SparkSession, entries: Sequence[Entry], stage: str) -> DataFrame:
    """The entries of a stage as rows of the `leaderboard` table."""
    from pyspark.sql.types import StructType

    schema = StructType(list(LEADERBOARD.columns))
    rows = [{"stage": stage, **entry.row()} for entry in entries]
    return spark.createDataFrame([tuple(row[name] for name in schema.fieldNames()) for row in rows], schema)


def published_board(
    spark: SparkSession,
    entries: Sequence[Entry],
    name: str,
    *,
    rows_in: int,
    baseline: str,
    facts: Mapping[str, Any],
    report: Sequence[Mapping[str, Any]] = (),
) -> Made:
    """The rows of a stage as a slice of the `leaderboard` table, and as facts for the report.

    Args:
        spark: session.
        entries: rows.
        name: of the stage.
        rows_in: labelled rows that were judged.
        baseline: method that the others were set against.
        facts: what else is told.
        report: sections of the report.
    """
    board = Rows(frame=leaderboard_rows(spark, entries, name), slice={"stage": (name,)})
    return Made(
        rows_in=rows_in,
        rows_out=len(entries),
        tables={"leaderboard": board},
        facts={"baseline": baseline, "leaderboard": [entry.row() for entry in entries], **facts},
        report=report,
    )


def leaderboard(
    sample: Sample, judged: Judged, *, baseline: str, count: int, seed: int, done: Callable[[], None] = lambda: None
) -> list[Entry]:
    """Figures of all methods on one task.

    `mean` and `std` are over folds and seeds; `low` to `high` is the 95 % bootstrap interval of that mean over
    clients; `delta` is the mean difference to the baseline on the same folds, with the interval of the paired
    bootstrap (both methods under the same resampled clients). Figures that no fold defines are left out.

    Args:
        sample: the rows that were predicted.
        judged: predictions of each method and split.
        baseline: method that the others are set against, if it is among them.
        count: bootstrap resamples.
        seed: of the resamples.
        done: called after each figure, of which there are `count_figures`.
    """
    entries = []
    for metric, split, methods in _wanted(sample, judged):
        figures = {}
        for name, predictions in methods.items():
            figures[name] = _figures(metric, sample, predictions, count, seed)
            done()
        entries += [
            _entry((sample.task.name, name, metric.name, split), figures, baseline)
            for name in methods
            if not np.isnan(figures[name].values).all()
        ]
    return entries


def way_gone(entries: Sequence[Entry], task: Task) -> dict[str, Any]:
    """How far each method is on the way from knowing nothing of a client to the nearest bound, by the main metric.

    Returns:
        `bound` (its name), `metric` and `shares` (method -> share); empty without a bound.
    """
    main = metrics_of(task.kind)[0]
    means = {
        one.method: one.mean
        for one in entries
        if (one.task, one.metric, one.split) == (task.name, main.name, "cross_validation")
    }
    bound = next((name for name in BOUNDS if name in means), None)
    if bound is None or means[bound] <= CHANCE:
        return {}
    shares = {name: (mean - CHANCE) / (means[bound] - CHANCE) for name, mean in means.items() if name not in BOUNDS}
    return {"bound": bound, "metric": main.name, "shares": shares}


def count_figures(sample: Sample, judged: Judged) -> int:
    """Figures that `leaderboard` resamples."""
    return sum(len(methods) for _, _, methods in _wanted(sample, judged))


def _wanted(sample: Sample, judged: Judged) -> Iterator[tuple[Metric, str, Mapping[str, Sequence[Predictions]]]]:
    """Metric, split, and the methods that are judged by it there."""
    splits = dict.fromkeys(split for of_split in judged.values() for split in of_split)
    for metric in metrics_of(sample.task.kind):
        for split in splits:
            yield (
                metric,
                split,
                {
                    name: of_split[split]
                    for name, of_split in judged.items()
                    if of_split.get(split) and (name != MAJORITY or metric.name == "accuracy")
                },
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Figures:
    """One metric of one method: a value for each fold and seed, and a mean for each bootstrap resample."""

    values: Floats
    drawn: Floats
    folds: int
    seeds: int


def _figures(metric: Metric, sample: Sample, predictions: Sequence[Predictions], count: int, seed: int) -> _Figures:
    return _Figures(
        values=fold_values(metric, sample.y, predictions),
        drawn=bootstrap(metric, sample.y, sample.clients, predictions, count=count, seed=seed),
        folds=len({one.fold for one in predictions}),
        seeds=len({one.seed for one in predictions}),
    )


def _entry(key: tuple[str, str, str, str], figures: Mapping[str, _Figures], baseline: str) -> Entry:
    task, method, metric, split = key
    own, base = figures[method], figures.get(baseline)
    mean = float(np.nanmean(own.values))
    low, high = interval(own.drawn, mean)
    delta, delta_low, delta_high = None, None, None
    if base is not None and method != baseline:
        delta = float(np.nanmean(own.values - base.values))
        delta_low, delta_high = interval(own.drawn - base.drawn, delta)
    return Entry(
        task=task,
        method=method,
        metric=metric,
        split=split,
        mean=mean,
        std=float(np.nanstd(own.values)),
        folds=own.folds,
        seeds=own.seeds,
        low=_known(low),
        high=_known(high),
        baseline=None if delta is None else baseline,
        delta=_known(delta),
        delta_low=_known(delta_low),
        delta_high=_known(delta_high),
    )


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def paired_tests(sample: Sample, judged: Judged, *, baseline: str) -> list[dict[str, Any]]:
    """Corrected resampled t-test of each method against the baseline, on the task's main metric.

    Returns:
        task, method, metric, mean, low, high, p_value.
    """
    metric = metrics_of(sample.task.kind)[0]
    split = "cross_validation"
    if baseline not in judged:
        return []
    base = judged[baseline][split]
    held_out = float(np.mean([len(one.rows) for one in base])) / len(sample.development)
    found = []
    for name, of_split in judged.items():
        differences = fold_values(metric, sample.y, of_split[split]) - fold_values(metric, sample.y, base)
        differences = differences[~np.isnan(differences)]
        if name in (baseline, MAJORITY) or len(differences) < 2:
            continue
        test = asdict(corrected_t_test(differences, held_out))
        found.append({"task": sample.task.name, "method": name, "metric": metric.name, **test})
    return found
