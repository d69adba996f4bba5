"""The comparison of finished heads: their scores on the same labelled rows, by slice, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.config import Conf, HeadRef
from ledgerlm.engines.collect import collectable
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.compare import (
    Compared,
    bound_of,
    comparison_rows,
    entries_of,
    figures_of,
    judged_slices,
    reached,
)
from ledgerlm.evaluation.leaderboard import BAYES, BOUNDS, REACHABLE, Entry, published_board
from ledgerlm.evaluation.report.comparison import section
from ledgerlm.events.condition import Condition
from ledgerlm.heads.tasks import Task
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

# Bytes of a row beside its probabilities (keys, label, slices), and of a probability.
_BYTES_A_ROW, _BYTES_A_PROBABILITY = 200, 8


class CompareConf(Conf):
    """Settings of the compare job."""

    methods: dict[str, HeadRef] = Field(
        min_length=1, description="method name -> STAGE whose heads scored, or STAGE:NAME for one of several"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="binary or multiclass tasks in labels")
    slices: dict[str, Condition] = Field(
        {"test": Condition("split = 'test'")},
        min_length=1,
        description="name -> SQL condition over columns of clients and labels, judged apart",
    )
    baseline: str = Field(description="method that the others are set against")
    bootstrap: int = Field(500, ge=100, description="resamples of clients for the intervals")
    details: bool = Field(True, description="tell each class, calibration and confusion in the report too")
    max_rows: int = Field(100_000, ge=100, description="labels read to the driver; whole clients are left out above it")

    @model_validator(mode="after")
    def _known_baseline(self) -> CompareConf:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline: no method '{self.baseline}'")
        if taken := [name for name in BOUNDS if name in self.methods]:
            raise ValueError(f"methods: the name '{taken[0]}' is taken by a bound of simulated banks; choose another")
        return self


def compare(
    labels: DataFrame,
    clients: DataFrame,
    scores: DataFrame,
    tasks: Sequence[Task],
    conf: CompareConf,
    *,
    heads: Mapping[str, Sequence[str]],
    name: str = "compare",
    bayes: DataFrame | None = None,
    reachable: DataFrame | None = None,
    seed: int,
    progress: Progress | None = None,
) -> Made:
    """Judges each task and slice on the rows that every method has scored.

    Args:
        labels: the `labels` table.
        clients: the `clients` table.
        scores: the `scores` table.
        tasks: binary or multiclass.
        conf: slices, baseline, bounds.
        heads: method -> ids of its heads, one for each task.
        name: of the stage, for the rows of the leaderboard.
        bayes: the simulator's own probabilities, if they are known.
        reachable: what the best that sees the events says, if it is known.
        seed: of the bootstrap.
        progress: what the user sees.

    Returns:
        `leaderboard`, a section of the report for each task and slice, and the facts `baseline`, `leaderboard` and
        `compared`. rows_in: labelled rows read.

    Raises:
        ConfigError: a task is a quantity, or a condition that Spark does not understand.
        DataError: see `compare.judged_slices`.
    """
    if quantities := [task.name for task in tasks if task.kind == "regression"]:
        raise ConfigError(f"compare judges classes, but {', '.join(quantities)} is a quantity; leave it out of tasks")
    bounds = {name: one for name, one in ((BAYES, bayes), (REACHABLE, reachable)) if one is not None}
    rows = comparison_rows(
        labels.where(F.col("task").isin([task.name for task in tasks])),
        clients,
        scores,
        bounds,
        heads=heads,
        slices=conf.slices,
        max_rows=min(conf.max_rows, _most_rows(labels, tasks, len(heads) + len(bounds))),
    )
    frame: pd.DataFrame = rows.toArrow().to_pandas()
    entries: list[Entry] = []
    report, facts = [], []
    slices = list(judged_slices(frame, tasks, tuple(heads), tuple(conf.slices), tuple(bounds)))
    with (progress or Progress()).task("Resampling clients", total=sum(len(one.p) for one in slices)) as bar:
        for compared in slices:
            figures = {}
            for method, p in compared.p.items():
                figures[method] = figures_of(compared, p, count=conf.bootstrap, seed=seed)
                bar.advance()
            own = entries_of(compared, figures, split=f"{name}/{compared.slice}", baseline=conf.baseline)
            shares = reached(compared)
            entries += own
            report.append(section(compared, own, shares, baseline=conf.baseline, stage=name, details=conf.details))
            facts.append(_facts(compared, own, shares))
    return published_board(
        labels.sparkSession,
        entries,
        name,
        rows_in=len(frame),
        baseline=conf.baseline,
        facts={"compared": facts},
        report=report,
    )


def _most_rows(labels: DataFrame, tasks: Sequence[Task], methods: int) -> int:
    """Rows whose probabilities by all methods may be read to this machine."""
    width = methods * max(task.outputs for task in tasks)
    return max(1, collectable(labels.sparkSession) // (_BYTES_A_ROW + _BYTES_A_PROBABILITY * width))


def _facts(compared: Compared, entries: Sequence[Entry], shares: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": compared.task.name,
        "slice": compared.slice,
        "classes": list(compared.task.class_names),
        "rows": len(compared.y),
        "left_out": compared.left_out,
        "figures": [entry.row() for entry in entries],
        "reached": shares,
        "bound": bound_of(compared),
    }
