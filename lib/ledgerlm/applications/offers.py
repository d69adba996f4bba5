"""Offers and what they are worth to a client: probability of the goal, expected value, and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.events.condition import Condition
from ledgerlm.events.goals import GoalRule, with_goal

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.heads.tasks import Task

_KEY = ("client_id", "as_of")
# Weight of all clients' shares beside a client's own events in the frequency rule, in events.
_PRIOR = 5.0


class Offer(Conf):
    """Something that can be offered to a client."""

    name: str = Field(min_length=1, description="name of the offer")
    goal: str = Field(description="class of the task that the offer serves")
    text: str = Field("", description="what is offered, in words")
    acceptance: float = Field(1.0, gt=0, le=1, description="share of clients with this goal who accept")
    value: float = Field(gt=0, description="worth of an acceptance to the bank, currency units")
    cost: float = Field(0.0, ge=0, description="cost of making the offer to one client, currency units")
    eligible: Condition | None = Field(None, description="SQL condition over client columns: to whom it may be made")


class EvidenceConf(Conf):
    """What of the recent past speaks for a goal: named in the reasons, and all that the frequency rule knows."""

    rules: tuple[GoalRule, ...] = Field(min_length=1, description="goals, named as the classes of the task")
    days: int = Field(90, ge=1, description="days before as_of in which events count")


def check_goals(offers: Sequence[Offer], task: Task) -> None:
    """Whether each offer serves a class of the task, under a name of its own.

    Raises:
        ConfigError: naming the offer and the nearest class.
    """
    names = [offer.name for offer in offers]
    if len(set(names)) < len(names):
        raise ConfigError(f"offers {', '.join(names)}: names must differ")
    for offer in offers:
        if offer.goal not in task.class_names:
            raise ConfigError(
                f"offer {offer.name}: no class '{offer.goal}' of {task.name}: {nearest(offer.goal, task.class_names)}"
            )


def goal_counts(
    events: DataFrame, rows: DataFrame, evidence: EvidenceConf, dictionaries: DataFrame | None
) -> DataFrame:
    """How often each client did what speaks for each goal, shortly before as_of.

    Args:
        events: the `events` table.
        rows: client_id, as_of.
        evidence: goals and days.
        dictionaries: the `dictionaries` table, if there is one.

    Returns:
        client_id, as_of, `counts` map<string, bigint> (goal to events; a goal without any is absent), for every row.
    """
    asked = rows.select(*_KEY).distinct()
    fitting = with_goal(events, evidence.rules, dictionaries).where("goal IS NOT NULL")
    names = F.array(*(F.lit(rule.name) for rule in evidence.rules))
    start = F.col("as_of") - F.make_dt_interval(F.lit(evidence.days))
    recent = fitting.select("client_id", "event_time", F.get(names, F.col("goal")).alias("goal"))
    recent = recent.join(asked, on="client_id", how="inner")
    recent = recent.where((F.col("event_time") < F.col("as_of")) & (F.col("event_time") >= start))
    each = recent.groupBy(*_KEY, "goal").count()
    entries = F.map_from_entries(F.collect_list(F.struct("goal", "count")))
    counted = each.groupBy(*_KEY).agg(entries.alias("counts"))
    joined = asked.join(counted, on=list(_KEY), how="left")
    return joined.withColumn("counts", F.coalesce("counts", F.create_map().cast("map<string, bigint>")))


def candidates(
    scores: DataFrame, task: Task, offers: Sequence[Offer], counts: DataFrame, evidence: EvidenceConf
) -> DataFrame:
    """Every offer for every scored client, with its worth by the scores and by the frequency rule.

    The frequency rule knows a client's recent events alone: the share of those that speak for the goal, drawn towards
    the share among all clients as if by five events more.

    Args:
        scores: client_id, as_of, probabilities of one head.
        task: what the scores are about.
        offers: the catalogue.
        counts: from `goal_counts`.
        evidence: the same as for `counts`.

    Returns:
        client_id, as_of, offer, goal, probability, lift (against the mean of all scored clients), value (expected: p x
        acceptance x value - cost), frequency_value (the same by the frequency rule), payoff (acceptance x value, what
        a hit is worth on average), cost, evidence (events that speak for the goal); key (client_id, as_of, offer).
    """
    check_goals(offers, task)
    rows = scores.select(*_KEY, F.col("probabilities").cast("array<double>").alias("_p"))
    rows = rows.join(counts, on=list(_KEY), how="inner").crossJoin(F.broadcast(_means(rows, counts, task, evidence)))
    events = F.aggregate(F.map_values("counts"), F.lit(0).cast("bigint"), lambda one, other: one + other)
    each = F.array(*(_offer(offer, task.class_names.index(offer.goal)) for offer in offers))
    priced = rows.withColumn("_events", events).select(*_KEY, "_events", F.explode(each).alias("_offer"))
    flat = priced.select(*_KEY, "_events", "_offer.*")
    frequency = (F.col("evidence") + _PRIOR * F.col("_share")) / (F.col("_events") + _PRIOR)
    return flat.select(
        *_KEY,
        "offer",
        "goal",
        "probability",
        (F.col("probability") / F.col("_mean")).alias("lift"),
        (F.col("probability") * F.col("payoff") - F.col("cost")).alias("value"),
        (frequency * F.col("payoff") - F.col("cost")).alias("frequency_value"),
        "payoff",
        "cost",
        "evidence",
    )


def _means(rows: DataFrame, counts: DataFrame, task: Task, evidence: EvidenceConf) -> DataFrame:
    """One row: mean probability of each class, and share of each goal among the recent events of all clients."""
    means = rows.agg(F.array(*(F.avg(F.col("_p")[place]) for place in range(task.outputs))).alias("_means"))
    sums = [F.coalesce(F.sum(_count(rule.name)), F.lit(0)).alias(rule.name) for rule in evidence.rules]
    named = [part for rule in evidence.rules for part in (F.lit(rule.name), F.col(f"`{rule.name}`").cast("double"))]
    totals = counts.agg(*sums).select(F.create_map(*named).alias("_sums"))
    total = F.aggregate(F.map_values("_sums"), F.lit(0.0), lambda one, other: one + other)
    shares = F.transform_values("_sums", lambda _, count: count / F.greatest(total, F.lit(1.0)))
    return means.crossJoin(totals.select(shares.alias("_shares")))


def _count(goal: str) -> Column:
    return F.coalesce(F.try_element_at("counts", F.lit(goal)), F.lit(0).cast("bigint"))


def _offer(offer: Offer, place: int) -> Column:
    return F.struct(
        F.lit(offer.name).alias("offer"),
        F.lit(offer.goal).alias("goal"),
        F.col("_p")[place].alias("probability"),
        F.col("_means")[place].alias("_mean"),
        F.lit(offer.acceptance * offer.value).alias("payoff"),
        F.lit(offer.cost).alias("cost"),
        _count(offer.goal).alias("evidence"),
        F.coalesce(F.try_element_at("_shares", F.lit(offer.goal)), F.lit(0.0)).alias("_share"),
    )


def eligibility(offers: Sequence[Offer]) -> dict[str, Condition]:
    """Offer to its condition, for `policy.apply_policy`."""
    return {offer.name: offer.eligible for offer in offers if offer.eligible is not None}


def reason_in_words(offers: Sequence[Offer], days: int) -> Column:
    """Why a client gets an offer: the goal, how likely it is against the mean, the events behind it, the worth."""
    texts: Mapping[str, str] = {offer.name: offer.text for offer in offers}
    text = reduce(lambda rest, name: F.when(F.col("offer") == name, texts[name]).otherwise(rest), texts, F.lit(""))
    seen = F.when(F.col("evidence") == 1, F.lit("1 event")).otherwise(
        F.concat(F.col("evidence").cast("string"), F.lit(" events"))
    )
    return F.concat(
        F.lit("Next goal "), "goal",
        F.lit(": "), F.format_number(100 * F.col("probability"), 0), F.lit(" %, "),
        F.format_number("lift", 1), F.lit(" times the mean of all clients; "),
        seen, F.lit(f" of it in the last {days} days; expected worth "), F.format_number("value", 2),
        F.when(text == "", F.lit("")).otherwise(F.concat(F.lit(": "), text)),
    )  # fmt: skip
