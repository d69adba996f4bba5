"""Monthly life of an account: salary, rent, bills, savings, cash, fees, transfers, and contacts with the bank."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.simulator.calendar import Calendar
from ledgerlm.events.simulator.clients import SimulatorConf
from ledgerlm.events.simulator.draws import (
    add,
    bell,
    clip,
    floor_int,
    gathered,
    lookup,
    normal,
    sigmoid,
    uniform,
    weighted,
)
from ledgerlm.events.simulator.world import Item, World

NEVER = -30.0  # logit
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
TREND_FROM = 2 / 3  # of the window before as_of: from here trends grow, up to their full weight in the last month
AFTER_PURCHASES = 1 << 40  # event_seq of account events begins here


def account_events(clients: DataFrame, conf: SimulatorConf, world: World, calendar: Calendar) -> DataFrame:
    """The monthly payments and contacts of every month, the future part included.

    Args:
        clients: `simulate_clients`, with outcomes when the simulation has a future part.

    Returns:
        One row an event: the columns of `EVENT_COLUMNS`, unordered.
    """
    habits = clients.transform(_habits, conf, world)
    return habits.transform(_happened, conf, world).transform(_written, conf, world, calendar)


def _habits(clients: DataFrame, conf: SimulatorConf, world: World) -> DataFrame:
    """Adds `monthly` and `trend`: for each item the client's logit of a month, and what the trend adds at the end."""
    leaves = F.col("will_churn").cast("double") if conf.future_months else F.lit(0.0)
    logits = [_monthly_logit(item) for item in world.items]
    trends = [weighted(item.monthly.trend) for item in world.items]
    habits = (
        clients.withColumn("leaves", leaves).transform(gathered, "monthly", logits).transform(gathered, "trend", trends)
    )
    return habits.select("client_id", "key", "income", "city", "leaves", "monthly", "trend")


def _monthly_logit(item: Item) -> Column:
    logit = F.lit(item.monthly.bias) + weighted(item.monthly.loadings)
    if item.holding is None:
        return logit
    holds = F.lit(item.holding.bias) + weighted(item.holding.loadings)
    return F.when(uniform(F.col("key"), f"holds/{item.key}") < sigmoid(holds), logit).otherwise(F.lit(NEVER))


def _happened(habits: DataFrame, conf: SimulatorConf, world: World) -> DataFrame:
    """One row an item and month in which it happens: adds `number`, `item` and `month`."""
    size, months = len(world.items), conf.months + conf.future_months
    slots = habits.withColumn("number", F.explode(F.sequence(F.lit(0), F.lit(size * months - 1))))
    placed = slots.withColumns({"item": F.pmod("number", F.lit(size)), "month": floor_int(F.col("number") / size)})
    start = conf.months * TREND_FROM
    growth = clip((F.col("month") + 1 - F.lit(start)) / (conf.months - start), 0.0, 1.0)
    logit = F.get("monthly", F.col("item")) + growth * F.get("trend", F.col("item"))
    gone = F.when(F.col("month") >= conf.months, F.lit(4.0) * F.col("leaves")).otherwise(F.lit(0.0))
    return placed.filter(uniform(F.col("key"), "happens", F.col("number")) < sigmoid(logit - gone))


def _written(happened: DataFrame, conf: SimulatorConf, world: World, calendar: Calendar) -> DataFrame:
    """The finished event."""
    key, item, number = F.col("key"), F.col("item"), F.col("number")
    bank, items = world.banks[conf.bank], world.items
    fixed = lookup([max(thing.day, 1) - 1 for thing in items], item)
    any_day = floor_int(uniform(key, "day", number) * 28)
    day_of_month = F.when(lookup([thing.day == 0 for thing in items], item), any_day).otherwise(fixed)
    hour = F.abs(lookup([thing.hour for thing in items], item) + F.lit(1.5) * bell(key, "hour", number))
    day = calendar.month_start(F.col("month")) + day_of_month
    dated = add(happened, {"day": day, "second": floor_int(hour * 3600)})
    told = add(dated, {"paid": _amount(conf, world), "note": F.nullif(_note(world, calendar), F.lit(""))}, group=1)
    pays = lookup([thing.amount is not None for thing in items], item)
    is_cash = lookup([thing.type == "cash" for thing in items], item)
    payee = F.nullif(_client_text([thing.payees for thing in items], uniform(key, "payee", item)), F.lit(""))
    return told.select(
        "client_id",
        F.concat(F.lit("M"), F.col("month").cast("string"), F.lit("-"), item.cast("string")).alias("event_id"),
        calendar.at(F.col("day"), F.col("second")).alias("event_time"),
        (F.lit(AFTER_PURCHASES) + number).alias("event_seq"),
        F.when(pays, F.col("paid")).cast("decimal(18,4)").alias("amount"),
        F.when(pays, F.lit(bank.currency)).alias("currency"),
        lookup([getattr(world.types[thing.type], conf.bank) for thing in items], item).alias("type"),
        lookup([thing.category.codes[conf.bank] if thing.category else None for thing in items], item).alias("mcc"),
        F.when(is_cash, F.concat(payee, F.lit(" "), F.col("city"))).otherwise(payee).alias("merchant"),
        lookup([thing.channel for thing in items], item).alias("channel"),
        F.when(is_cash, F.col("city")).alias("city"),
        F.lit(bank.country).alias("country"),
        "note",
    )


def _amount(conf: SimulatorConf, world: World) -> Column:
    """Fixed part and share of the income, with the client's and the event's own factor; cents."""
    amounts = [item.amount for item in world.items]
    level = world.banks[conf.bank].price_level
    item, key = F.col("item"), F.col("key")
    fixed, share, spread, noise = (
        lookup([float(getattr(amount, name)) if amount else 0.0 for amount in amounts], item)
        for name in ("fixed", "share", "spread", "noise")
    )
    factor = F.exp(spread * normal(key, "amount/client", item) + noise * bell(key, "amount/event", F.col("number")))
    return F.round((fixed * level + share * F.col("income")) * factor, 2)


def _note(world: World, calendar: Calendar) -> Column:
    key, number = F.col("key"), F.col("number")
    text = _client_text([item.notes for item in world.items], uniform(key, "note", number))
    reference = (F.lit(1000) + floor_int(uniform(key, "reference", F.col("item")) * 90_000)).cast("string")
    month = lookup(MONTHS, calendar.month(F.col("day")) - 1)
    return F.replace(F.replace(text, F.lit("{n}"), reference), F.lit("{month}"), month)


def _client_text(texts: Sequence[Sequence[str]], draw: Column) -> Column:
    """One of the texts of the row's item, by a uniform draw."""
    item = F.col("item")
    starts = [sum(len(earlier) for earlier in texts[:at]) for at in range(len(texts))]
    place = lookup(starts, item) + floor_int(draw * lookup([len(group) for group in texts], item))
    return lookup([text for group in texts for text in group], place)
