"""pytorch-lifestream's protocol: a fixed test share, stratified folds of the other clients, one model for each fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep
from ledgerlm.evaluation.intervals import Predictions
from ledgerlm.heads.boosting import to_probabilities
from ledgerlm.heads.parallel import Fitted
from ledgerlm.heads.samples import Fold, Sample, labelled_rows, read_rows
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.heads.vectors import KEY, Matrix, Source, method_matrices
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_SHARES = 10_000


class ProtocolConf(Conf):
    """What methods are judged, and on which folds."""

    representations: dict[str, tuple[Source, ...]] = Field(
        min_length=1, description="method name -> vectors that it reads, side by side"
    )
    baseline: str = Field("agg", description="method that the others are set against")
    tasks: tuple[str, ...] | None = Field(None, description="tasks that are judged; default all in labels")
    folds: int = Field(5, ge=2, description="stratified folds of the clients that are not in the test split")
    seeds: tuple[int, ...] | None = Field(
        None, description="seeds of folds, and of trees or draws; default the pipeline's seed"
    )
    stratify: tuple[str, ...] = Field(
        (), description="tasks whose labels together stratify the folds; default each own"
    )
    max_rows: int = Field(100_000, ge=100, description="labels read to the driver; whole clients are left out above it")
    max_values: int | None = Field(
        None,
        ge=1,
        description="numbers of their vectors read to the driver; whole clients are left out above it; default what "
        "the engine profile lets it take (spark.driver.maxResultSize, spark.driver.memory)",
    )


@dataclass(frozen=True, kw_only=True)
class Material:
    """What methods are judged on.

    Attributes:
        labels: labelled rows with their split, from `read_rows`.
        matrices: vectors of each method over the same rows.
        keys: client_id, as_of of the labelled rows, distinct.
    """

    labels: pd.DataFrame
    matrices: Mapping[str, Matrix]
    keys: DataFrame


def read_material(
    labels: DataFrame,
    clients: DataFrame,
    tables: Mapping[str, DataFrame],
    tasks: Sequence[Task],
    conf: ProtocolConf,
    *,
    facts: Callable[[str], Mapping[str, Any]],
    keep: Keep,
    progress: Progress | None = None,
    representations: Mapping[str, Sequence[Source]] | None = None,
    within: str | None = None,
    union: bool = False,
) -> Material:
    """Reads a bounded sample of labelled rows with the vectors of all methods.

    Args:
        labels: the `labels` table.
        clients: the `clients` table, for the split.
        tables: `features` and `embeddings`, as far as the methods read them.
        tasks: those that are judged.
        conf: methods, stratification and bounds.
        facts: gives the facts of a finished stage by its name, or by its job's.
        keep: computes a frame once.
        progress: what the user sees.
        representations: left out, those of `conf`.
        within: client attribute whose values are groups.
        union: keep rows that only some sources know.
    """
    from pyspark.sql import functions as F

    named = sorted({*(task.name for task in tasks), *conf.stratify})
    rows = keep(labelled_rows(bounded(labels.where(F.col("task").isin(named)), conf.max_rows), clients, named, within))
    keys = rows.select(*KEY).distinct()
    chosen = conf.representations if representations is None else representations
    matrices = method_matrices(
        chosen, tables, facts, keys, union=union, most=conf.max_values, keep=keep, progress=progress
    )
    return Material(labels=read_rows(rows), matrices=matrices, keys=keys)


def bounded(rows: DataFrame, max_rows: int) -> DataFrame:
    """At most about `max_rows` rows: whole clients are left out by the hash of their id, the same ones every time."""
    from pyspark.sql import functions as F

    if (total := rows.count()) <= max_rows:
        return rows
    share = max(1, int(max_rows / total * _SHARES))
    return rows.where(F.pmod(F.xxhash64("client_id"), F.lit(_SHARES)) < share)


def split_predictions(
    sample: Sample, folds: Sequence[Fold], fitted: Sequence[Fitted]
) -> Mapping[str, list[Predictions]]:
    """Predictions of each fold's model on its held-out rows (`cross_validation`) and on the test rows (`test`)."""
    found: dict[str, list[Predictions]] = {"cross_validation": [], "test": []}
    for fold, result in zip(folds, fitted, strict=True):
        p = to_probabilities(result.raw, sample.task)
        cut = len(fold.held_out)
        for split, rows, part in (
            ("cross_validation", fold.held_out, p[:cut]),
            ("test", sample.test, p[cut:]),
        ):
            if len(rows):
                found[split].append(Predictions(seed=fold.seed, fold=fold.number, rows=rows, p=part))
    return found


def group_predictions(sample: Sample, predictions: Sequence[Predictions]) -> Mapping[str, list[Predictions]]:
    """The same predictions of the rows of each group alone, by the name of the split on the leaderboard.

    Two samples pooled into one can be told apart by a method that knows nothing of what is asked; within each it cannot
    gain by that.
    """
    found: dict[str, list[Predictions]] = {}
    if sample.groups is None:
        return found
    for group in sorted(set(sample.groups)):
        held = [(one, sample.groups[one.rows] == group) for one in predictions]
        found[f"cross_validation within {group}"] = [
            replace(one, rows=one.rows[own], p=one.p[own]) for one, own in held if own.any()
        ]
    return found


def constant_predictions(sample: Sample, folds: Sequence[Fold], p: Floats) -> Mapping[str, list[Predictions]]:
    """Predictions of something that is not trained (the simulator's own probabilities), on the same folds.

    Args:
        sample: the rows.
        folds: the folds.
        p: rows of the sample x classes.
    """
    held = [Predictions(seed=f.seed, fold=f.number, rows=f.held_out, p=p[f.held_out]) for f in folds]
    test = [Predictions(seed=f.seed, fold=f.number, rows=sample.test, p=p[sample.test]) for f in folds]
    return {"cross_validation": held, "test": test if len(sample.test) else []}


def read_bound(bound: DataFrame, keys: DataFrame) -> pd.DataFrame:
    """Reads what a bound says of labelled clients.

    Args:
        bound: the `bayes` table, the simulator's own probabilities, or `reachable`.
        keys: client_id, as_of of the labelled clients.

    Returns:
        client_id, as_of, task, probabilities.
    """
    found = bound.join(keys.distinct(), on=["client_id", "as_of"], how="inner")
    frame: pd.DataFrame = found.select("client_id", "as_of", "task", "probabilities").toArrow().to_pandas()
    frame["as_of"] = frame["as_of"].dt.tz_localize(None).astype("datetime64[us]")
    return frame


def bound_probabilities(sample: Sample, matrix: Matrix, bound: pd.DataFrame) -> Floats | None:
    """The probabilities of a bound for each row of a sample; None when a row lacks them.

    Returns:
        Rows x classes; one number for two classes is read as the probability of the second one.
    """
    import pandas as pd

    own = bound[bound["task"] == sample.task.name]
    keys = pd.DataFrame({"client_id": matrix.client_ids[sample.rows], "as_of": matrix.as_of[sample.rows]})
    found = keys.merge(own, on=["client_id", "as_of"], how="left")["probabilities"]
    if own.empty or found.isna().any():
        return None
    p = np.stack(found.tolist()).astype(np.float64)
    return np.concatenate([1 - p, p], axis=1) if sample.task.kind == "binary" and p.shape[1] == 1 else p


def majority_predictions(sample: Sample, folds: Sequence[Fold]) -> Mapping[str, list[Predictions]]:
    """What knows only how frequent each class is among a fold's training rows."""
    found: dict[str, list[Predictions]] = {"cross_validation": [], "test": []}
    for fold in folds:
        counts = np.bincount(sample.y[fold.train].astype(int), minlength=sample.task.outputs)
        for split, rows in (("cross_validation", fold.held_out), ("test", sample.test)):
            if len(rows):
                p = np.tile(counts / counts.sum(), (len(rows), 1))
                found[split].append(Predictions(seed=fold.seed, fold=fold.number, rows=rows, p=p))
    return found


def central_predictions(
    sample: Sample, folds: Sequence[Fold], of: Callable[[Floats], float]
) -> Mapping[str, list[Predictions]]:
    """What says one number to everybody: the mean, or the median, of a fold's training rows."""
    found: dict[str, list[Predictions]] = {"cross_validation": [], "test": []}
    for fold in folds:
        for split, rows in (("cross_validation", fold.held_out), ("test", sample.test)):
            if len(rows):
                p = np.full((len(rows), 1), of(sample.y[fold.train]))
                found[split].append(Predictions(seed=fold.seed, fold=fold.number, rows=rows, p=p))
    return found
