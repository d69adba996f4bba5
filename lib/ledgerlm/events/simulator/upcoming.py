"""True probabilities of the next category at the examples of `ledgerlm.events.next_category`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.simulator.categories import next_probabilities, ring_place
from ledgerlm.events.simulator.clients import SimulatorConf, simulate_clients
from ledgerlm.events.simulator.world import World, load_world


def knows_classes(classes: Mapping[str, Sequence[str]], conf: SimulatorConf) -> bool:
    """Whether every description of the classes is a purchase category, of which alone the truth is told."""
    known = {category.description for category in load_world(conf.world).categories}
    return all(text in known for texts in classes.values() for text in texts)


def true_next_category(
    examples: DataFrame, events: DataFrame, classes: Mapping[str, Sequence[str]], conf: SimulatorConf
) -> DataFrame:
    """The best that can be known before a purchase in the set: its class, given the traits and the last purchase.

    It is told neither the day of the purchase nor whether it belongs to the trip of the last one, as no history says
    either: month and `intent_days` are those of `as_of`, weekends have their mean share of the trips.

    Args:
        examples: client_id and as_of; clients of other banks are left out.
        events: the events table.
        classes: class name to descriptions; see `knows_classes`.
        conf: the bank, as it was simulated.

    Returns:
        One row an example of this bank: client_id, as_of, probabilities (of the classes in sorted order, sum 1).
    """
    world = load_world(conf.world)
    hidden = simulate_clients(events.sparkSession, conf).drop("purchases")
    bought = events.where(F.startswith("event_id", F.lit("P"))).select("client_id", "event_time", "event_seq", "mcc")
    longest = F.lit(world.purchases.longest_trip)
    weekend = F.avg(F.dayofweek("event_time").isin(1, 7).cast("double")).alias("weekend")
    share = bought.where(F.pmod("event_seq", longest) == 0).agg(weekend)
    asked = examples.select("client_id", "as_of").distinct().join(hidden.select("client_id"), on="client_id")
    past = bought.join(asked, on="client_id", how="inner")
    last = (
        past.where(F.col("event_time") < F.col("as_of"))
        .groupBy("client_id", "as_of")
        .agg(F.max(F.struct("event_time", "event_seq", "mcc")).alias("last"))
        .select("client_id", "as_of", F.col("last.event_seq").alias("event_seq"), F.col("last.mcc").alias("mcc"))
    )
    told = asked.join(last, on=["client_id", "as_of"], how="left").join(hidden, on="client_id", how="inner")
    told = told.crossJoin(F.broadcast(share))
    # Before a client's first purchase no trip goes on.
    place = F.coalesce(F.pmod("event_seq", longest), longest - 1)
    start = conf.as_of - dt.timedelta(days=world.purchases.intent_days)
    probabilities = next_probabilities(
        world,
        previous=F.coalesce(ring_place(world, conf.bank, F.col("mcc")), F.lit(0)),
        place=place,
        month=F.month("as_of"),
        weekend=F.col("weekend"),
        recent=(F.to_date("as_of") >= F.lit(start)).cast("double"),
    )
    of_ring = told.select("client_id", "as_of", probabilities.alias("ring"))
    parts = F.array(*(_sum_of(world, classes[name]) for name in sorted(classes)))
    return of_ring.withColumn("parts", parts).select("client_id", "as_of", _normalised("parts").alias("probabilities"))


def _sum_of(world: World, texts: Sequence[str]) -> Column:
    """Probability of the categories with these descriptions."""
    places = [at for at, category in enumerate(world.categories) if category.description in texts]
    return sum((F.get("ring", F.lit(at)) for at in places), F.lit(0.0))


def _normalised(name: str) -> Column:
    total = F.aggregate(name, F.lit(0.0), lambda left, right: left + right)
    return F.transform(name, lambda part: part / total)
