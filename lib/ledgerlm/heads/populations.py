"""Adapts probabilities to populations whose classes come up in other shares than where a head learnt.

By Bayes' rule a head that learnt where class k has the share q_k, and is asked where it has the share s_k, should say
p_k s_k / q_k, normalised (Saerens, Latinne and Decaestecker 2002, "Adjusting the Outputs of a Classifier to New a
Priori Probabilities", section 2). They find s from the outputs themselves; here it is counted in the events that the
population has behind it, which need no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, HeadRef, nearest
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.condition import Condition
from ledgerlm.events.goals import GoalRule, with_goal
from ledgerlm.heads.publish import scored
from ledgerlm.heads.scoring import normalised, scored_rows
from ledgerlm.heads.tasks import Task
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEY = ("client_id", "as_of")
_SHOWN = 50  # populations named in the report, those with the most rows


class PopulationConf(Conf):
    """Which clients make up a population, and which of their events say how often each class comes up."""

    symbols: tuple[GoalRule, ...] = Field(
        (), description="what an event counts as, one for each class; left out, as the label stage has it"
    )
    by: tuple[str, ...] = Field(
        (), description="client attributes that tell populations apart (a bank, say); none: all are one, over time"
    )
    days: int | None = Field(None, ge=1, description="days before as_of whose events are counted; left out, all")
    weight: float = Field(
        50.0, gt=0, description="events that the shares of where it was learnt count as, beside those of a population"
    )


class AdaptConf(PopulationConf):
    """Settings of the adapt job."""

    task: str = Field(description="binary or multiclass task in labels")
    methods: dict[str, HeadRef] = Field(
        min_length=1, description="name of the adapted head -> STAGE that scored, or STAGE:NAME for one of its heads"
    )
    where: Condition = Field(
        Condition("split = 'train'"),
        description="SQL condition over columns of clients and labels: the rows learnt from",
    )


def adapt(
    task: Task,
    name: str,
    heads: Mapping[str, str],
    *,
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    scores: DataFrame,
    dictionaries: DataFrame | None,
    conf: AdaptConf,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Moves the scores of some heads by the class shares of each row's population.

    Args:
        task: binary or multiclass.
        name: of the stage; the adapted heads are called `NAME/METHOD`.
        heads: method -> id of the head that scored.
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        scores: the `scores` table.
        dictionaries: the `dictionaries` table, if there is one.
        conf: populations, the rows learnt from, and the symbols (they must be given here).
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `publish.scored`. rows_in: the scores of these heads; one of an unknown client has no population, so that
        the rows do not balance. Facts: `heads`, and `populations`: name, rows, shares and ratios by class.

    Raises:
        ConfigError: see `class_counts`.
        DataError: the condition leaves no row learnt from.
    """
    own = scores.where((F.col("task") == task.name) & F.col("head_id").isin(list(heads.values())))
    known = labels.where(F.col("task") == task.name).drop("run_id")
    described = known.join(clients.drop("run_id"), on="client_id", how="inner")
    learnt = conf.where.rows(described).select(*_KEY)
    if learnt.isEmpty():
        raise DataError(f"task {task.name}: no label where {conf.where}")
    asked = own.select(*_KEY).unionByName(learnt)
    counted = settled(class_counts(events, clients.drop("run_id"), asked, task, conf, dictionaries=dictionaries), keep)
    ratios = settled(with_ratios(counted, learnt, task, conf.weight), keep)  # for every method and the report
    said = {
        f"{name}/{method}": adapted(own.where(F.col("head_id") == head_id), ratios, task)
        for method, head_id in heads.items()
    }
    told = [{"head_id": one, "name": one.removeprefix(f"{name}/"), "task": task.name} for one in said]
    made = scored(said, told, keep=keep, progress=progress, text="Adapting")
    rows = {row["head_id"]: row["count"] for row in own.groupBy("head_id").count().toLocalIterator()}
    facts = {**made.facts, "populations": _populations(ratios, task)}
    return replace(made, rows_in=sum(rows.get(head_id, 0) for head_id in heads.values()), facts=facts)


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
