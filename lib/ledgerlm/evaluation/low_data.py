"""The low-data study (LLM4ES, low-data gain): how good a representation is when few clients have a label.

Vectors are made without labels, so only the head starves. Each draw takes a few labelled clients of a fold's training
part, fits a strongly regularised linear head on their vectors, and asks it about the fold's held-out clients; all
methods see the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ledgerlm.engines.frames import Keep
from ledgerlm.evaluation.intervals import Predictions, fold_values
from ledgerlm.evaluation.leaderboard import LowDataEntry
from ledgerlm.evaluation.protocol import ProtocolConf, read_material
from ledgerlm.evaluation.report.low_data import low_data_section
from ledgerlm.heads.linear import Standard, penalised
from ledgerlm.heads.metrics import metrics_of
from ledgerlm.heads.samples import Fold, Sample, make_folds, make_sample
from ledgerlm.heads.tasks import Ints, Task
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.schemas import LOW_DATA
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class LowDataConf(ProtocolConf):
    """Settings of the low_data job."""

    counts: tuple[int, ...] = Field((1, 3, 10, 30, 100, 300), min_length=1, description="labelled clients of a draw")
    repeats: int = Field(4, ge=1, description="draws of a size in each fold")
    strength: float = Field(0.1, gt=0, description="L2 penalty of the linear head, a feature")
    max_rows: int = Field(20_000, ge=100, description="labels read to the driver; whole clients are left out above it")


if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Labelled rows that a head is fitted on, and the fold whose held-out rows it is asked about."""

    labelled: int
    fold: Fold
    rows: Ints


def low_data(
    labels: DataFrame,
    clients: DataFrame,
    tables: Mapping[str, DataFrame],
    tasks: Sequence[Task],
    conf: LowDataConf,
    *,
    name: str = "low_data",
    facts: Callable[[str], Mapping[str, Any]],
    seed: int,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Draws, fits and judges for each task and method.

    Args:
        labels: the `labels` table.
        clients: the `clients` table, for the split.
        tables: `features` and `embeddings`, as far as the methods read them.
        tasks: what is predicted.
        conf: settings.
        name: of the stage, for the rows of the table.
        facts: gives the facts of a finished stage by its name, or by its job's.
        seed: of folds and draws unless `conf` has others.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        `low_data`, a section of the report, and the fact `low_data`. rows_in: labels read.
    """
    shown = progress or Progress()
    material = read_material(labels, clients, tables, tasks, conf, facts=facts, keep=keep, progress=shown)
    found: list[LowDataEntry] = []
    with shown.task("Fitting on few labels", total=len(tasks) * len(material.matrices)) as bar:
        for task in tasks:
            sample = make_sample(task, material.labels, next(iter(material.matrices.values())), conf.stratify)
            draws = draw(sample, make_folds(sample, conf.folds, conf.seeds or (seed,)), conf.counts, conf.repeats)
            said = {}
            for method, matrix in material.matrices.items():
                said[method] = list(predictions(sample, matrix.x, draws, conf.strength))
                bar.advance()
            found += entries(sample, draws, said, conf.baseline)
    from pyspark.sql.types import StructType

    schema = StructType(list(LOW_DATA.columns))
    content = [tuple({"stage": name, **one.row()}[column] for column in schema.fieldNames()) for one in found]
    rows = Rows(frame=labels.sparkSession.createDataFrame(content, schema), slice={"stage": (name,)})
    return Made(
        rows_in=len(material.labels),
        rows_out=len(found),
        tables={"low_data": rows},
        facts={"low_data": [one.row() for one in found]},
        report=[low_data_section(found)],
    )


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
    fold, standard, held = None, None, np.zeros((0, 0))
    for one in draws:
        if one.fold is not fold:
            fold = one.fold
            standard = Standard(x[sample.rows[fold.train]])  # all training clients of the fold: it takes no label
            held = standard(x[sample.rows[fold.held_out]])
        assert standard is not None and fold is not None
        head = penalised(sample.task, 1 / (strength * x.shape[1]))
        head.fit(standard(x[sample.rows[one.rows]]), sample.y[one.rows])
        said = head.predict(held)[:, None] if sample.task.kind == "regression" else head.predict_proba(held)
        p = np.asarray(said, np.float64)
        yield Predictions(seed=fold.seed, fold=fold.number, rows=fold.held_out, p=p)


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
