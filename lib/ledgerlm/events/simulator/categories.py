"""What a client buys next: one mixture, drawn by the generator and told as true probabilities.

The first purchase of a trip is drawn from the client's tastes, or with fixed shares from the month's categories, from
the weekend's, or (shortly before `as_of`) from what prepares the client's goals. Each further purchase of the trip
follows the one before along the ring of categories: forward with the client's probability of planning, else backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F

from ledgerlm.events.simulator.clients import planning
from ledgerlm.events.simulator.draws import floor_int, lookup
from ledgerlm.events.simulator.world import Bank, World

SLOTS = 12  # places that a draw chooses from are repeated, or cut, to this many


def draw_first(
    world: World,
    *,
    source: Column,
    slot: Column,
    taste: Column,
    goal: Column,
    month: Column,
    weekend: Column,
    recent: Column,
) -> Column:
    """Place in the ring of a trip's first purchase.

    Args:
        source: uniform draw that chooses the part of the mixture.
        slot: uniform integer below `SLOTS` that chooses inside the shared parts.
        taste: place in the ring, drawn from the client's tastes.
        goal: place of the goal that a preparing purchase serves.
        month: 1 to 12.
        weekend: whether the day is a Saturday or Sunday.
        recent: whether the day is one of the last `intent_days` before as_of, or after it.
    """
    mix = world.purchases
    prepares, seasonal, festive = (
        _flat(rows) for rows in (_goal_slots(world), _month_slots(world), [_weekend_slots(world)])
    )
    intent = F.when(recent, F.lit(mix.intent)).otherwise(F.lit(0.0))
    return (
        F.when(source < intent, lookup(prepares, goal * SLOTS + slot))
        .when(source < intent + mix.season, lookup(seasonal, (month - 1) * SLOTS + slot))
        .when((source < intent + mix.season + mix.weekend) & weekend, lookup(festive, slot))
        .otherwise(taste)
    )


def draw_following(world: World, *, previous: Column, step: Column, direction: Column) -> Column:
    """Place in the ring of the purchase after `previous` on the same trip, from two uniform draws."""
    steps = world.purchases.steps
    width = lookup(steps, floor_int(step * len(steps)))
    moved = previous + F.when(direction < planning(), width).otherwise(-width)
    return F.pmod(moved, F.lit(len(world.categories)))


def first_probabilities(world: World, *, month: Column, weekend: Column, recent: Column) -> Column:
    """True probabilities of a trip's first purchase.

    Args:
        month: 1 to 12.
        weekend: 1.0 on a Saturday or Sunday, else 0.0; a share in between mixes the two.
        recent: 1.0 in the last `intent_days` before as_of, else 0.0.

    Returns:
        An array of doubles in ring order, sum 1; needs the clients' columns `taste` and `goal`.
    """
    mix, size = world.purchases, len(world.categories)
    goals = range(len(world.tasks.next_goal.classes))
    prepares, seasonal, festive = (
        [_shares(row, size) for row in rows]
        for rows in (_goal_slots(world), _month_slots(world), [_weekend_slots(world)])
    )
    of_taste = F.lit(1.0) - recent * mix.intent - F.lit(mix.season) - weekend * mix.weekend
    return F.array(
        *(
            of_taste * _weight(F.col("taste"), at, size)
            + recent * mix.intent * _sum([_weight(F.col("goal"), g, len(goals)) * prepares[g][at] for g in goals])
            + F.lit(mix.season) * lookup([row[at] for row in seasonal], month - 1)
            + weekend * (mix.weekend * festive[0][at])
            for at in range(size)
        )
    )


def following_probabilities(world: World, *, previous: Column) -> Column:
    """True probabilities of the purchase after `previous` on the same trip: doubles in ring order, sum 1."""
    size, steps = len(world.categories), world.purchases.steps
    forward = planning()

    def at(place: int) -> Column:
        ahead = _sum([(previous == F.lit((place - step) % size)).cast("double") for step in steps])
        behind = _sum([(previous == F.lit((place + step) % size)).cast("double") for step in steps])
        return (ahead * forward + behind * (F.lit(1.0) - forward)) / float(len(steps))

    return F.array(*(at(place) for place in range(size)))


def next_probabilities(
    world: World, *, previous: Column, place: Column, month: Column, weekend: Column, recent: Column
) -> Column:
    """True probabilities of the next purchase, not knowing whether the trip goes on.

    Args:
        previous: place in the ring of the last purchase.
        place: how many purchases of its trip came before it (0 for the first).
        month: month of the next trip, 1 to 12.
        weekend: share of trips on weekend days, or 1.0 or 0.0 where the day of the next trip is known.
        recent: 1.0 in the last `intent_days` before as_of, else 0.0.

    Returns:
        An array of doubles in ring order, sum 1. The best reachable log loss is the mean of minus the log of the entry
        that came true.
    """
    goes_on = F.when(place < world.purchases.longest_trip - 1, F.lit(world.purchases.continue_)).otherwise(F.lit(0.0))
    first = first_probabilities(world, month=month, weekend=weekend, recent=recent)
    following = following_probabilities(world, previous=previous)
    return F.zip_with(first, following, lambda start, on: (F.lit(1.0) - goes_on) * start + goes_on * on)


def ring_place(world: World, bank: Bank, code: Column) -> Column:
    """Place in the ring (from 0) of a bank's category code; -1 for codes that are no purchase category."""
    codes = F.array(*(F.lit(category.codes[bank]) for category in world.categories))
    return (F.array_position(codes, code) - 1).cast("int")


def goal_shares(world: World) -> list[list[float]]:
    """How the purchases that prepare each goal fall on the categories, in ring order."""
    return [_shares(row, len(world.categories)) for row in _goal_slots(world)]


def _goal_slots(world: World) -> list[list[int]]:
    keys = world.category_keys
    return [_filled([keys.index(key) for key in goal.categories]) for goal in world.tasks.next_goal.classes.values()]


def _month_slots(world: World) -> list[list[int]]:
    return [
        _filled([at for at, category in enumerate(world.categories) if month in category.months] or list(range(SLOTS)))
        for month in range(1, 13)
    ]


def _weekend_slots(world: World) -> list[int]:
    return _filled([at for at, category in enumerate(world.categories) if category.weekend])


def _filled(places: Sequence[int]) -> list[int]:
    """The places repeated (or cut) to `SLOTS` entries; the shares that result are the true ones."""
    return [places[slot % len(places)] for slot in range(SLOTS)]


def _flat(rows: Sequence[Sequence[int]]) -> list[int]:
    return [value for row in rows for value in row]


def _shares(slots: Sequence[int], size: int) -> list[float]:
    return [slots.count(at) / SLOTS for at in range(size)]


def _weight(cumulative: Column, at: int, size: int) -> Column:
    """Probability of one class from running sums."""
    weight = F.get(cumulative, F.lit(at))
    if at:
        weight = weight - F.get(cumulative, F.lit(at - 1))
    return weight / F.get(cumulative, F.lit(size - 1))


def _sum(columns: Sequence[Column]) -> Column:
    return reduce(Column.__add__, columns)
