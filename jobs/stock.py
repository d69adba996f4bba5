"""Forecasts stock: purchases of each category and region in the days to come, with intervals and a backtest."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications import stock
from ledgerlm.applications.stock import StockConf
from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import DataError
from ledgerlm.events.dictionaries import with_description
from ledgerlm.heads.scoring import heads_of
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KEY = ["client_id", "as_of"]
_SHOWN = 12


class StockJobConf(Conf):
    """Settings of the stock job."""

    scores: HeadRef = Field(
        HeadRef("forecast"), description="STAGE whose head scored the task, or STAGE:NAME for one of several"
    )
    task: str = Field(description="task whose classes are the goals, labelled at several dates")
    as_of: dt.datetime | None = Field(None, description="date of the forecast; default the newest of the scores")
    stock: StockConf = Field(description="what is counted, where, and over which days")


def run(ctx: Context, conf: StockJobConf) -> StageResult:
    """Learns at earlier dates what goals lead to, forecasts at the newest, and looks what came."""
    head_id, goals, as_of = _goals(ctx, conf)
    past = goals.where(F.col("as_of") + F.make_dt_interval(F.lit(conf.stock.horizon)) <= as_of)
    past, now = (
        ctx.keep(past),
        ctx.keep(goals.where(F.col("as_of") == as_of)),
    )
    if past.isEmpty():
        raise DataError(
            f"task {conf.task}: no scores {conf.stock.horizon} days or more before the date of the forecast; "
            "label and score earlier dates too"
        )
    forecast = ctx.keep(_forecast(ctx, conf, past, now, as_of))
    rows = forecast.withColumns(
        {
            "head_id": F.lit(head_id),
            "horizon_days": F.lit(conf.stock.horizon),
            "reason": stock.reason_in_words(conf.stock),
        }
    ).drop("pace", "season")
    written = ctx.write("stock_forecasts", rows, {"head_id": (head_id,)})
    tried = stock.backtest(forecast)
    return StageResult(
        rows_in=now.select(*_KEY).distinct().count(),
        rows_out=written.rows,
        facts={"backtest": tried, "report": [_section(ctx.stage, conf.stock, forecast, tried)]},
    )


def _goals(ctx: Context, conf: StockJobConf) -> tuple[str, DataFrame, Column]:
    """The head, the probabilities of the goals at all dates, and the date of the forecast."""
    task = ctx.task(conf.task)
    stage, _, name = conf.scores.partition(":")
    heads = heads_of(ctx.facts(stage), stage, name)
    scores = ctx.read("scores").where(F.col("head_id").isin(heads) & (F.col("task") == task.name))
    row = scores.agg(F.max("as_of").alias("as_of"), F.count_distinct("head_id").alias("heads")).first()
    if row is None or row["heads"] != 1:
        raise DataError(
            f"stage {stage} has {row['heads'] if row else 0} heads with scores of {task.name}; one is needed"
        )
    head = scores.select("head_id").first()
    assert head is not None
    as_of = F.lit(row["as_of"] if conf.as_of is None else conf.as_of.isoformat(sep=" ")).cast("timestamp")
    return head["head_id"], stock.expected_goals(scores, task), as_of


def _forecast(ctx: Context, conf: StockJobConf, past: DataFrame, now: DataFrame, as_of: Column) -> DataFrame:
    """as_of, region, category, expected, low, high, before, pace, observed (null where the days are not over)."""
    dictionaries = ctx.maybe("dictionaries")
    told = with_description(ctx.read("events"), dictionaries, conf.stock.category, "_category")
    bought = ctx.keep(stock.purchases(told, conf.stock, "_category"))
    regions = (
        ctx.read("clients").select("client_id", F.expr(conf.stock.region).alias("region")).where("region IS NOT NULL")
    )
    paces, came = stock.activity(bought, past, conf.stock), stock.outcomes(bought, past, conf.stock)
    shares = ctx.keep(stock.learn_shares(past, paces, came))
    place = ["as_of", "region", "category"]
    dates = stock.learning_dates(past)
    held_out = stock.held_out_cells(past, paces, came, regions, dates)
    learnt = held_out.join(stock.observed(came, regions), on=place, how="left").fillna(0, subset=["observed"])
    learnt = ctx.keep(learnt)
    strays = stock.dispersion(learnt)
    expected = stock.cells(now, stock.activity(bought, now, conf.stock), shares, regions)
    seasonal = learnt if conf.stock.season else learnt.limit(0)
    expected = stock.with_season(expected, seasonal, as_of)
    ranged = stock.with_interval(expected, strays, len(dates))
    with_before = stock.with_rivals(ranged, bought, now, regions, conf.stock)
    seen = stock.observed(stock.outcomes(bought, now, conf.stock), regions)
    end = bought.agg((F.date_trunc("day", F.max("event_time")) + F.make_dt_interval(F.lit(1))).alias("_end"))
    over = F.col("as_of") + F.make_dt_interval(F.lit(conf.stock.horizon)) <= F.col("_end")
    joined = with_before.join(seen, on=place, how="left").crossJoin(F.broadcast(end))
    known = F.when(over, F.coalesce("observed", F.lit(0)).cast("double"))
    return joined.withColumn("observed", known).drop("_end")


def _section(stage: str, conf: StockConf, forecast: DataFrame, tried: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["region", "category", "expected", "low", "high", "before", "observed"]
    largest = forecast.orderBy(F.desc("expected"), "region", "category").limit(_SHOWN).select(*columns).collect()
    blocks = [{"kind": "table", "heading": "Largest", "columns": columns, "rows": [list(row) for row in largest]}]
    if tried["cells"]:
        gain = tried["gain"]
        rows = [
            ["scores", tried["wape"]["scores"], ""],
            ["frequency (the days before go on)", tried["wape"]["frequency"], f"{gain['frequency']:+.1%}"],
            ["random (all categories alike)", tried["wape"]["random"], f"{gain['random']:+.1%}"],
        ]
        blocks.append(
            {
                "kind": "table",
                "heading": "Backtest",
                "columns": ["forecast", "absolute error / purchases", "error that the scores save"],
                "rows": rows,
                "note": f"{tried['cells']:,} cells with {tried['purchases']:,} purchases; {tried['coverage']:.0%} of "
                "them lie within the 90 % interval.",
            }
        )
    note = f"Purchases of each category and region in {conf.horizon} days; learnt at earlier dates only."
    return {"title": f"Stock ({stage})", "note": note, "blocks": blocks}


JOB = Job(
    name="stock",
    engine="spark",
    conf=StockJobConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"stock_forecasts": {"head": (stage.conf.scores,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
