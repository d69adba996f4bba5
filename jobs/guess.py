"""Guesses what comes next from counts alone: frequencies and Markov chains, the baselines of every other method."""

from __future__ import annotations

import sys
from functools import reduce

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.goals import GoalRule
from ledgerlm.heads.guessing import GuessingConf, guesses, symbol_rows
from ledgerlm.heads.scoring import with_deciles
from ledgerlm.heads.tasks import declared_tasks, find_tasks
from ledgerlm.jobs.label import symbols_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult


class GuessConf(JobConf):
    """Settings of the guess job."""

    task: str = Field(description="binary or multiclass task in labels")
    where: str = Field(
        "split = 'train'", description="SQL condition over columns of clients and labels: the rows that are counted"
    )
    symbols: tuple[GoalRule, ...] = Field(
        (), description="what an event counts as; left out, as the label stage has it (every category, or the goals)"
    )
    orders: tuple[int, ...] = Field((1, 2, 3), description="orders of the Markov heads, 1 to 3; none for no such head")
    weight: float = Field(
        5.0, gt=0, description="events (or rows) that the shorter memory counts as, where the longer one is smoothed"
    )


def run(ctx: Context, conf: GuessConf) -> StageResult:
    """Counts on the chosen rows and scores all rows of the task, one head for each method."""
    task = find_tasks(ctx.read("labels"), [conf.task], declared_tasks(ctx.spec))[0]
    if task.kind == "regression":
        raise ConfigError(f"task {task.name} is a quantity; guess counts classes")
    settings = GuessingConf(symbols=symbols_of(ctx, conf.task, conf.symbols), orders=conf.orders, weight=conf.weight)
    labels = ctx.read("labels").where(F.col("task") == task.name).drop("run_id")
    known = labels.join(ctx.read("clients").drop("run_id"), on="client_id", how="inner")
    counted = known.where(conf.where).select("client_id", "as_of", "label")
    dictionaries = ctx.read("dictionaries") if ctx.exists("dictionaries") else None
    read = symbol_rows(ctx.read("events"), known, settings, dictionaries).persist(StorageLevel.DISK_ONLY)
    rows, training = read.count(), counted.count()
    if not training:
        raise DataError(f"task {task.name}: no label where {conf.where}")
    heads = {method: f"{ctx.stage}/{method}" for method in settings.methods}
    scored = []
    for method, frame in guesses(read, counted, task, settings).items():
        named = {"task": F.lit(task.name), "head_id": F.lit(heads[method])}
        kept = frame.persist(StorageLevel.DISK_ONLY)  # the deciles need the scores twice
        scored.append(with_deciles(kept).drop("margin").withColumns(named))
    names = ", ".join(f"'{head_id}'" for head_id in heads.values())
    written = ctx.write("scores", reduce(DataFrame.unionByName, scored), where=f"head_id IN ({names})")
    if written.rows != rows * len(heads):
        raise DataError(f"{rows * len(heads)} scores were to be made, but {written.rows} written; run the stage again")
    return StageResult(
        rows_in=written.rows,
        rows_out=written.rows,
        tables={"scores": written.version},
        facts={
            "counted": training,
            "symbols": len(settings.symbols),
            "heads": [{"head_id": head_id, "name": method, "task": task.name} for method, head_id in heads.items()],
        },
    )


JOB = Job(
    name="guess",
    engine="spark",
    conf=GuessConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries"),
    needs=("label",),
    writes=("scores",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
