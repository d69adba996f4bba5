"""Scores histories with heads of the learn job: probabilities, prediction and decile for each client and as_of."""

from __future__ import annotations

import datetime as dt
import sys
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.errors import DataError
from ledgerlm.heads.publish import with_deciles
from ledgerlm.heads.recurrent.inputs import chosen_columns, head_rows, observed_events
from ledgerlm.heads.recurrent.scoring import score_recurrent
from ledgerlm.jobs.learn import sources_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ForecastConf(Conf):
    """Settings of the forecast job."""

    stages: tuple[StageName, ...] = Field(
        (StageName("learn"),), min_length=1, description="learn stages whose heads score"
    )
    as_of: dt.datetime | None = Field(
        None, description="score every client here too; else only where the head's task has labels"
    )


def run(ctx: Context, conf: ForecastConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit; who has no event is set aside."""
    heads = {head["head_id"]: stage for stage in conf.stages for head in ctx.facts(stage)["heads"]}
    scored, asked = [], []
    for head_id in heads:
        rows, frame = _scored(ctx, conf, head_id)
        asked.append(rows)
        scored.append(frame)
    with ctx.progress.task("Forecasting"):
        written = ctx.write("scores", reduce(_union, scored), {"head_id": tuple(heads)})
    wanted = ctx.keep(reduce(_union, asked))
    done = ctx.own("scores")
    aside = ctx.quarantine(_without_events(wanted, done))
    rows_in = wanted.count()
    if rows_in != written.rows + aside.rows:
        raise DataError(f"{rows_in} histories gave {written.rows} scores and {aside.rows} quarantined; run again")
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        quarantined=aside.rows,
        facts={"heads": [{"head_id": head_id, "name": stage} for head_id, stage in heads.items()]},
    )


def _scored(ctx: Context, conf: ForecastConf, head_id: str) -> tuple[DataFrame, DataFrame]:
    """The rows that are asked of a head, and its scores."""
    # It imports torch, which takes seconds.
    from ledgerlm.heads.recurrent.store import read_recurrent_card

    folder = ctx.artefacts / "heads"
    card = read_recurrent_card(folder / head_id)
    clients = ctx.read("clients").select("client_id")
    own = ctx.read("labels").where(F.col("task") == card.task.name).select("client_id", "as_of")
    as_of = own.join(clients, on="client_id", how="leftsemi")
    if conf.as_of is not None:
        now = F.lit(conf.as_of.isoformat(sep=" ")).cast("timestamp")
        as_of = as_of.unionByName(clients.withColumn("as_of", now)).distinct()
    sources, chosen = sources_of(ctx, card.inputs), chosen_columns(ctx.spec, card.inputs)
    rows = head_rows(as_of, observed_events(sources, chosen, card.inputs), sources, card.shape, card.inputs)
    scored = ctx.keep(score_recurrent(rows, folder.resolve(), head_id))
    marks = {"task": F.lit(card.task.name), "head_id": F.lit(head_id)}
    return as_of.withColumns(marks), with_deciles(scored.withColumns(marks)).drop("margin")


def _without_events(wanted: DataFrame, done: DataFrame) -> DataFrame:
    key = ["client_id", "task", "as_of", "head_id"]
    rest = wanted.join(done.select(*key), on=key, how="leftanti")
    return rest.select(
        F.lit("no_events").alias("reason"),
        F.concat(F.lit("client "), "client_id", F.lit(" as of "), F.col("as_of").cast("string")).alias("detail"),
        F.to_json(F.struct(*key)).alias("payload"),
    )


def _union(one: DataFrame, other: DataFrame) -> DataFrame:
    return one.unionByName(other)


JOB = Job(
    name="forecast",
    engine="spark",
    conf=ForecastConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("torch",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
