"""Compares finished heads by their scores on the same labelled rows: figures with intervals, by class and slice."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.compare import (
    Compared,
    comparison_rows,
    entries_of,
    figures_of,
    judged_slices,
    reached,
)
from ledgerlm.evaluation.leaderboard import BAYES, Entry, leaderboard_rows
from ledgerlm.evaluation.report.comparison import section
from ledgerlm.heads.tasks import declared_tasks, find_tasks
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    import pandas as pd


class CompareConf(Conf):
    """Settings of the compare job."""

    methods: dict[str, HeadRef] = Field(
        min_length=1, description="method name -> STAGE whose heads scored, or STAGE:NAME for one of several"
    )
    tasks: tuple[str, ...] = Field(min_length=1, description="binary or multiclass tasks in labels")
    slices: dict[str, str] = Field(
        {"test": "split = 'test'"},
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
        if BAYES in self.methods:
            raise ValueError(f"methods: the name '{BAYES}' is taken by the simulator's own probabilities")
        return self


def run(ctx: Context, conf: CompareConf) -> StageResult:
    """Reads labels beside all scores, judges each task and slice, and writes leaderboard rows."""
    every = ctx.read("labels")
    tasks = find_tasks(every, conf.tasks, declared_tasks(ctx.spec))
    if quantities := [task.name for task in tasks if task.kind == "regression"]:
        raise ConfigError(f"compare judges classes, but {', '.join(quantities)} is a quantity; leave it out of tasks")
    heads = {method: ctx.heads(source) for method, source in conf.methods.items()}
    rows = comparison_rows(
        every.where(F.col("task").isin([task.name for task in tasks])),
        ctx.read("clients"),
        ctx.read("scores"),
        ctx.maybe("bayes"),
        heads=heads,
        slices=conf.slices,
        max_rows=conf.max_rows,
    )
    frame: pd.DataFrame = rows.toArrow().to_pandas()
    entries: list[Entry] = []
    report, facts = [], []
    for compared in judged_slices(frame, tasks, tuple(heads), tuple(conf.slices)):
        ctx.progress.say(f"    {compared.task.name} on {compared.slice}: {len(compared.y):,} rows")
        own = _entries(ctx, conf, compared)
        shares = reached(compared)
        entries += own
        report.append(section(compared, own, shares, baseline=conf.baseline, stage=ctx.stage, details=conf.details))
        facts.append(_facts(compared, own, shares))
    written = ctx.write("leaderboard", leaderboard_rows(ctx.spark, entries, ctx.stage), {"stage": (ctx.stage,)})
    return StageResult(
        rows_in=len(frame),
        rows_out=written.rows,
        facts={
            "baseline": conf.baseline,
            "leaderboard": [entry.row() for entry in entries],
            "compared": facts,
            "report": report,
        },
    )


def _entries(ctx: Context, conf: CompareConf, compared: Compared) -> list[Entry]:
    figures = {method: figures_of(compared, p, count=conf.bootstrap, seed=ctx.seed) for method, p in compared.p.items()}
    return entries_of(compared, figures, split=f"{ctx.stage}/{compared.slice}", baseline=conf.baseline)


def _facts(compared: Compared, entries: Sequence[Entry], shares: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": compared.task.name,
        "slice": compared.slice,
        "classes": list(compared.task.class_names),
        "rows": len(compared.y),
        "left_out": compared.left_out,
        "figures": [entry.row() for entry in entries],
        "reached": shares,
    }


JOB = Job(
    name="compare",
    engine="spark + numpy",
    conf=CompareConf,
    run=run,
    finds=True,
    reads=("labels", "clients", "scores", "bayes?"),
    writes=lambda stage: {"leaderboard": {"stage": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
