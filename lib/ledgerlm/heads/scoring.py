"""Scoring in Spark: one model for each worker process, probabilities and the top reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import types as T

from ledgerlm.errors import ConfigError
from ledgerlm.files import here, share
from ledgerlm.heads.boosting import Boosted
from ledgerlm.heads.head import HeadCard, load_trees
from ledgerlm.heads.tasks import Floats, Ints, Task
from ledgerlm.heads.vectors import KEY, to_matrix
from ledgerlm.lake.schemas import AS_OF, CLIENT, REASON, VECTOR

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# What a scorer returns; `margin` orders clients for the deciles.
REASONS = T.ArrayType(REASON, containsNull=False)
SCORED = T.StructType(
    [
        CLIENT,
        AS_OF,
        T.StructField("margin", T.DoubleType(), nullable=False),
        T.StructField("probabilities", VECTOR, nullable=False),
        T.StructField("prediction", T.DoubleType(), nullable=False),
        T.StructField("reasons", REASONS, nullable=False),
    ]
)
# Stands for a probability of 0 where its logarithm is taken.
_TINY = 1e-15
_REASON = pa.struct([pa.field("feature", pa.string()), pa.field("contribution", pa.float32())])


def score_rows(joined: DataFrame, folder: Path, head_id: str, *, reasons: int = 3, threads: int = 1) -> DataFrame:
    """Scores clients with a LightGBM head.

    Each Python worker reads the head once and keeps it. A client's score depends on its vectors alone, not on the
    rows beside it.

    Args:
        joined: from `join_sources`, with the head's own sources.
        folder: the artefacts' `heads` folder.
        head_id: the head, whose files are checked against it.
        reasons: features named for each client, 0 for none.
        threads: LightGBM threads of a worker, the cores of a Spark task.

    Returns:
        client_id, as_of, margin, probabilities (classes in the card's order; empty for a regression), prediction
        (label of the likeliest class, or the value), reasons (largest contributions to the raw score of that class,
        for two classes of the second one; log-odds, or units of the value).
    """
    work = partial(_score_batches, head=share(folder / head_id), reasons=reasons, threads=threads)
    return joined.mapInArrow(work, SCORED)


def heads_of(facts: Mapping[str, Any], stage: str, name: str = "") -> list[str]:
    """Ids of the heads that a finished stage names in its facts.

    Args:
        facts: its facts; `heads` is a list of ids, or of mappings with `head_id` and perhaps `name`.
        stage: its name, for the message.
        name: the one wanted; none for all.

    Raises:
        ConfigError: when there is no such head.
    """
    listed = [{"head_id": head} if isinstance(head, str) else head for head in facts.get("heads", ())]
    found = [str(head["head_id"]) for head in listed if not name or head.get("name") == name]
    if not found:
        names = ", ".join(str(head.get("name", head["head_id"])) for head in listed) or "no heads"
        raise ConfigError(f"stage '{stage}' has {names}" + (f", not '{name}'" if name else ""))
    return found


def sum_of(numbers: Column) -> Column:
    """Sum of an array<double>."""
    from pyspark.sql import functions as F

    return F.aggregate(numbers, F.lit(0.0), lambda one, other: one + other)


def normalised(numbers: Column) -> Column:
    """An array<double> divided by its sum; even shares where that is zero."""
    from pyspark.sql import functions as F

    of_all = sum_of(numbers)
    even = F.array_repeat(F.lit(1.0) / F.size(numbers), F.size(numbers))
    return F.when(of_all > 0, F.transform(numbers, lambda one: F.try_divide(one, of_all))).otherwise(even)


def scored_rows(rows: DataFrame, probabilities: str, task: Task) -> DataFrame:
    """Rows as a scorer returns them (`SCORED`), from probabilities that Spark's own expressions made.

    Args:
        rows: client_id, as_of and the column of probabilities.
        probabilities: its name; array<double>, classes in the task's order.
        task: binary or multiclass.

    Returns:
        As `score_rows`, without reasons.
    """
    from pyspark.sql import functions as F

    likeliest = F.array_position(probabilities, F.array_max(probabilities)) - 1
    binary = task.kind == "binary"
    # A probability of exactly 0 has no logarithm, and Spark divides nothing by it.
    odds = [F.greatest(F.col(probabilities)[place], F.lit(_TINY)) for place in (0, 1)]
    margin = F.log(odds[1]) - F.log(odds[0]) if binary else F.array_max(probabilities)
    labels = reduce(
        lambda rest, place: F.when(likeliest == place, task.classes[place]).otherwise(rest),
        range(task.outputs),
        F.lit(task.classes[0]),
    )
    return rows.select(
        *KEY,
        margin.alias("margin"),
        F.col(probabilities).cast("array<float>").alias("probabilities"),
        labels.alias("prediction"),
        F.array().cast(REASONS).alias("reasons"),
    )


@lru_cache(maxsize=4)
def _cached(head: str) -> tuple[HeadCard, Boosted]:
    home = here(head)
    return load_trees(home.parent, home.name)


def _score_batches(
    batches: Iterator[pa.RecordBatch], *, head: str, reasons: int, threads: int
) -> Iterator[pa.RecordBatch]:
    card, model = _cached(head)
    for batch in batches:
        yield score_batch(batch, card, model, reasons=reasons, threads=threads)


def score_batch(
    batch: pa.RecordBatch, card: HeadCard, model: Boosted, *, reasons: int = 3, threads: int = 1
) -> pa.RecordBatch:
    """Scores the clients of one Arrow batch; see `score_rows`."""
    x = to_matrix(batch, card.blocks)
    raw = model.raw(x, threads=threads)
    p = card.calibration.apply(raw, card.task)
    chosen = p.argmax(axis=1)
    if card.task.kind == "regression":
        prediction, margin, p = raw[:, 0], raw[:, 0], np.zeros((len(raw), 0))
    else:
        prediction = np.asarray(card.task.classes)[chosen]
        margin = raw[:, 0] if card.task.kind == "binary" else p.max(axis=1)
    if reasons:
        output = chosen if model.outputs > 1 else np.zeros(len(raw), np.int64)
        found = _top(model.contributions(x, output, threads=threads)[:, :-1], card.names, reasons)
    else:
        found = pa.array([[] for _ in range(len(raw))], pa.list_(_REASON))
    columns = [*(batch.column(name) for name in KEY), pa.array(margin), _lists(p), pa.array(prediction), found]
    return pa.RecordBatch.from_arrays(columns, names=[*KEY, "margin", "probabilities", "prediction", "reasons"])


def _lists(p: Floats) -> pa.ListArray:
    offsets = np.arange(len(p) + 1, dtype=np.int32) * p.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(p.astype(np.float32).ravel()))


def _top(contributions: Floats, names: tuple[str, ...], count: int) -> pa.ListArray:
    """The largest contributions by absolute value, largest first; zero ones are no reasons."""
    count = min(count, len(names))
    size = np.abs(contributions)
    places: Ints = np.argpartition(-size, count - 1, axis=1)[:, :count]
    places = np.take_along_axis(places, np.argsort(-np.take_along_axis(size, places, axis=1), axis=1), axis=1)
    values = np.take_along_axis(contributions, places, axis=1)
    kept: NDArray[np.bool_] = values != 0
    offsets = np.r_[0, np.cumsum(kept.sum(axis=1))].astype(np.int32)
    features = pa.array(np.asarray(names, dtype=object)[places[kept]], pa.string())
    structs = pa.StructArray.from_arrays([features, pa.array(values[kept].astype(np.float32))], fields=list(_REASON))
    return pa.ListArray.from_arrays(pa.array(offsets), structs)
