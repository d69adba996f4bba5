"""Guesses what comes next from counts alone: frequencies and Markov chains, the baselines of every other method."""

from __future__ import annotations

import sys
from functools import reduce

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.events.goals import GoalRule
from ledgerlm.events.symbols import symbols_of
from ledgerlm.heads.guessing import GuessingConf, guesses, symbol_rows
from ledgerlm.heads.scoring import with_deciles
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class GuessConf(Conf):
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
    task = ctx.task(conf.task)
    dictionaries = ctx.maybe("dictionaries")
    rules = {one.stage.name: one.stage.conf for one in ctx.given.planned("label")}
    symbols = conf.symbols or symbols_of(conf.task, rules, ctx.facts, dictionaries)
    settings = GuessingConf(symbols=symbols, orders=conf.orders, weight=conf.weight)
    labels = ctx.read("labels").where(F.col("task") == task.name).drop("run_id")
    known = labels.join(ctx.read("clients").drop("run_id"), on="client_id", how="inner")
    counted = known.where(conf.where).select("client_id", "as_of", "label")
    read = ctx.keep(symbol_rows(ctx.read("events"), known, settings, dictionaries))
    rows, training = read.count(), counted.count()
    if not training:
        raise DataError(f"task {task.name}: no label where {conf.where}")
    heads = {method: f"{ctx.stage}/{method}" for method in settings.methods}
    scored = []
    for method, frame in guesses(read, counted, task, settings).items():
        named = {"task": F.lit(task.name), "head_id": F.lit(heads[method])}
        kept = ctx.keep(frame)  # the deciles need the scores twice
        scored.append(with_deciles(kept).drop("margin").withColumns(named))
    written = ctx.write("scores", reduce(DataFrame.unionByName, scored), {"head_id": tuple(heads.values())})
    if written.rows != rows * len(heads):
        raise DataError(f"{rows * len(heads)} scores were to be made, but {written.rows} written; run the stage again")
    return StageResult(
        rows_in=written.rows,
        rows_out=written.rows,
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
    reads=("events", "clients", "labels", "dictionaries?"),
    needs=("label",),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
