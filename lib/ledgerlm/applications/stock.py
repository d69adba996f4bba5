"""Stock forecasts: how many purchases of each category to expect in each region, from goals and recent activity.

A client's expected purchases of a category in the horizon are his recent purchases a day times the horizon, times the
category's share given each goal, weighted by the probabilities of the goals. The shares are learnt at earlier dates
whose horizon had ended by the date of the forecast, on clients that the head was not trained on; how far counts stray
from such sums, at each of those dates by the shares of the others. Where one of those dates lies in the same month of
an earlier year, what came of a category then, for what was expected, corrects what is expected now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.applications.scored import Scored
from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import DataError
from ledgerlm.events.clock import fixed_instant, local, zoned
from ledgerlm.events.condition import Condition
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.spec_times import UTC_TIME, TimeSpec
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    import datetime as dt

    from pyspark.sql import Column

    from ledgerlm.heads.tasks import Task

_KEY = ("client_id", "as_of")
_PLACE = ("as_of", "region", "category")
_LARGEST = 12  # cells that a forecast shows
_LEVEL = 0.9  # of the intervals
# Purchases that every client is taken to have made beside his own, so that nobody's activity is zero.
_PRIOR = 0.5
# Purchases as expected that a season is drawn towards, so that a rare category has none.
_SEASON_PRIOR = 20.0


class StockConf(Conf):
    """What is counted, where, and over which days."""

    category: str = Field("mcc", description="event field of the category; by its description where there is one")
    where: Condition = Field(
        Condition("amount < 0"), description="SQL condition over event columns: what is a purchase"
    )
    region: str = Field(description="SQL expression over client columns: where the client shops")
    horizon: int = Field(30, ge=1, description="days after as_of that are forecast")
    window: int = Field(90, ge=1, description="days before as_of that tell a client's activity")
    learn: Condition = Field(
        Condition("split = 'test'"),
        description="SQL condition over client columns: whose scores shares are learnt from. Clients that the head was "
        "trained on are scored too surely, and their goals would seem to lead to what they bought",
    )
    season: bool = Field(True, description="correct by the same month of earlier years, where it was learnt from")


@dataclass(frozen=True, kw_only=True, slots=True)
class StockForecast:
    """Purchases to expect.

    Attributes:
        rows: as_of, region, category, head_id, horizon_days, expected, low, high, before, observed (null where the
            days are not over), reason; key (as_of, region, category).
        scored: the scores that it was made from.
        conf: what is counted.
        clients: clients with a score at the instant.
        cells: rows of `rows`.
        largest: the largest expectations, as rows of `rows`.
        tried: from `backtest`.
    """

    rows: DataFrame
    scored: Scored
    conf: StockConf
    clients: int
    cells: int
    largest: Sequence[Mapping[str, Any]]
    tried: Mapping[str, Any]

    def made(self, stage: str, report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """For the lake: a stage's own forecast of this instant, so that those of other dates and stages stay.

        Args:
            stage: who writes.
            report: sections of the report.
        """
        rows = self.rows.withColumn("stage", F.lit(stage))
        return Made(
            rows_in=self.clients,
            rows_out=self.cells,
            tables={"stock_forecasts": Rows(frame=rows, slice=self.scored.part(stage))},
            facts={"backtest": dict(self.tried)},
            report=report,
        )


def forecast_stock(
    scored: Scored,
    events: DataFrame,
    clients: DataFrame,
    dictionaries: DataFrame | None,
    conf: StockConf,
    *,
    time: TimeSpec = UTC_TIME,
    keep: Keep,
) -> StockForecast:
    """Learns at earlier dates what goals lead to, forecasts at the instant, and looks what came.

    Args:
        scored: from `choose_scores`; the scores of earlier dates are what is learnt from.
        events: the `events` table.
        clients: the `clients` table.
        dictionaries: the `dictionaries` table, if there is one.
        conf: what is counted.
        time: the data set's: days, months and dates are those of its zone, and its data end where it says.
        keep: for frames that are read again.

    Raises:
        DataError: when no earlier date was scored whose horizon has ended, or none of a client that `learn` means.
    """
    # From here to the result all times are those that a clock in the zone shows.
    instant, end = local(scored.instant, time.zone), _end(events, time)
    events = events.withColumn("event_time", local(F.col("event_time"), time.zone))
    goals = expected_goals(scored.rows, scored.task).withColumn("as_of", local(F.col("as_of"), time.zone))
    over = F.col("as_of") + F.make_dt_interval(F.lit(conf.horizon)) <= instant
    past, now = settled(goals.where(over), keep), settled(goals.where(F.col("as_of") == instant), keep)
    if past.isEmpty():
        raise DataError(
            f"task {scored.task.name}: no scores {conf.horizon} days or more before the date of the forecast; "
            "label and score earlier dates too"
        )
    learners = conf.learn.rows(clients).select("client_id")
    learnt = settled(past.join(learners, on="client_id", how="leftsemi"), keep)
    if learnt.isEmpty():
        raise DataError(
            f"stock.learn: no client with earlier scores meets {conf.learn}, so nobody's shares can be learnt; keep "
            "test clients out of the head's training, or give another condition"
        )
    told = with_description(events, dictionaries, conf.category, "_category")
    bought = settled(purchases(told, conf, "_category"), keep)
    regions = clients.select("client_id", F.expr(conf.region).alias("region")).where("region IS NOT NULL")
    expected = _expected(Said(past, learnt, now), bought, regions, as_of=instant, conf=conf, keep=keep)
    forecast = settled(_observed_too(expected, now, bought, regions, conf, end=end), keep)
    rows = (
        forecast.withColumn("as_of", zoned(F.col("as_of"), time.zone))
        .withColumns(
            {
                "head_id": F.lit(scored.head_id),
                "horizon_days": F.lit(conf.horizon),
                "reason": reason_in_words(conf),
            }
        )
        .drop("pace", "season")
    )
    largest = rows.orderBy(F.desc("expected"), "region", "category").limit(_LARGEST)
    return StockForecast(
        rows=rows,
        scored=scored,
        conf=conf,
        clients=now.select(*_KEY).distinct().count(),
        cells=forecast.count(),
        largest=[row.asDict() for row in largest.collect()],
        tried=backtest(forecast),
    )


class Said(NamedTuple):
    """What the head says, as `expected_goals`: at earlier dates, at those of clients to learn from, and now."""

    past: DataFrame
    learnt: DataFrame
    now: DataFrame


def _end(events: DataFrame, time: TimeSpec) -> Column:
    """The end of the data as a clock in their zone shows it."""
    return local(fixed_instant(end_of_data(events, time).time, time.zone), time.zone)


def _expected(
    said: Said,
    bought: DataFrame,
    regions: DataFrame,
    *,
    as_of: Column,
    conf: StockConf,
    keep: Keep,
) -> DataFrame:
    """as_of, region, category, expected, low, high, pace, season."""
    past = said.past
    paces, came = activity(bought, past, conf), outcomes(bought, past, conf)
    shares = settled(learn_shares(said.learnt, paces, came), keep)
    dates = learning_dates(past)
    held_out = held_out_cells(said, paces, came, regions, dates)
    learnt = settled(
        held_out.join(observed(came, regions), on=list(_PLACE), how="left").fillna(0, subset=["observed"]), keep
    )
    forecast = cells(said.now, activity(bought, said.now, conf), shares, regions)
    seasonal = with_season(forecast, learnt if conf.season else learnt.limit(0), as_of)
    return with_interval(seasonal, dispersion(learnt), len(dates))


def _observed_too(
    forecast: DataFrame, now: DataFrame, bought: DataFrame, regions: DataFrame, conf: StockConf, *, end: Column
) -> DataFrame:
    """Adds `before` and `observed` double, null where the days are not over."""
    with_before = with_rivals(forecast, bought, now, regions, conf)
    seen = observed(outcomes(bought, now, conf), regions)
    over = F.col("as_of") + F.make_dt_interval(F.lit(conf.horizon)) <= end
    joined = with_before.join(seen, on=list(_PLACE), how="left")
    return joined.withColumn("observed", F.when(over, F.coalesce("observed", F.lit(0)).cast("double")))


def purchases(events: DataFrame, conf: StockConf, category: str) -> DataFrame:
    """client_id, event_time, category of each purchase; `category` names the column that holds it."""
    kept = events.where(str(conf.where)).where(F.col(category).isNotNull())
    return kept.select("client_id", "event_time", F.col(category).alias("category"))


def activity(bought: DataFrame, rows: DataFrame, conf: StockConf) -> DataFrame:
    """Expected purchases of each client in the horizon if he goes on as before.

    Returns:
        client_id, as_of, pace (purchases); one row for each of `rows`.
    """
    asked = rows.select(*_KEY).distinct()
    start = F.col("as_of") - F.make_dt_interval(F.lit(conf.window))
    seen = bought.join(asked, on="client_id", how="inner")
    seen = seen.where((F.col("event_time") < F.col("as_of")) & (F.col("event_time") >= start))
    counted = seen.groupBy(*_KEY).count()
    made = F.coalesce("count", F.lit(0)) + F.lit(_PRIOR)
    pace = made * (conf.horizon / conf.window)
    return asked.join(counted, on=list(_KEY), how="left").select(*_KEY, pace.alias("pace"))


def outcomes(bought: DataFrame, rows: DataFrame, conf: StockConf) -> DataFrame:
    """client_id, as_of, category, count: what each client bought in the horizon; absent where nothing."""
    asked = rows.select(*_KEY).distinct()
    end = F.col("as_of") + F.make_dt_interval(F.lit(conf.horizon))
    seen = bought.join(asked, on="client_id", how="inner")
    seen = seen.where((F.col("event_time") >= F.col("as_of")) & (F.col("event_time") < end))
    return seen.groupBy(*_KEY, "category").count()


def expected_goals(scores: DataFrame, task: Task) -> DataFrame:
    """client_id, as_of, goal, weight: the probability of each goal, one row a client and goal."""
    entries = F.array(
        *(
            F.struct(F.lit(name).alias("goal"), F.col("probabilities")[place].cast("double").alias("weight"))
            for place, name in enumerate(task.class_names)
        )
    )
    return scores.select(*_KEY, F.explode(entries).alias("_one")).select(*_KEY, "_one.*")


def learn_shares(goals: DataFrame, paces: DataFrame, counted: DataFrame) -> DataFrame:
    """Purchases of each category for one purchase of pace, given each goal; soft counts over the learning dates.

    Returns:
        goal, category, share.
    """
    weighted = goals.join(paces, on=list(_KEY), how="inner")
    total = weighted.groupBy("goal").agg(F.sum(F.col("weight") * F.col("pace")).alias("total"))
    each = goals.join(counted, on=list(_KEY), how="inner").groupBy("goal", "category")
    made = each.agg(F.sum(F.col("weight") * F.col("count")).alias("made"))
    return made.join(F.broadcast(total), on="goal").select(
        "goal", "category", (F.col("made") / F.col("total")).alias("share")
    )


def cells(goals: DataFrame, paces: DataFrame, shares: DataFrame, regions: DataFrame) -> DataFrame:
    """Expected purchases by date, region and category.

    Args:
        goals: from `expected_goals`.
        paces: from `activity`.
        shares: from `learn_shares`.
        regions: client_id, region.

    Returns:
        as_of, region, category, expected, pace (purchases of the region's clients if they go on as before).
    """
    placed = goals.join(paces, on=list(_KEY), how="inner").join(regions, on="client_id", how="inner")
    # Goals are summed up by region first: a handful of rows meets the shares, not every client.
    mass = placed.groupBy("as_of", "region", "goal").agg(F.sum(F.col("weight") * F.col("pace")).alias("mass"))
    spread = mass.join(F.broadcast(shares), on="goal", how="inner")
    return spread.groupBy("as_of", "region", "category").agg(
        F.sum(F.col("mass") * F.col("share")).alias("expected"), F.sum("mass").alias("pace")
    )


def learning_dates(goals: DataFrame) -> list[dt.datetime]:
    """The distinct `as_of` of rows, oldest first."""
    return [row["as_of"] for row in goals.select("as_of").distinct().orderBy("as_of").collect()]


def held_out_cells(
    said: Said, paces: DataFrame, counted: DataFrame, regions: DataFrame, dates: Sequence[dt.datetime]
) -> DataFrame:
    """`cells` of each learning date by the shares of the other ones: they err as a forecast of a month not seen does.

    Shares fit the months that they were learnt from, whose errors would make intervals that no new month keeps to.
    With a single learning date there is no other one, and its own shares are taken.

    Args:
        said: its `past` are the cells, from its `learnt` come the shares.
        paces: from `activity`.
        counted: from `outcomes`.
        regions: client_id, region.
        dates: from `learning_dates` of the past.
    """
    if len(dates) == 1:
        return cells(said.past, paces, learn_shares(said.learnt, paces, counted), regions)
    parts = []
    for date in dates:
        here = F.col("as_of") == F.lit(date)
        parts.append(
            cells(said.past.where(here), paces, learn_shares(said.learnt.where(~here), paces, counted), regions)
        )
    return reduce(DataFrame.unionByName, parts)


def observed(counted: DataFrame, regions: DataFrame) -> DataFrame:
    """as_of, region, category, observed: what came."""
    return (
        counted.join(regions, on="client_id", how="inner")
        .groupBy("as_of", "region", "category")
        .agg(F.sum("count").alias("observed"))
    )


def dispersion(learnt: DataFrame) -> DataFrame:
    """How much further than a Poisson count a category strays, from the cells of the learning dates (quasi-Poisson).

    Args:
        learnt: expected and observed by as_of, region, category.

    Returns:
        category, phi: the mean of (observed - expected)^2 / expected, at least 1.
    """
    strayed = F.pow(F.col("observed") - F.col("expected"), 2) / F.greatest("expected", F.lit(0.1))
    return learnt.groupBy("category").agg(F.greatest(F.avg(strayed), F.lit(1.0)).alias("phi"))


def with_season(forecast: DataFrame, learnt: DataFrame, as_of: Column) -> DataFrame:
    """Corrects each category by what came for what was expected in the same month of earlier years.

    All regions have one season, since a cell's own would be mostly chance. Without a learning date in that month
    nothing changes.

    Args:
        forecast: from `cells`.
        learnt: expected and observed of the learning dates by as_of, region, category, from `held_out_cells`: by the
            shares of other months, which do not know of the season.
        as_of: the date of the forecast.

    Returns:
        `forecast` with `expected` multiplied, and `season`, the factor.
    """
    earlier = F.year("as_of") < F.year(as_of)
    alike = learnt.where(earlier & (F.month("as_of") == F.month(as_of)))
    prior = F.lit(_SEASON_PRIOR)
    factor = (F.sum("observed") + prior) / (F.sum("expected") + prior)
    factors = alike.groupBy("category").agg(factor.alias("season"))
    joined = forecast.join(F.broadcast(factors), on="category", how="left")
    season = F.coalesce("season", F.lit(1.0))
    return joined.withColumns({"season": season, "expected": F.col("expected") * season})


def with_interval(forecast: DataFrame, strays: DataFrame, dates: int) -> DataFrame:
    """Adds `low` and `high`, the 90 % interval: expected -+ t sqrt(phi x expected).

    The cells of a date stray together (a cold month is cold everywhere), so `phi` is known from as many draws as there
    are learning dates: t is the quantile of Student's distribution with that many degrees of freedom, 2.9 for two
    dates, 1.8 for twelve.

    Args:
        forecast: from `cells`.
        strays: from `dispersion`.
        dates: number of the learning dates that `strays` is from.
    """
    from scipy import stats

    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, dates))
    reach = F.lit(quantile) * F.sqrt(F.coalesce("phi", F.lit(1.0)) * F.col("expected"))
    joined = forecast.join(F.broadcast(strays), on="category", how="left")
    return joined.withColumns(
        {"low": F.greatest(F.col("expected") - reach, F.lit(0.0)), "high": F.col("expected") + reach}
    ).drop("phi")


def with_rivals(
    forecast: DataFrame, bought: DataFrame, rows: DataFrame, regions: DataFrame, conf: StockConf
) -> DataFrame:
    """Adds `before`: purchases of the window before as_of, scaled to the horizon, which is the frequency rule."""
    asked = rows.select(*_KEY).distinct()
    start = F.col("as_of") - F.make_dt_interval(F.lit(conf.window))
    seen = bought.join(asked, on="client_id", how="inner").join(regions, on="client_id", how="inner")
    seen = seen.where((F.col("event_time") < F.col("as_of")) & (F.col("event_time") >= start))
    scaled = F.count(F.lit(1)) * F.lit(conf.horizon / conf.window)
    counted = seen.groupBy("as_of", "region", "category").agg(scaled.alias("before"))
    joined = forecast.join(counted, on=list(_PLACE), how="left")
    return joined.withColumn("before", F.coalesce("before", F.lit(0.0)))


def reason_in_words(conf: StockConf) -> Column:
    """Why a number is expected: against the pace of the days before, and what of it is the season."""
    by_goals = 100 * (F.col("expected") / F.col("season") / F.greatest("before", F.lit(0.1)) - 1)
    by_season = 100 * (F.col("season") - 1)
    return F.concat(
        F.format_number("before", 0),
        F.lit(f" if the last {conf.window} days went on; "),
        _signed(by_goals),
        F.lit(" % by the goals that clients of the region are likely to have and what such clients bought before"),
        F.when(
            F.round(by_season) != 0,
            F.concat(F.lit("; "), _signed(by_season), F.lit(" % by the season, as in this month of earlier years")),
        ).otherwise(F.lit("")),
    )


def _signed(percent: Column) -> Column:
    return F.concat(F.when(percent >= 0, F.lit("+")).otherwise(F.lit("")), F.format_number(percent, 0))


def backtest(forecast: DataFrame) -> dict[str, Any]:
    """Error of the forecast where the outcome is known, beside its rivals.

    The frequency rule says that the window goes on; chance spreads the region's pace evenly over the categories.

    Args:
        forecast: expected, low, high, before, pace, observed by as_of, region, category.

    Returns:
        cells, purchases, for each method the sum of absolute errors over the purchases (`wape`), gain of the forecast
        over each rival (share of the rival's error that it saves), and coverage of the intervals.
    """
    known = forecast.where("observed IS NOT NULL")
    categories = F.lit(known.select("category").distinct().count())
    rivals = {"scores": F.col("expected"), "frequency": F.col("before"), "random": F.col("pace") / categories}
    errors = [F.sum(F.abs(F.col("observed") - said)).alias(name) for name, said in rivals.items()]
    inside = F.col("observed").between(F.col("low"), F.col("high"))
    row = known.agg(
        F.count(F.lit(1)).alias("cells"),
        F.sum("observed").alias("purchases"),
        F.avg(inside.cast("double")).alias("coverage"),
        *errors,
    ).first()
    if row is None or not row["cells"] or not row["purchases"]:
        return {"cells": 0}
    wape = {name: row[name] / row["purchases"] for name in rivals}
    return {
        "cells": row["cells"],
        "purchases": int(row["purchases"]),
        "coverage": row["coverage"],
        "wape": wape,
        "gain": {name: 1 - wape["scores"] / wape[name] if wape[name] else 0.0 for name in ("frequency", "random")},
    }
