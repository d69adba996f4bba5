"""Card purchases: trips of one to four shops, timed by habit and calendar, at merchants with dirty names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.simulator.calendar import Calendar
from ledgerlm.events.simulator.categories import SLOTS, draw_first, draw_following
from ledgerlm.events.simulator.clients import SimulatorConf
from ledgerlm.events.simulator.draws import add, bell, clip, floor_int, lookup, pick, sigmoid, trait, uniform
from ledgerlm.events.simulator.world import World

CHUNK = 4096  # trips of one client that stand in memory together
LAST_PART = 0.3  # part of the window in which a client's activity changes
DECEMBER = 0.2  # how much denser trips are in mid-December, relative to the mean
YEAR = 365.25
TIERS = 6  # merchants of a category, from discount to premium


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of days that is filled with trips.

    Attributes:
        prefix: first letter of its event ids, also the name of its draws.
        first: index of its first day.
        days: number of days.
        past: whether it lies before as_of.
    """

    prefix: str
    first: int
    days: int
    past: bool


def purchases(clients: DataFrame, conf: SimulatorConf, world: World, calendar: Calendar, part: Part) -> DataFrame:
    """The purchases of one part of the days.

    Args:
        clients: `simulate_clients`, with outcomes when the part lies after as_of.

    Returns:
        One row a purchase: the columns of `EVENT_COLUMNS`, unordered.
    """
    return (
        clients.transform(_trips, conf, world, part)
        .transform(_timed, calendar, part)
        .transform(_first_shop, world, calendar, part)
        .transform(_away, world)
        .transform(_shops, world, part)
        .transform(_placed, world, part)
        .transform(_paid, conf, world, calendar, part)
    )


def _trips(clients: DataFrame, conf: SimulatorConf, world: World, part: Part) -> DataFrame:
    """One row a trip, numbered `trip` of `trips`. Two steps, so that no array grows with a client's purchases."""
    rate = F.lit(1.0 / world.purchases.mean_trip)
    if not part.past:
        # Who churns hardly buys any more.
        share = F.when(F.col("will_churn") == 1, F.lit(0.05)).otherwise(F.lit(1.0))
        rate = rate * share * (conf.future_months / conf.months)
    counted = clients.withColumn("trips", F.greatest(F.round(F.col("purchases") * rate), F.lit(1.0)).cast("long"))
    chunks = counted.withColumn("chunk", F.explode(F.sequence(F.lit(0), F.floor((F.col("trips") - 1) / CHUNK))))
    start = F.col("chunk") * CHUNK
    end = F.least(start + F.lit(CHUNK - 1), F.col("trips") - 1)
    return chunks.withColumn("trip", F.explode(F.sequence(start, end)))


def _timed(trips: DataFrame, calendar: Calendar, part: Part) -> DataFrame:
    """Adds `day`: trips spread by habit, denser in December, moved to weekends and paydays, away from holidays."""
    key, trip = F.col("key"), F.col("trip")
    # A regular client keeps one trip to each stretch of time; an irregular one lets trips wander over three.
    wander = F.lit(0.3) + F.lit(3.0) * sigmoid(F.lit(-1.2) * trait("regular"))
    wandered = F.abs(trip + F.lit(0.5) + wander * (uniform(key, part.prefix + "/when", trip) - 0.5))
    share = (F.col("trips") - F.abs(F.col("trips") - wandered)) / F.col("trips")
    even = add(trips, {"share": _declined(share) if part.past else share})
    day = F.lit(part.first) + floor_int(clip(seasonal(F.col("share"), calendar, part), 0.0, 1 - 1e-9) * part.days)
    dated = add(even, {"day": day})
    broke = F.lit(0.5) * sigmoid(F.lit(1.2) * (trait("risk") - F.lit(0.5) * trait("regular")))
    soon = floor_int(F.lit(8.0) * F.pow(uniform(key, part.prefix + "/soon", trip), F.lit(2.0)))
    at_payday = _moved(dated, calendar.last_payday(F.col("day")) + soon, part, broke, "payday")
    saturday = F.col("day") - calendar.since_saturday(F.col("day"))
    working = calendar.since_saturday(F.col("day")) > 1
    at_weekend = _moved(at_payday, saturday, part, F.when(working, F.lit(0.25)).otherwise(F.lit(0.0)), "weekend")
    closed = F.when(calendar.is_holiday(F.col("day")), F.lit(0.8)).otherwise(F.lit(0.0))
    return _moved(at_weekend, F.col("day") - 1, part, closed, "holiday")


def _moved(trips: DataFrame, target: Column, part: Part, probability: Column, name: str) -> DataFrame:
    """Moves trips to another day with a probability, unless it lies outside the part."""
    drawn = uniform(F.col("key"), f"{part.prefix}/{name}", F.col("trip")) < probability
    inside = target.between(F.lit(part.first), F.lit(part.first + part.days - 1))
    return add(trips, {"day": F.when(drawn & inside, target).otherwise(F.col("day")).cast("int")})


def _declined(share: Column) -> Column:
    """Time share of a place in the order of trips: the rate changes for the last part, the number of trips does not."""
    rate = clip(F.exp(F.lit(-0.8) * trait("decline")), 0.1, 2.5)
    before = F.lit(1.0 - LAST_PART)
    mass = share * (before + F.lit(LAST_PART) * rate)
    return F.when(mass < before, mass).otherwise(before + (mass - before) / rate)


def seasonal(share: Column, calendar: Calendar, part: Part) -> Column:
    """A smooth, monotone warp of [0, 1] onto itself that makes days around 15 December denser."""
    years = part.days / YEAR
    start = calendar.days[part.first].timetuple().tm_yday
    phase = math.pi - 2 * math.pi * (349 - start) / YEAR
    size = DECEMBER / (2 * math.pi * years)
    at_start, at_end = (size * math.sin(2 * math.pi * years * end + phase) for end in (0.0, 1.0))
    wave = F.lit(size) * F.sin(F.lit(2 * math.pi * years) * share + F.lit(phase))
    return share + wave - F.lit(at_start) - share * F.lit(at_end - at_start)


def _first_shop(trips: DataFrame, world: World, calendar: Calendar, part: Part) -> DataFrame:
    """Adds `shop_0` (place in the ring), `second` (of the day) and `month`."""
    key, trip = F.col("key"), F.col("trip")

    def drawn(cumulative: str, size: int) -> Column:
        total = F.get(F.col(cumulative), F.lit(size - 1))
        return uniform(key, f"{part.prefix}/{cumulative}", trip) * total

    goals, size = len(world.tasks.next_goal.classes), len(world.categories)
    # Draws stand in columns of their own: inside a condition Spark would repeat them for each comparison.
    luck = add(trips, {"goal_luck": drawn("goal", goals), "taste_luck": drawn("taste", size)})
    goal = pick(F.col("goal_luck"), F.col("goal"), goals) if part.past else F.col("will_goal")
    chosen = add(luck, {"goal_drawn": goal, "taste_drawn": pick(F.col("taste_luck"), F.col("taste"), size)})
    dated = chosen.withColumns(
        {"month": calendar.month(F.col("day")), "weekend": calendar.since_saturday(F.col("day")) < 2}
    )
    first = draw_first(
        world,
        source=uniform(key, part.prefix + "/source", trip),
        slot=floor_int(uniform(key, part.prefix + "/slot", trip) * SLOTS),
        taste=F.col("taste_drawn"),
        goal=F.col("goal_drawn"),
        month=F.col("month"),
        weekend=F.col("weekend"),
        recent=F.col("day") >= F.lit(calendar.past - world.purchases.intent_days),
    )
    peak = lookup([category.hour for category in world.categories], F.col("shop_0"))
    hour = peak - F.lit(0.5) * trait("age") + F.lit(2.0) * bell(key, part.prefix + "/hour", trip)
    second = floor_int(clip(hour, 0.1, 20.5) * 3600)
    return add(add(dated, {"shop_0": first}), {"second": second})


def _away(trips: DataFrame, world: World) -> DataFrame:
    """Adds `abroad` and `where` (place in the list of destinations): one holiday in each half year, for some."""
    key, half = F.col("key"), F.col("half")
    leave_day = half * 183 + floor_int(uniform(key, "holiday/day", half) * 165)
    days = F.lit(5) + floor_int(uniform(key, "holiday/days", half) * 10)
    fond = F.lit(-0.8) + F.lit(0.6) * trait("wealth") + F.lit(0.5) * F.col("wish_travel")
    goes = uniform(key, "holiday/goes", half) < sigmoid(fond)
    where = floor_int(uniform(key, "holiday/where", half) * len(world.destinations))
    away = goes & F.col("day").between(leave_day, leave_day + days)
    halves = trips.withColumn("half", floor_int(F.col("day") / F.lit(183)))
    return add(halves, {"abroad": away, "where": where})


def _shops(trips: DataFrame, world: World, part: Part) -> DataFrame:
    """One row a purchase: adds `place` on the trip and `shop`, place in the ring of categories."""
    key, trip, rule = F.col("key"), F.col("trip"), world.purchases
    longest = range(1, rule.longest_trip)
    for place in longest:
        following = draw_following(
            world,
            previous=F.col(f"shop_{place - 1}"),
            step=uniform(key, part.prefix + "/step", trip, F.lit(place)),
            direction=uniform(key, part.prefix + "/direction", trip, F.lit(place)),
        )
        trips = add(trips, {f"shop_{place}": following})
    luck = uniform(key, part.prefix + "/length", trip)
    more = sum(((luck < F.lit(rule.continue_**place)).cast("int") for place in longest), F.lit(0))
    visited = trips.withColumn("place", F.explode(F.sequence(F.lit(0), more)))
    shop = F.get(F.array(F.col("shop_0"), *(F.col(f"shop_{place}") for place in longest)), F.col("place"))
    number = F.col("trip") * F.lit(rule.longest_trip) + F.col("place")
    return visited.withColumns({"shop": shop, "number": number})


def _placed(visits: DataFrame, world: World, part: Part) -> DataFrame:
    """Adds `online`, `tier` and `store`."""
    key, number, shop = F.col("key"), F.col("number"), F.col("shop")
    online = lookup([category.online for category in world.categories], shop) + F.lit(0.8) * trait("digital")
    loyal = uniform(key, part.prefix + "/loyal", number) < 0.6
    luck = F.when(loyal, uniform(key, "favourite", shop)).otherwise(uniform(key, part.prefix + "/merchant", number))
    rank = F.lit(0.5) + F.lit(0.1) * trait("wealth") - F.lit(0.2) * trait("price") + F.lit(0.6) * (luck - 0.5)
    placed = add(
        visits,
        {
            "online": uniform(key, part.prefix + "/online", number) < sigmoid(online),
            "tier": floor_int(clip(rank, 0.0, 0.999) * TIERS),
        },
    )
    home = F.xxhash64(F.col("city"), shop, F.col("tier"), floor_int(uniform(key, "store", shop) * 3))
    foreign = F.xxhash64(F.col("where"), number)
    store = F.pmod(F.when(F.col("abroad"), foreign).otherwise(home), F.lit(9000)) + 1000
    return add(placed, {"store": store})


def _paid(visits: DataFrame, conf: SimulatorConf, world: World, calendar: Calendar, part: Part) -> DataFrame:
    """The finished event."""
    key, number, places = F.col("key"), F.col("number"), world.destinations
    bank = world.banks[conf.bank]
    abroad = F.col("abroad") & ~F.col("online")

    def here(foreign: list[str] | list[float], home: str | float | Column) -> Column:
        return F.when(abroad, lookup(foreign, F.col("where"))).otherwise(
            home if isinstance(home, Column) else F.lit(home)
        )

    city = F.when(~F.col("online"), here([place.city for place in places], F.col("city")))
    country = here([place.country for place in places], bank.country)
    shown = {"shown_city": city, "shown_country": country, "price": _price(conf, world, part, abroad)}
    located = add(add(visits, shown, group=2), {"merchant": _terminal_text(conf, world)})
    pause = F.lit(600) + floor_int(uniform(key, part.prefix + "/pause", F.col("trip")) * 2400)
    second = F.col("second") + F.col("place") * pause
    return located.select(
        "client_id",
        F.concat(F.lit(part.prefix), F.col("trip").cast("string"), F.lit("-"), F.col("place").cast("string")).alias(
            "event_id"
        ),
        calendar.at(F.col("day"), second).alias("event_time"),
        number.alias("event_seq"),
        (-F.col("price")).cast("decimal(18,4)").alias("amount"),
        here([place.currency for place in places], bank.currency).alias("currency"),
        F.lit(getattr(world.types["purchase"], conf.bank)).alias("type"),
        lookup([category.codes[conf.bank] for category in world.categories], F.col("shop")).alias("mcc"),
        "merchant",
        F.when(F.col("online"), "online").otherwise("pos").alias("channel"),
        F.col("shown_city").alias("city"),
        F.col("shown_country").alias("country"),
        F.lit(None).cast("string").alias("note"),
    )


def _price(conf: SimulatorConf, world: World, part: Part, abroad: Column) -> Column:
    key, number = F.col("key"), F.col("number")
    level = world.banks[conf.bank].price_level
    usual = lookup([category.median * level for category in world.categories], F.col("shop"))
    rate = F.when(abroad, lookup([place.rate for place in world.destinations], F.col("where"))).otherwise(F.lit(1.0))
    festive = F.when(F.col("month") == 12, F.lit(0.15)).otherwise(F.lit(0.0))
    noise = F.lit(0.55) * bell(key, part.prefix + "/amount", number)
    tier = F.lit(0.12) * (F.col("tier") - F.lit((TIERS - 1) / 2))
    price = rate * usual * F.exp(noise + tier + festive + F.lit(0.2) * trait("wealth") - F.lit(0.1) * trait("price"))
    tagged = uniform(key, part.prefix + "/tag", number) < 0.35
    return F.when(tagged, F.floor(price) + F.lit(0.99)).otherwise(F.greatest(F.round(price, 2), F.lit(0.01)))


def _terminal_text(conf: SimulatorConf, world: World) -> Column:
    """The merchant as a terminal prints it; a store keeps its style."""
    names = [name for category in world.categories for name in category.merchants[conf.bank]]
    name = lookup(names, F.col("shop") * TIERS + F.col("tier"))
    store, city, country = F.col("store").cast("string"), F.col("shown_city"), F.col("shown_country")
    style = F.pmod(F.col("store"), F.lit(10))
    return (
        F.when(F.col("online") & (style < 6), F.concat(F.replace(name, F.lit(" "), F.lit("")), F.lit(".COM *"), store))
        .when(F.col("online"), F.concat(F.lit("PAYGATE*"), name))
        .when(style < 5, F.concat(name, F.lit(" "), store, F.lit(" "), city, F.lit(" "), country))
        .when(style < 7, F.concat(name, F.lit(" #"), store, F.lit(" "), city))
        .when(style < 8, F.concat(F.lit("SQ *"), F.substring(name, 1, 18), F.lit(" "), city))
        .otherwise(F.concat(F.substring(F.concat(name, store), 1, 22), F.lit(" "), city, F.lit(" "), country))
    )
