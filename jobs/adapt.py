"""Adapts scores to the class shares of each population, such as a bank that no head learnt from: no label is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import DataError
from ledgerlm.events.goals import GoalRule
from ledgerlm.events.symbols import symbols_of
from ledgerlm.heads.populations import PopulationConf, adapted, class_counts, with_ratios
from ledgerlm.heads.scoring import with_deciles
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from ledgerlm.heads.tasks import Task

_SHOWN = 50  # populations named in the report, those with the most rows


class AdaptConf(Conf):
    """Settings of the adapt job."""

    task: str = Field(description="binary or multiclass task in labels")
    methods: dict[str, HeadRef] = Field(
        min_length=1, description="name of the adapted head -> STAGE that scored, or STAGE:NAME for one of its heads"
    )
    by: tuple[str, ...] = Field(
        (), description="client attributes that tell populations apart (a bank, say); none: all are one, over time"
    )
    where: str = Field(
        "split = 'train'", description="SQL condition over columns of clients and labels: the rows learnt from"
    )
    symbols: tuple[GoalRule, ...] = Field(
        (), description="what an event counts as, one for each class; left out, as the label stage has it"
    )
    days: int | None = Field(None, ge=1, description="days before as_of whose events are counted; left out, all")
    weight: float = Field(
        50.0, gt=0, description="events that the shares of the rows learnt from count as, beside those of a population"
    )


def run(ctx: Context, conf: AdaptConf) -> StageResult:
    """Counts each population's classes before as_of, and writes each method's scores moved by their shares."""
    task = ctx.task(conf.task)
    heads = {name: ctx.head(source) for name, source in conf.methods.items()}
    scores = ctx.read("scores").where((F.col("task") == task.name) & F.col("head_id").isin(list(heads.values())))
    ratios = ctx.keep(_ratios(ctx, conf, task, scores))  # for every method and the report
    made = {name: f"{ctx.stage}/{name}" for name in heads}
    frames = []
    for name, head_id in heads.items():
        moved = adapted(scores.where(F.col("head_id") == head_id), ratios, task)
        kept = ctx.keep(moved)  # the deciles need the scores twice
        named = {"task": F.lit(task.name), "head_id": F.lit(made[name])}
        frames.append(with_deciles(kept).drop("margin").withColumns(named))
    rows = scores.count()
    written = ctx.write("scores", reduce(DataFrame.unionByName, frames), {"head_id": tuple(made.values())})
    if written.rows != rows:
        raise DataError(f"{rows} scores were to be adapted, but {written.rows} written; is a client unknown?")
    populations = _populations(ratios, task)
    return StageResult(
        rows_in=rows,
        rows_out=written.rows,
        facts={
            "heads": [{"head_id": head_id, "name": name, "task": task.name} for name, head_id in made.items()],
            "populations": populations,
            "report": [_section(ctx.stage, task, populations)],
        },
    )


def _ratios(ctx: Context, conf: AdaptConf, task: Task, scores: DataFrame) -> DataFrame:
    """The ratios of all scored rows and of those learnt from."""
    clients = ctx.read("clients").drop("run_id")
    labels = ctx.read("labels").where(F.col("task") == task.name).drop("run_id")
    learnt = labels.join(clients, on="client_id", how="inner").where(conf.where).select("client_id", "as_of")
    if learnt.isEmpty():
        raise DataError(f"task {task.name}: no label where {conf.where}")
    dictionaries = ctx.maybe("dictionaries")
    rules = {one.stage.name: one.stage.conf for one in ctx.given.planned("label")}
    symbols = conf.symbols or symbols_of(conf.task, rules, ctx.facts, dictionaries)
    settings = PopulationConf(symbols=symbols, by=conf.by, days=conf.days, weight=conf.weight)
    asked = scores.select("client_id", "as_of").unionByName(learnt)
    counted = class_counts(ctx.read("events"), clients, asked, task, settings, dictionaries=dictionaries)
    return with_ratios(ctx.keep(counted), learnt, task, conf.weight)


def _populations(ratios: DataFrame, task: Task) -> list[dict[str, Any]]:
    """Rows of each population, and the mean share of its classes and their ratio to where it was learnt."""
    means = [
        F.avg(F.col(column)[place]).alias(f"{column}{place}")
        for column in ("shares", "ratios")
        for place in range(task.outputs)
    ]
    found = ratios.groupBy("population").agg(F.count(F.lit(1)).alias("rows"), *means)
    return [
        {
            "population": row["population"],
            "rows": row["rows"],
            "shares": {name: round(row[f"shares{place}"], 4) for place, name in enumerate(task.class_names)},
            "ratios": {name: round(row[f"ratios{place}"], 4) for place, name in enumerate(task.class_names)},
        }
        for row in found.orderBy(F.desc("rows"), "population").limit(_SHOWN).collect()
    ]


def _section(stage: str, task: Task, populations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        [
            one["population"],
            one["rows"],
            *(f"{one['shares'][k]:.3f} × {one['ratios'][k]:.2f}" for k in task.class_names),
        ]
        for one in populations
    ]
    return {
        "title": f"{'' if stage == 'adapt' else f'{stage}: '}{task.name} by population",
        "note": "Share of each class among the events of a population before as_of, and by how much its probability is "
        "multiplied, in the mean over rows.",
        "blocks": [{"kind": "table", "columns": ["population", "rows", *task.class_names], "rows": rows}],
    }


JOB = Job(
    name="adapt",
    engine="spark",
    conf=AdaptConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
