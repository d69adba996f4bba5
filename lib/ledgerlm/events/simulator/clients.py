"""Simulated clients: hidden traits, tastes, places and shopping volume, one row each.

Every trait is a function of hashed draws, so a client is the same row whatever the partitioning, and no event before
as_of depends on a label: labels are drawn beside the events from the same traits (see `labels`).
"""

from __future__ import annotations

import datetime as dt
import math
import zlib
from collections.abc import Sequence

from pydantic import Field, model_validator
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.config import Conf, FileName
from ledgerlm.events.simulator.draws import (
    add,
    clip,
    cumulated,
    floor_int,
    gathered,
    lookup,
    normal,
    sigmoid,
    trait,
    uniform,
    weighted,
)
from ledgerlm.events.simulator.world import TRAITS, Bank, World, load_world

ATTRIBUTES = ("bank", "region", "tenure_years", "package", "campaign_group")
PACKAGES = ("basic", "classic", "plus", "premium")
ACCOUNT_EVENTS_A_MONTH = 9.0  # mean monthly payments and contacts of a client of the shipped world
DERIVED = ("age", "kids")  # traits with a formula of their own
INCOME = 2000.0  # monthly income of a mean client, home currency units at price level 1


class SimulatorConf(Conf):
    """One simulated bank."""

    bank: Bank = Field(default="A", description="A or B: other clients, merchants, cities, currency and codes")
    clients: int = Field(default=3000, ge=1, description="clients")
    purchases: float = Field(default=80.0, gt=0, description="mean card purchases of a client before as_of")
    tail: float = Field(default=0.7, ge=0, description="log deviation of the purchases between clients")
    heavy_share: float = Field(
        default=0.002, ge=0, le=1, description="share of clients who purchase heavy_factor times as much"
    )
    heavy_factor: float = Field(default=20.0, ge=1, description="how much more they purchase")
    most_purchases: int = Field(default=5_000_000, ge=1, description="most purchases of one client before as_of")
    months: int = Field(default=12, ge=1, description="months of history before as_of")
    future_months: int = Field(default=0, ge=0, description="months after as_of, in which the labels come true")
    as_of: dt.date = Field(dt.date(2025, 1, 1), description="day before which features end (UTC midnight)")
    seed: int = Field(default=42, description="seed of every draw")
    rows_per_partition: int = Field(default=1_000_000, ge=1000, description="events that one Spark task makes, about")
    world: FileName = Field(
        default=FileName("simulator/world.yaml"), description="file with everything else the generator knows"
    )

    @model_validator(mode="after")
    def _every_month_has_it(self) -> SimulatorConf:
        if self.as_of.day > 28:
            raise ValueError(f"as_of must be on day 1 to 28 of a month, not {self.as_of}")
        return self

    @property
    def expected_events(self) -> float:
        """About how many events the simulation makes."""
        months = self.months + self.future_months
        return self.clients * (self.purchases * months / self.months + ACCOUNT_EVENTS_A_MONTH * months)


def benchmark_conf(events: int, *, seed: int = 42) -> SimulatorConf:
    """A bank of about `events` events with a long-tailed mix of lengths, for benchmarks."""
    conf = SimulatorConf(tail=1.0, heavy_share=0.005, heavy_factor=30.0, seed=seed)
    return conf.model_copy(update={"clients": max(1, round(events * conf.clients / conf.expected_events))})


def simulate_clients(spark: SparkSession, conf: SimulatorConf) -> DataFrame:
    """Makes the clients of one bank.

    Args:
        spark: the session; there is no input frame.
        conf: the bank.

    Returns:
        One row a client, unordered: `client_id`, the known attributes `ATTRIBUTES`, and hidden columns: `key` (the hash
        that all draws start from), `trait_*` and `wish_*` (mean 0, deviation about 1), `age` (years), `income` (of a
        month), `city`, `taste` and `goal` (running sums of the weights of categories and goals), `purchases`
        (before as_of).
    """
    world = load_world(conf.world)
    tasks = max(2, math.ceil(conf.expected_events / conf.rows_per_partition))
    numbered = spark.range(0, conf.clients, 1, tasks)
    bank = zlib.crc32(f"{conf.bank}/{conf.seed}".encode())
    keyed = numbered.select(
        F.concat(F.lit(conf.bank), F.lpad(F.col("id").cast("string"), 10, "0")).alias("client_id"),
        F.xxhash64(F.lit(conf.seed), F.lit(bank), F.col("id")).alias("key"),
    )
    return (
        keyed.transform(_with_traits, world).transform(_with_places, world, conf).transform(_with_choices, world, conf)
    )


def known_attributes(clients: DataFrame) -> DataFrame:
    """What the bank itself knows of its clients: `client_id` and `ATTRIBUTES` as strings, one row a client."""
    return clients.select("client_id", *(F.col(name).cast("string").alias(name) for name in ATTRIBUTES))


def _with_traits(keyed: DataFrame, world: World) -> DataFrame:
    key = F.col("key")
    # Triangular-like ages from 18 to 83; kids peak in mid-life.
    age = F.lit(18.0) + F.lit(65.0) * (F.lit(0.7) * uniform(key, "age") + F.lit(0.3) * uniform(key, "age/2"))
    plain = {f"trait_{name}": normal(key, name) for name in TRAITS if name not in DERIVED}
    wishes = {f"wish_{goal}": normal(key, f"wish/{goal}") for goal in world.tasks.next_goal.classes}
    aged = add(keyed, {"age": age} | plain | wishes)
    middle = F.lit(1.0) - F.pow((F.col("age") - F.lit(40.0)) / F.lit(14.0), F.lit(2.0))
    kids = F.lit(0.1) + F.lit(0.9) * clip(middle, -1.5, 1.0) + F.lit(0.5) * normal(key, "kids")
    return aged.withColumns(
        {
            "trait_age": (F.col("age") - F.lit(50.5)) / F.lit(14.5),
            "trait_kids": kids,
            "mid_life": clip(middle, -2.0, 1.0),
        }
    )


def _with_places(clients: DataFrame, world: World, conf: SimulatorConf) -> DataFrame:
    bank, key = world.banks[conf.bank], F.col("key")
    places = [(region, city) for region, cities in bank.cities.items() for city in cities]
    place = floor_int(uniform(key, "place") * len(places))
    income = F.lit(INCOME * bank.price_level) * F.exp(F.lit(0.4) * trait("wealth") + F.lit(0.2) * F.col("mid_life"))
    # The attributes show their traits in coarse steps.
    tenure = F.round(clip(F.lit(10.0) + F.lit(5.0) * trait("tenure"), 0.0, 30.0)).cast("int")
    package = floor_int(clip(F.lit(2.0) + trait("package"), 0.0, 3.9))
    group = F.when(uniform(key, "treated") < F.lit(world.tasks.campaign.treated), "treated").otherwise("control")
    return clients.withColumn("place", place).select(
        "*",
        F.lit(conf.bank).alias("bank"),
        lookup([region for region, _ in places], F.col("place")).alias("region"),
        lookup([city for _, city in places], F.col("place")).alias("city"),
        tenure.alias("tenure_years"),
        lookup(PACKAGES, package).alias("package"),
        group.alias("campaign_group"),
        F.round(income, 2).alias("income"),
    )


def _with_choices(clients: DataFrame, world: World, conf: SimulatorConf) -> DataFrame:
    key = F.col("key")
    tastes = [
        F.exp(
            F.lit(category.weight[conf.bank])
            + weighted(category.loadings)
            + F.lit(0.5) * normal(key, f"taste/{category.key}")
        )
        for category in world.categories
    ]
    heavy = F.when(uniform(key, "heavy") < F.lit(conf.heavy_share), F.lit(conf.heavy_factor)).otherwise(F.lit(1.0))
    # The mean of exp(tail z) and of the heavy factor are divided out, so that `purchases` is the mean.
    mean = conf.purchases / math.exp(conf.tail**2 / 2) / (1 + conf.heavy_share * (conf.heavy_factor - 1))
    volume = F.lit(mean) * heavy * F.exp(F.lit(conf.tail) * normal(key, "volume"))
    goals = [F.exp(score) for score in goal_scores(world)]
    return (
        clients.transform(gathered, "taste", tastes)
        .transform(gathered, "goal", goals)
        .withColumns({"taste": cumulated(F.col("taste")), "goal": cumulated(F.col("goal"))})
        .withColumn("purchases", F.least(F.round(volume), F.lit(conf.most_purchases)).cast("long"))
        .drop("place", "mid_life")
    )


def goal_scores(world: World) -> Sequence[Column]:
    """The scores of the goals, whose softmax is the probability of each (see `Goals`)."""
    goals = world.tasks.next_goal
    return [
        F.lit(goals.slope) * (F.lit(0.8) * F.col(f"wish_{name}") + weighted(goal.loadings))
        for name, goal in goals.classes.items()
    ]


def planning() -> Column:
    """The probability that a client's trips walk forward along the ring of categories."""
    return sigmoid(F.lit(1.6) * trait("plan"))
