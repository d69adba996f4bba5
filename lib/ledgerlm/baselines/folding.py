"""Histories as of a time, folded from monthly partials.

A month that ended before the time is taken as it stands; of a month that the time cuts, the events before it are
added up. A time that cuts no month of its client, such as the first of a month, needs no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.baselines.partials import (
    DAY_MICROS,
    LOW_BITS,
    STEPS_OF_ONE,
    Summed,
    in_doubles,
    in_steps,
    month_partials,
)
from ledgerlm.engines.frames import settled

if TYPE_CHECKING:
    from ledgerlm.engines.frames import Keep

KEY = ("client_id", "as_of")
LARGEST = 3.4028234663852886e38
"""Of a float, in which features are kept."""
SPANS = (30, 90, 365)
"""Days before `as_of` that are looked at by themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partials:
    """Monthly partials, and the events that they were made of.

    Attributes:
        rows: partials of one feature set.
        events: the `events` table.
        summed: what is summed up.
        keep: computes a frame once.
    """

    rows: DataFrame
    events: DataFrame
    summed: Summed
    keep: Keep

    @classmethod
    def of(cls, events: DataFrame, summed: Summed, *, keep: Keep) -> Partials:
        """Those of all events."""
        return cls(rows=keep(month_partials(events, summed)), events=events, summed=summed, keep=keep)

    def histories(self, as_of: DataFrame) -> DataFrame:
        """The months of each history that is asked.

        Args:
            as_of: client_id, as_of; distinct.

        Returns:
            client_id, as_of, month, first_event_time, last_event_time, event_count, totals, groups: whole months that
            end before `as_of`, and of the month that it cuts what lies before it.
        """
        columns = (*KEY, "month", "first_event_time", "last_event_time", "event_count", "totals", "groups")
        pairs = as_of.select(*KEY)
        whole = self.rows.join(pairs, on="client_id", how="inner").where(F.col("last_event_time") < F.col("as_of"))
        cut = self._cut(pairs)
        return whole.select(*columns) if cut is None else whole.select(*columns).unionByName(cut.select(*columns))

    def _cut(self, pairs: DataFrame) -> DataFrame | None:
        """Partials of cut months, up to the time that cuts them; None where none does."""
        months = self.rows.select(
            "client_id", F.col("month").alias("start"), "event_before", "first_event_time", "last_event_time"
        )
        inside = (F.col("first_event_time") < F.col("as_of")) & (F.col("as_of") <= F.col("last_event_time"))
        cut = months.join(pairs, on="client_id", how="inner").where(inside).drop("last_event_time")
        spans = settled(cut, self.keep)
        ends = spans.agg(F.min(F.unix_micros("first_event_time")), F.max(F.unix_micros("as_of"))).first()
        if ends is None or ends[0] is None:
            return None
        # As literals, so that files are skipped by their statistics.
        first, last = (F.timestamp_micros(F.lit(end)) for end in ends)
        between = self.events.where((F.col("event_time") >= first) & (F.col("event_time") < last))
        return self.keep(month_partials(between, self.summed, spans.drop("first_event_time")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A number as it is named among the features.

    Attributes:
        name: as in `amount in EUR`.
        kind: what is summed up, as in `amount`.
        currency: that of the events of which it is told; None: of all.
    """

    name: str
    kind: str
    currency: str | None = None


def fold_codes(histories: DataFrame, numbers: Sequence[Number], summed: Summed) -> DataFrame:
    """Sums of each history by field and code.

    Args:
        histories: from `Partials.histories`.
        numbers: those told of each code.
        summed: what was summed up.

    Returns:
        client_id, as_of, field, code, `count` double, and `NAME:mean` and `NAME:std` of each number; one row a history,
        field and code.
    """
    rows = histories.select(*KEY, "month", F.explode("groups").alias("part"))
    key: list[Column | str] = [*KEY, F.col("part.field").alias("field"), F.col("part.code").alias("code")]
    return _folded(rows, key, numbers, summed.by_code)


def fold_whole(histories: DataFrame, numbers: Sequence[Number], summed: Summed) -> DataFrame:
    """Sums of each history over all its events.

    Args:
        histories: from `Partials.histories`.
        numbers: those told.
        summed: what was summed up.

    Returns:
        client_id, as_of, `count`, `NAME:sum`, `NAME:mean` and `NAME:std` of each number, `first` and `last` (time of an
        event), `count30` (events of the last 30 days) and its like, and `months`: month, currency, `trend` and `recent`
        (sums of amounts of the last days) of each part, in order.
    """
    rows = histories.select(
        *KEY, "month", "first_event_time", "last_event_time", F.explode("totals").alias("part")
    ).withColumn("recent", F.array(*(_recent(days) for days in SPANS)))
    counts = (F.sum(F.col("recent")[place]["events"]).alias(f"count{days}") for place, days in enumerate(SPANS))
    key: list[Column | str] = [*KEY]
    more = [F.min("first_event_time").alias("first"), F.max("last_event_time").alias("last"), *counts]
    return _folded(rows, key, numbers, summed.whole, more=more, listed=("part.trend", "recent"))


def _recent(days: int) -> Column:
    """Events, and amounts added up in their order, of a part that lie within the last days before `as_of`."""
    since = F.timestamp_micros(F.unix_micros("as_of") - F.lit(days * DAY_MICROS))
    # A loop over a month's events only where the span begins within it.
    start = F.when(F.col("first_event_time") >= since, F.lit(1)).otherwise(
        F.size(F.filter(F.col("part.times"), lambda time: time < since)) + 1
    )
    length = F.size("part.times")
    amounts = F.slice(F.col("part.amounts"), start, length)
    told = F.struct(
        (length - start + 1).cast("long").alias("events"),
        F.aggregate(amounts, F.lit(0.0), lambda total, one: total + F.coalesce(one, F.lit(0.0))).alias("sum"),
    )
    none = F.struct(F.lit(0).cast("long").alias("events"), F.lit(0.0).alias("sum"))
    return F.when(F.col("last_event_time") < since, none).otherwise(told)


def _folded(
    rows: DataFrame,
    key: Sequence[Column | str],
    numbers: Sequence[Number],
    kinds: Sequence[str],
    *,
    more: Sequence[Column] = (),
    listed: Sequence[str] = (),
) -> DataFrame:
    """Parts of months put together: steps by their sums, doubles one month after the other."""
    logs, others = in_steps(kinds), in_doubles(kinds)
    stepped = [one for one in numbers if one.kind in logs]
    doubled = [one for one in numbers if one.kind in others]
    months = F.sort_array(F.collect_list(F.struct("month", "part.currency", "part.doubles", *listed))).alias("months")
    folded = rows.groupBy(*key).agg(
        F.sum("part.events").cast("double").alias("count"),
        *(one for number in stepped for one in _sums(number, logs.index(number.kind))),
        *((months,) if doubled or listed else ()),
        *more,
    )
    kept = [f"`{name}`" for name in folded.columns if ":" not in name]
    states = (_put_together(one, others.index(one.kind)).alias(f"{one.name}:state") for one in doubled)
    found = folded.select("*", *states)
    told = (
        *(one for number in stepped for one in _of_steps(number.name)),
        *(one for number in doubled for one in _of_state(number.name)),
    )
    return found.select(*kept, *told)


def parts_of(months: Column, currency: str | None) -> Column:
    """The parts of months whose events are of a currency; None: all."""
    return months if currency is None else F.filter(months, lambda one: one["currency"] == currency)


def _sums(number: Number, place: int) -> list[Column]:
    """Sums of steps over parts of the number's currency."""
    steps = F.col("part.steps")[place]
    if number.currency is not None:
        steps = F.when(F.col("part.currency") == number.currency, steps)
    return [
        F.coalesce(F.sum(steps[part]), F.lit(0)).alias(f"{number.name}:{part}")
        for part in ("events", "sum", "high", "low")
    ]


def _of_steps(name: str) -> list[Column]:
    """Sum, mean and deviation of a number in steps, from exact sums.

    Squared distances are counted from the whole number of steps next to the mean, in integers, so that nothing cancels:
    with S the sum, n the events, m = (S - r) / n and r = S mod n, they are the squares less m (S + r), and those from
    the mean itself r * r / n less.
    """
    events, total, high, low = (F.col(f"`{name}:{part}`") for part in ("events", "sum", "high", "low"))
    some = F.greatest(events, F.lit(1))
    rest = F.pmod(total, some)
    mean, moved = F.call_function("div", total - rest, some), total + rest
    mask = F.lit((1 << LOW_BITS) - 1)
    low_squares = low - mean * moved.bitwiseAND(mask)
    high_squares = high - mean * F.shiftright(moved, LOW_BITS) + F.shiftright(low_squares, LOW_BITS)
    squares = high_squares.cast("double") * float(1 << LOW_BITS) + low_squares.bitwiseAND(mask).cast("double")
    spread = squares - rest.cast("double") * rest.cast("double") / some
    return [
        (total.cast("double") / STEPS_OF_ONE).alias(f"{name}:sum"),
        (total.cast("double") / some / STEPS_OF_ONE).alias(f"{name}:mean"),
        (_deviation(spread, events) / STEPS_OF_ONE).alias(f"{name}:std"),
    ]


def _deviation(spread: Column, events: Column) -> Column:
    """Of the sample; 0 for one event."""
    return F.when(events > 1, F.sqrt(F.greatest(spread, F.lit(0.0)) / (events - 1))).otherwise(F.lit(0.0))


def _put_together(number: Number, place: int) -> Column:
    """Events, sum, mean and squared distances over months, in their order (Chan, Golub and LeVeque, 1979)."""
    names = ("events", "sum", "mean", "spread")

    def add(one: Column, part: Column) -> Column:
        other = part["doubles"][place]
        events, apart = one["events"] + other["events"], other["mean"] - one["mean"]
        share = other["events"] / F.greatest(events, F.lit(1))
        spread = one["spread"] + other["spread"] + apart * apart * (one["events"] * share)
        values = (events, one["sum"] + other["sum"], one["mean"] + apart * share, spread)
        return F.struct(*(value.alias(name) for name, value in zip(names, values, strict=True)))

    none = F.struct(F.lit(0).cast("long").alias(names[0]), *(F.lit(0.0).alias(name) for name in names[1:]))
    return F.aggregate(parts_of(F.col("months"), number.currency), none, add)


def _of_state(name: str) -> list[Column]:
    state = F.col(f"`{name}:state`")
    # A sum that a float cannot hold is the largest one, and not infinite.
    within = F.greatest(F.least(state["sum"], F.lit(LARGEST)), F.lit(-LARGEST))
    return [
        within.alias(f"{name}:sum"),
        state["mean"].alias(f"{name}:mean"),
        _deviation(state["spread"], state["events"]).alias(f"{name}:std"),
    ]
