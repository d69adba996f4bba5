"""What simulated events show of the hidden traits: the sums that the generator's own model says are informative.

Events are read as any method reads them (fields, dictionaries, known attributes), but with the generator's knowledge of
what their codes and names stand for. Each event adds to a few named sums of its client (`client_sums`); `features_of`
makes shares and means of them. Neither sees a hidden column.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from ledgerlm.engines.frames import small_frame
from ledgerlm.events.simulator.account import TREND_FROM
from ledgerlm.events.simulator.calendar import Calendar, calendar_of
from ledgerlm.events.simulator.categories import goal_shares
from ledgerlm.events.simulator.clients import INCOME, PACKAGES, SimulatorConf
from ledgerlm.events.simulator.draws import lookup, sigmoid
from ledgerlm.events.simulator.labels import as_of_time
from ledgerlm.events.simulator.purchases import LAST_PART, TIERS, Part, seasonal
from ledgerlm.events.simulator.world import Bank, Item, World, load_world

Floats = NDArray[np.float64]

SLICES = 10  # of the window before as_of, in which trips are counted: each as likely for who does not slow down
PAYDAYS = (0, 1, 2, 4, 8)  # days after payday at which a group of days begins; the last one ends
PAUSE = (600, 3000)  # seconds between two purchases of one trip
SLOWLY = SLICES - round(SLICES * LAST_PART)  # the slice from which a decline shows
_UNIT = 2**20  # sums are of whole numbers of this part of 1, so that no order of adding changes them
_MEANING = (
    "type string, mcc string, text string, since double, until double, item string, shop int, tier int, "
    "usual double, hour double, online double"
)


def client_sums(events: DataFrame, attributes: DataFrame, conf: SimulatorConf) -> DataFrame:
    """The sums of each client.

    Args:
        events: of one bank; events from as_of on are left out.
        attributes: client_id, tenure_years, package of the same clients.
        conf: the bank.

    Returns:
        client_id, as_of, `sums` map<string, double> (those of `sum_names`; a sum that is left out is 0).
    """
    world = load_world(conf.world)
    calendar = calendar_of(conf, world.banks[conf.bank].country)
    past = events.where(F.col("event_time") < as_of_time(conf))
    # Told apart by the type, a literal of simulated purchases: Spark then makes no purchase to find the payments.
    purchase = F.col("type") == F.lit(getattr(world.types["purchase"], conf.bank))
    told = [
        past.where(purchase)
        .transform(_read, world, conf, calendar)
        .transform(_of_purchases, world, conf.bank, calendar),
        past.where(~purchase).transform(_read, world, conf, calendar).transform(_of_payments, calendar, conf),
        attributes.select("client_id", F.explode(_of_attributes()).alias("told")),
    ]
    rows = told[0].unionByName(told[1]).unionByName(told[2]).select("client_id", "told.*")
    summed = rows.groupBy("client_id", "name").agg(F.sum(F.round(F.col("value") * _UNIT).cast("long")).alias("value"))
    entry = F.struct("name", (F.col("value") / F.lit(float(_UNIT))).alias("value"))
    sums = summed.groupBy("client_id").agg(F.map_from_entries(F.collect_list(entry)).alias("sums"))
    return sums.select("client_id", as_of_time(conf).alias("as_of"), "sums")


def sum_names(world: World) -> tuple[str, ...]:
    """The sums that `client_sums` makes, in a fixed order."""
    categories, halves = range(len(world.categories)), range(4)
    single = ("purchases", "forward", "backward", "gaps", "gap", "gap_square", "hour", "online", "unsure", "price")
    return (
        *single,
        *(f"{kind}:{at}" for kind in ("before", "recent", "bought", "tier") for at in categories),
        *(f"trips:{at}" for at in range(SLICES)),
        *(f"payday:{at}" for at in range(len(PAYDAYS) - 1)),
        *(f"abroad:{half}" for half in halves),
        *(f"{item.key}:{part}" for item in world.items for part in ("early", "late", "paid", "amount")),
        "tenure_years",
        "package",
    )


# What a code and a name stand for


def _meanings(spark: SparkSession, world: World, bank: Bank) -> DataFrame:
    """What the bank's types, codes and names stand for, a row each; of a purchase the shop and tier, else the item."""
    level, letters = world.banks[bank].price_level, prefix_length(world, bank)
    purchase = str(getattr(world.types["purchase"], bank))
    rows: list[tuple[object, ...]] = [
        (
            *(purchase, category.codes[bank], _squeezed(name)[:letters], 0.0, 24.0, None, shop, tier),
            *(category.median * level, category.hour, category.online),
        )
        for shop, category in enumerate(world.categories)
        for tier, name in enumerate(category.merchants[bank])
    ]
    alike: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
    for item in world.items:
        for text in _texts(item):
            code = item.category.codes[bank] if item.category else ""
            alike[str(getattr(world.types[item.type], bank)), code, text].append(item)
    for key, items in alike.items():
        # Items that are named alike are told apart by the hour.
        ordered = sorted(items, key=lambda item: item.hour)
        cuts = [0.0, *((one.hour + two.hour) / 2 for one, two in pairwise(ordered)), 24.0]
        for item, (since, until) in zip(ordered, pairwise(cuts), strict=True):
            amount = item.amount
            usual = level * (abs(amount.fixed) + abs(amount.share) * INCOME) if amount else 1.0
            rows.append((*key, since, until, item.key, None, None, usual, item.hour, 0.0))
    return small_frame(spark, rows, _MEANING)


def prefix_length(world: World, bank: Bank) -> int:
    """Letters by which the names of the merchants of every category differ."""
    names = [[_squeezed(name) for name in category.merchants[bank]] for category in world.categories]
    return next(size for size in range(1, 100) if all(len({name[:size] for name in six}) == TIERS for six in names))


def _squeezed(name: str) -> str:
    return name.replace(" ", "")


def _texts(item: Item) -> Sequence[str]:
    """Where an item shows its name: in the merchant field, or else in the note."""
    return item.payees if any(item.payees) else item.notes


def _read(events: DataFrame, world: World, conf: SimulatorConf, calendar: Calendar) -> DataFrame:
    """What each event stands for, with `at` (seconds since the first day), `day` and `clock` (hours of the day)."""
    start = int(dt.datetime.combine(calendar.days[0], dt.time(), tzinfo=dt.UTC).timestamp())
    at = F.unix_seconds("event_time") - F.lit(start)
    purchase = F.col("type") == F.lit(getattr(world.types["purchase"], conf.bank))
    squeezed = F.regexp_replace(F.replace("merchant", F.lit(" "), F.lit("")), r"^(PAYGATE\*|SQ\*)", "")
    paid = F.coalesce(F.replace("merchant", F.concat(F.lit(" "), "city")), "merchant", "note", F.lit(""))
    text = F.when(purchase, F.substring(squeezed, 1, prefix_length(world, conf.bank))).otherwise(paid)
    read = events.select(
        "client_id",
        "event_time",
        "event_seq",
        "channel",
        "country",
        F.abs(F.col("amount").cast("double")).alias("paid"),
        "type",
        F.coalesce("mcc", F.lit("")).alias("mcc"),
        text.alias("text"),
        at.alias("at"),
        F.floor(at / 86_400).cast("int").alias("day"),
    ).withColumn("clock", (F.col("at") - F.col("day") * 86_400) / 3600)
    meanings = F.broadcast(_meanings(events.sparkSession, world, conf.bank))
    named = read.join(meanings, ["type", "mcc", "text"])
    return named.where(F.col("clock").between(F.col("since"), F.col("until")) & (F.col("clock") < F.col("until")))


# What an event adds to the sums


def _named(name: str | Column, value: float | Column = 1.0, when: Column | None = None) -> Column:
    """A name and what is added to it; null where nothing is."""
    said = name if isinstance(name, Column) else F.lit(name)
    number = (value if isinstance(value, Column) else F.lit(value)).cast("double")
    told = F.struct(said.alias("name"), number.alias("value"))
    return told if when is None else F.when(when, told)


def _told(rows: DataFrame, entries: Sequence[Column]) -> DataFrame:
    return rows.select("client_id", F.explode(F.filter(F.array(*entries), lambda one: one.isNotNull())).alias("told"))


def _of_attributes() -> Column:
    package = F.array_position(F.array(*(F.lit(name) for name in PACKAGES)), F.col("package"))
    return F.array(_named("tenure_years", F.col("tenure_years")), _named("package", package))


def _of_payments(rows: DataFrame, calendar: Calendar, conf: SimulatorConf) -> DataFrame:
    """Monthly payments: how many before trends show, how many after it (weighted as trends grow), and amounts."""
    of_day = [sum(start <= day for start in calendar.first_of_month) - 1 for day in range(calendar.past)]
    growth = lookup([_growth(month, conf) for month in of_day], F.col("day"))
    pays = F.col("paid").isNotNull()
    item = F.col("item")
    return _told(
        rows,
        [
            _named(F.concat(item, F.lit(":early")), 1.0, growth == 0),
            _named(F.concat(item, F.lit(":late")), growth, growth > 0),
            _named(F.concat(item, F.lit(":paid")), 1.0, pays),
            _named(F.concat(item, F.lit(":amount")), F.log(F.col("paid") / F.col("usual")), pays),
        ],
    )


def _growth(month: int, conf: SimulatorConf) -> float:
    start = conf.months * TREND_FROM
    return min(max((month + 1 - start) / (conf.months - start), 0.0), 1.0)


def _of_purchases(rows: DataFrame, world: World, bank: Bank, calendar: Calendar) -> DataFrame:
    """Purchases: what was bought first, which way a trip walks, when, where, how, and for how much."""
    size, steps = len(world.categories), world.purchases.steps
    in_order = Window.partitionBy("client_id").orderBy("event_time", "event_seq")
    pause = F.col("at") - F.lag("at").over(in_order)
    moved = F.pmod(F.col("shop") - F.lag("shop").over(in_order), F.lit(size))
    forward, backward = moved.isin(list(steps)), moved.isin([size - step for step in steps])
    one_trip = pause.between(*PAUSE) & (forward | backward)
    walked = rows.withColumns(
        {
            "forward": F.coalesce(one_trip & forward, F.lit(False)),
            "backward": F.coalesce(one_trip & backward, F.lit(False)),
        }
    ).withColumn("first", ~(F.col("forward") | F.col("backward")))
    before = F.last(F.when(F.col("first"), F.col("day")), ignorenulls=True)
    placed = walked.withColumn("gap", F.col("day") - before.over(in_order.rowsBetween(Window.unboundedPreceding, -1)))
    part = Part("P", 0, calendar.past, past=True)
    starts = [seasonal(F.lit(k / SLICES), calendar, part) * part.days for k in range(1, SLICES)]
    slice_ = sum(((F.col("day") >= F.floor(start)).cast("int") for start in starts), F.lit(0))
    since = F.col("day") - calendar.last_payday(F.col("day"))
    group = sum(((since >= day).cast("int") for day in PAYDAYS[1:]), F.lit(0))
    dated = placed.withColumns({"slice": slice_, "payday": group})
    first, shop = F.col("first"), F.col("shop").cast("string")
    recent = F.col("day") >= F.lit(calendar.past - world.purchases.intent_days)
    home = F.col("country") == F.lit(world.banks[bank].country)
    rates = F.create_map(*(F.lit(one) for place in world.destinations for one in (place.country, place.rate)))
    rate = F.when(home | (F.col("channel") == "online"), F.lit(1.0)).otherwise(
        F.coalesce(F.try_element_at(rates, "country"), F.lit(1.0))
    )
    bought_online = sigmoid(F.col("online"))
    paced = first & (F.col("slice") < SLOWLY) & F.col("gap").isNotNull()
    return _told(
        dated,
        [
            _named("purchases"),
            _named(F.concat(F.when(recent, "recent:").otherwise("before:"), shop), 1.0, first),
            _named(F.concat(F.lit("bought:"), shop)),
            _named(F.concat(F.lit("tier:"), shop), F.col("tier") - F.lit((TIERS - 1) / 2)),
            _named("forward", 1.0, F.col("forward")),
            _named("backward", 1.0, F.col("backward")),
            _named(F.concat(F.lit("trips:"), F.col("slice").cast("string")), 1.0, first),
            _named(
                F.concat(F.lit("payday:"), F.col("payday").cast("string")),
                1.0,
                first & (F.col("payday") < len(PAYDAYS) - 1),
            ),
            _named("gaps", 1.0, paced),
            _named("gap", F.col("gap"), paced),
            _named("gap_square", F.col("gap") * F.col("gap"), paced),
            _named("hour", F.col("clock") - F.col("hour"), first),
            _named("online", (F.col("channel") == "online").cast("double") - bought_online),
            _named("unsure", bought_online * (F.lit(1.0) - bought_online)),
            _named(
                "price",
                F.log(F.col("paid") / (rate * F.col("usual"))) - F.lit(0.12) * (F.col("tier") - F.lit((TIERS - 1) / 2)),
            ),
            _named(
                F.concat(F.lit("abroad:"), F.least(F.floor(F.col("day") / 183), F.lit(3)).cast("string")), 1.0, ~home
            ),
        ],
    )


# What the sums say


def features_of(sums: Floats, world: World, conf: SimulatorConf) -> Floats:
    """The sums as estimates: shares and means, drawn towards what is usual where there is little to go by.

    Args:
        sums: clients x `sum_names`.
        world: what the generator knows.
        conf: the bank.

    Returns:
        Clients x features, all of them finite.
    """
    return np.stack(list(_features(sums, world, conf)), axis=1)


def _features(sums: Floats, world: World, conf: SimulatorConf) -> Iterator[Floats]:
    place = {name: at for at, name in enumerate(sum_names(world))}

    def of(name: str) -> Floats:
        return sums[:, place[name]]

    def every(kind: str, count: int) -> Floats:
        return np.stack([of(f"{kind}:{at}") for at in range(count)], axis=1)

    size = len(world.categories)
    weights = np.exp([category.weight[conf.bank] for category in world.categories])
    usual = weights / weights.sum()
    for kind in ("before", "recent"):
        counts = every(kind, size)
        total = counts.sum(axis=1)
        yield from np.log((counts + 10 * usual) / ((total[:, None] + 10) * usual)).T
        yield np.log1p(total)
    yield from _preparing(world, every("before", size), every("recent", size), usual).T
    yield np.log((of("forward") + 0.7) / (of("backward") + 0.7))
    trips = every("trips", SLICES)
    total = trips.sum(axis=1)
    yield from np.log((trips + 0.5) / (total[:, None] / SLICES + 0.5)).T
    yield np.log((trips[:, SLOWLY:].sum(axis=1) + 0.5) / (trips[:, :SLOWLY].sum(axis=1) + 0.5))
    days = np.diff(PAYDAYS) / 30.4
    yield from ((every("payday", len(days)) - total[:, None] * days) / (total[:, None] + 10)).T
    mean, square = (of(name) / np.maximum(of("gaps"), 1) for name in ("gap", "gap_square"))
    yield np.sqrt((square + 1) / (mean**2 + 1))
    yield np.log1p(mean)
    yield of("hour") / (total + 16)
    yield of("online") / (of("unsure") + 1.6)
    yield of("price") / (of("purchases") + 8)
    bought, tiers = every("bought", size), every("tier", size)
    # A client keeps to a favourite shop in six of ten purchases of a category, so the tenth of them says little.
    known = bought / (1 + 0.36 * np.maximum(bought - 1, 0))
    yield (known * tiers / np.maximum(bought, 1)).sum(axis=1) / (known.sum(axis=1) + 8)
    abroad = every("abroad", 4)
    yield (abroad > 0).sum(axis=1).astype(np.float64)
    yield np.log1p(abroad.sum(axis=1))
    growing = [_growth(month, conf) for month in range(conf.months)]
    early, late = sum(one == 0 for one in growing), sum(growing)
    for item in world.items:
        found, at_last = of(f"{item.key}:early"), of(f"{item.key}:late")
        if item.holding is None:
            yield found
            yield at_last
        else:
            # Who has it shows in its coming at all; only of those does a month without it say something.
            yield (found + at_last > 0).astype(np.float64)
            yield np.where(found > 0, early - found, 0.0)
            yield np.where(found > 0, late - at_last, 0.0)
        if item.amount and item.amount.share:
            yield of(f"{item.key}:amount") / np.maximum(of(f"{item.key}:paid"), 1)
    yield of("tenure_years")
    yield of("package")


def _preparing(world: World, before: Floats, recent: Floats, usual: Floats) -> Floats:
    """How many recent first purchases prepare each goal, of what the client's tastes do not explain; drawn to few."""
    prepares = np.stack(goal_shares(world)) * world.purchases.intent / len(world.tasks.next_goal.classes)
    tastes = (before + 10 * usual) / (before.sum(axis=1, keepdims=True) + 10) * (1 - world.purchases.intent)
    explained = recent / (tastes + prepares.sum(axis=0))
    return np.asarray(explained @ prepares.T / (recent.sum(axis=1, keepdims=True) + 5))
