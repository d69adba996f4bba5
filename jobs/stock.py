"""Forecasts stock: purchases of each category and region in the days to come, with intervals and a backtest."""

from __future__ import annotations

import sys

from pydantic import Field

from ledgerlm.applications.scored import ScoredConf, choose_scores
from ledgerlm.applications.stock import StockConf, forecast_stock
from ledgerlm.evaluation.report.stock import stock_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class StockJobConf(ScoredConf):
    """Settings of the stock job; the task is labelled and scored at several dates."""

    stock: StockConf = Field(description="what is counted, where, and over which days")


def run(ctx: Context, conf: StockJobConf) -> StageResult:
    """Writes the forecast of one date, learnt at earlier ones."""
    scored = choose_scores(ctx.read("scores"), ctx.heads(conf.scores), ctx.task(conf.task), conf)
    events, clients, dictionaries = ctx.read("events"), ctx.read("clients"), ctx.maybe("dictionaries")
    forecast = forecast_stock(scored, events, clients, dictionaries, conf.stock, time=ctx.spec.time, keep=ctx.keep)
    return ctx.publish(forecast.made(ctx.stage, [stock_section(ctx.stage, forecast)]))


JOB = Job(
    name="stock",
    engine="spark",
    conf=StockJobConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"stock_forecasts": {"stage": (stage.name,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
