"""Labelled rows to learn from: samples of a task in a fixed order, stratified folds, and the fits that they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ledgerlm.config import nearest
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.boosting import LightGBMConf
from ledgerlm.heads.linear import LinearConf
from ledgerlm.heads.parallel import Fit
from ledgerlm.heads.tasks import Floats, Ints, Task
from ledgerlm.heads.vectors import Matrix

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The labelled rows of one task that all methods are judged on.

    Attributes:
        task: what is predicted.
        rows: place of each row in the matrix.
        y: class index or value of each row.
        clients: number of each row's client in the protocol's order, from 0.
        development: places (in this sample) of rows of training clients.
        test: places (in this sample) of rows of test clients.
        strata: stratification key of each row.
        groups: group of each row that figures are also given within; None for none.
    """

    task: Task
    rows: Ints
    y: Floats
    clients: Ints
    development: Ints
    test: Ints
    strata: Ints
    groups: NDArray[np.object_] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One fold: places in the sample of the rows to train on and of those held out."""

    seed: int
    number: int
    train: Ints
    held_out: Ints


def labelled_rows(labels: DataFrame, clients: DataFrame, tasks: Iterable[str], within: str | None = None) -> DataFrame:
    """The labelled rows of some tasks, with the split of their clients.

    Args:
        labels: the `labels` table.
        clients: the `clients` table, for the split.
        tasks: names of the tasks that are judged, and of those whose labels stratify.
        within: client attribute whose values are groups.

    Returns:
        client_id, as_of, task, label, split, and `group` where asked for; one row a label.

    Raises:
        ConfigError: clients lack the attribute.
    """
    from pyspark.sql import functions as F

    wanted = labels.where(F.col("task").isin(*set(tasks)))
    if within is not None and within not in clients.columns:
        raise ConfigError(f"within: clients have no attribute '{within}': {nearest(within, clients.columns)}")
    group = [] if within is None else [F.coalesce(F.col(within).cast("string"), F.lit("unknown")).alias("group")]
    split = clients.select("client_id", "split", *group)
    return wanted.select("client_id", "as_of", "task", "label").join(split, on="client_id", how="inner")


def read_rows(rows: DataFrame) -> pd.DataFrame:
    """Reads `labelled_rows` to this machine, with as_of as `Matrix` has it.

    Raises:
        DataError: when there are none.
    """
    frame: pd.DataFrame = rows.toArrow().to_pandas()
    if frame.empty:
        raise DataError("no labels to learn from: no client of `clients` has a label of the tasks asked for")
    frame["as_of"] = frame["as_of"].dt.tz_localize(None).astype("datetime64[us]")
    return frame


def ordered(client_ids: Sequence[str]) -> list[str]:
    """Client ids in the protocol's order: as whole numbers when all are, else as text."""
    return sorted(client_ids, key=int) if all(one.lstrip("-").isdigit() for one in client_ids) else sorted(client_ids)


def make_sample(
    task: Task,
    labels: pd.DataFrame,
    matrix: Matrix,
    stratify: Sequence[str] = (),
    *,
    folds_of: Literal["train", "all"] = "train",
) -> Sample:
    """Joins one task's labels to the rows of the matrix.

    Args:
        task: what is predicted.
        labels: from `read_rows`.
        matrix: vectors; labels without a vector are left out.
        stratify: tasks whose labels together are the stratification key; none for the task's own label.
        folds_of: clients that folds are made of; with `all` nobody is set apart as a test client.

    Raises:
        ConfigError: when a task to stratify by has no labels.
        DataError: when no labelled client has a vector.
    """
    import pandas as pd

    keys = pd.DataFrame({"client_id": matrix.client_ids, "as_of": matrix.as_of, "row": np.arange(len(matrix.as_of))})
    own = labels[labels["task"] == task.name].merge(keys, on=["client_id", "as_of"], how="inner")
    if own.empty:
        raise DataError(f"task {task.name}: no labelled client has a vector; the as_of of both must be the same")
    place = {client: number for number, client in enumerate(ordered(own["client_id"].unique().tolist()))}
    own = own.assign(client=own["client_id"].map(place)).sort_values(["client", "as_of"], ignore_index=True)
    y = task.encode(own["label"].to_numpy(np.float64))
    return Sample(
        task=task,
        rows=own["row"].to_numpy(np.int64),
        y=y,
        clients=own["client"].to_numpy(np.int64),
        development=np.flatnonzero((own["split"] == "train") | (folds_of == "all")),
        test=np.flatnonzero((own["split"] == "test") & (folds_of == "train")),
        strata=_strata(task, own, y, labels, stratify),
        groups=own["group"].to_numpy(object) if "group" in own else None,
    )


def _strata(task: Task, own: pd.DataFrame, y: Floats, labels: pd.DataFrame, stratify: Sequence[str]) -> Ints:
    if stratify:
        missing = set(stratify) - set(labels["task"])
        if missing:
            raise ConfigError(f"stratify names {', '.join(sorted(missing))}, which has no labels")
        wide = labels[labels["task"].isin(stratify)].pivot_table(
            index=["client_id", "as_of"], columns="task", values="label", aggfunc="first"
        )
        joint = own[["client_id", "as_of"]].merge(wide.fillna(-1), on=["client_id", "as_of"], how="left").fillna(-1)
        return np.asarray(joint.groupby(list(stratify), sort=True).ngroup(), np.int64)
    if task.kind == "regression":
        import pandas as pd

        return np.asarray(pd.qcut(y, 10, labels=False, duplicates="drop"), np.int64)
    return y.astype(np.int64)


def make_folds(sample: Sample, folds: int, seeds: Sequence[int]) -> list[Fold]:
    """Stratified folds of the development clients, for each seed.

    `StratifiedKFold(folds, shuffle=True, random_state=seed)` over the clients in the protocol's order; a client with
    several rows lies in one fold with all of them and is stratified by its earliest.

    Raises:
        DataError: for a class with fewer development clients than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    clients, first = np.unique(sample.clients[sample.development], return_index=True)
    if sample.task.kind != "regression":
        counts = np.bincount(sample.y[sample.development][first].astype(int), minlength=sample.task.outputs)
        if counts.min() < folds:
            name = sample.task.class_names[int(counts.argmin())]
            raise DataError(
                f"task {sample.task.name}: class '{name}' has {counts.min()} training clients, fewer than the {folds} "
                "folds; lower `folds` or leave the task out"
            )
    strata = sample.strata[sample.development][first]
    made = []
    for seed in seeds:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(clients, _merged(strata, folds))):
            out = np.isin(sample.clients[sample.development], clients[held])
            made.append(
                Fold(seed=seed, number=number, train=sample.development[~out], held_out=sample.development[out])
            )
    return made


def _merged(strata: Ints, folds: int) -> Ints:
    """Puts strata too small for the folds into one, which spares sklearn's warning and spreads their clients.

    Where even together they are too few, the next smallest stratum joins them.
    """
    values, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    together = np.cumsum(counts[order])
    small = int((counts < folds).sum())
    if small and together[small - 1] < folds:
        small += 1
    joined = np.isin(inverse, order[:small])
    return np.asarray(np.where(joined, values.min() - 1, strata), np.int64)


def fold_fits(sample: Sample, folds: Sequence[Fold], method: str, conf: LightGBMConf | LinearConf) -> list[Fit]:
    """The fits of one method: for each fold a model of its training rows, asked about the held-out and test rows."""
    return [
        Fit(
            matrix=method,
            task=sample.task,
            rows=sample.rows[fold.train],
            y=sample.y[fold.train],
            ask=sample.rows[np.r_[fold.held_out, sample.test]],
            conf=conf,
            seed=fold.seed,
        )
        for fold in folds
    ]
