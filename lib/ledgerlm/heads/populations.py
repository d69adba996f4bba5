"""Adapts probabilities to populations whose classes come up in other shares than where a head learnt.

By Bayes' rule a head that learnt where class k has the share q_k, and is asked where it has the share s_k, should say
p_k s_k / q_k, normalised (Saerens, Latinne and Decaestecker 2002, "Adjusting the Outputs of a Classifier to New a
Priori Probabilities", section 2). They find s from the outputs themselves; here it is counted in the events that the
population has behind it, which need no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.events.goals import GoalRule, with_goal
from ledgerlm.heads.scoring import normalised, scored_rows
from ledgerlm.heads.tasks import Task

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEY = ("client_id", "as_of")


class PopulationConf(Conf):
    """Which clients make up a population, and which of their events say how often each class comes up."""

    symbols: tuple[GoalRule, ...] = Field(min_length=1, description="what an event counts as; one for each class")
    by: tuple[str, ...] = Field((), description="client attributes that tell populations apart; none: all are one")
    days: int | None = Field(None, ge=1, description="days before as_of that are counted; left out, all")
    weight: float = Field(
        50.0, gt=0, description="events that the shares of where it was learnt count as, beside those of a population"
    )


def class_counts(
    events: DataFrame,
    clients: DataFrame,
    rows: DataFrame,
    task: Task,
    conf: PopulationConf,
    *,
    dictionaries: DataFrame | None,
) -> DataFrame:
    """How often each class came up in the population of each row, on the days before that of its as_of.

    Counted by population and day first, so that what is summed up over time is a small table, whatever the number of
    events.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        rows: client_id, as_of.
        task: what is predicted; its class names are looked up among the symbols.
        conf: populations and symbols.
        dictionaries: the `dictionaries` table, if there is one.

    Returns:
        client_id, as_of, population (its attributes as JSON), counts array<double> in the order of the classes; one row
        for each of `rows` whose client is known.

    Raises:
        ConfigError: for an attribute that clients lack, or a class that no symbol counts.
    """
    rules = _rules(task, conf.symbols)
    if missing := [name for name in conf.by if name not in clients.columns]:
        raise ConfigError(f"by: clients have no '{missing[0]}': {nearest(missing[0], clients.columns)}")
    population = F.to_json(F.struct(*conf.by)) if conf.by else F.lit("{}")
    known = clients.select("client_id", population.alias("population"))
    asked = rows.select(*_KEY).distinct().join(known, on="client_id", how="inner").withColumn("day", F.to_date("as_of"))
    told = with_goal(events, rules, dictionaries).where("goal IS NOT NULL").join(known, on="client_id", how="inner")
    each = [F.count_if(F.col("goal") == place).alias(f"n{place}") for place in range(task.outputs)]
    daily = told.groupBy("population", F.to_date("event_time").alias("day")).agg(*each)
    days = daily.unionByName(asked.select("population", "day").distinct(), allowMissingColumns=True)
    order = Window.partitionBy("population").orderBy(F.unix_date("day"))
    past = order.rangeBetween(Window.unboundedPreceding if conf.days is None else -conf.days, -1)
    sums = [F.coalesce(F.sum(f"n{place}").over(past), F.lit(0)).cast("double") for place in range(task.outputs)]
    counted = days.select("population", "day", F.array(*sums).alias("counts")).distinct()
    return asked.join(counted, on=["population", "day"], how="left").select(*_KEY, "population", "counts")


def _rules(task: Task, symbols: Sequence[GoalRule]) -> list[GoalRule]:
    """The symbols that are classes, in the order of the classes."""
    named = {rule.name: rule for rule in symbols}
    if missing := [name for name in task.class_names if name not in named]:
        raise ConfigError(
            f"task {task.name}: no event says how often {', '.join(missing)} comes up; only classes that events are "
            f"counted as can be adapted; the symbols are {', '.join(named)}"
        )
    return [named[name] for name in task.class_names]


def with_ratios(counted: DataFrame, learnt: DataFrame, task: Task, weight: float) -> DataFrame:
    """By how much the probability of each class is to be multiplied in the population of each row.

    A population's shares are smoothed by those of the rows learnt from. Over these rows the logarithm of the ratio is
    zero in the mean, so that where a head has learnt nothing changes but the drift of time.

    Args:
        counted: from `class_counts`, of all rows.
        learnt: client_id, as_of of the rows that the heads learnt from, which are among them.
        task: what is predicted.
        weight: events that the shares of the rows learnt from count as.

    Returns:
        `counted` with shares array<double> of the population and ratios array<double>, in the order of the classes.
    """
    own = learnt.select(*_KEY).distinct()
    places = range(task.outputs)
    # One more of each, so that a class that never came up has a share.
    sums = F.array(*(F.sum(F.col("counts")[place]) + 1 for place in places))
    base = counted.join(own, on=list(_KEY), how="leftsemi").agg(normalised(sums).alias("_base"))
    smooth = F.zip_with("counts", "_base", lambda count, share: count + weight * share)
    shares = counted.crossJoin(F.broadcast(base)).withColumn("shares", normalised(smooth)).drop("_base")
    means = F.array(*(F.avg(F.ln(F.col("shares")[place])) for place in places))
    reference = shares.join(own, on=list(_KEY), how="leftsemi").agg(means.alias("_mean"))
    ratio = F.zip_with("shares", "_mean", lambda share, mean: F.exp(F.ln(share) - mean))
    return shares.crossJoin(F.broadcast(reference)).withColumn("ratios", ratio).drop("_mean")


def adapted(scores: DataFrame, ratios: DataFrame, task: Task) -> DataFrame:
    """Multiplies probabilities by the ratios of their population, and normalises them.

    Args:
        scores: client_id, as_of, probabilities array<float>; of one head.
        ratios: client_id, as_of, ratios, from `with_ratios`.
        task: what is predicted.

    Returns:
        Rows as other heads score them (`scoring.SCORED`), one for each of `scores` that has ratios; without reasons,
        since those of the head are for the class that it would have said.
    """
    joined = scores.join(ratios.select(*_KEY, "ratios"), on=list(_KEY), how="inner")
    moved = F.zip_with("probabilities", "ratios", lambda p, ratio: p.cast("double") * ratio)
    return scored_rows(joined.withColumn("_moved", normalised(moved)), "_moved", task)
