"""What a history says by when it happened: how long ago it ended and began, and what changed of late."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

from ledgerlm.baselines.folding import SPANS, Number, parts_of
from ledgerlm.baselines.partials import DAY_MICROS

_YEAR = 365.25


def recency(amounts: Sequence[Number]) -> dict[str, Column]:
    """Features of the clock, of which the numbers of single events know nothing.

    `since_last_days`, `since_first_days`; for the last 30, 90 and 365 days `last_30d:count`, `last_30d:amount:sum`, and
    `last_30d:log_rate`, the logarithm of events a day in them against those a day before (one event is added to both);
    `log_amount:slope`, its change a year by least squares.

    Args:
        amounts: numbers of the kind `amount`, one a currency.

    Returns:
        Name -> its value, from the columns of `folding.fold_whole`.
    """
    values = {"since_last_days": _ago("last"), "since_first_days": _ago("first")}
    for place, days in enumerate(SPANS):
        values[f"last_{days}d:count"] = F.col(f"count{days}")
        values[f"last_{days}d:log_rate"] = _log_rate(days)
        values |= {f"last_{days}d:{one.name}:sum": _recent(one, place) for one in amounts}
    return values | {f"log_{one.name}:slope": _slope(one) for one in amounts}


def _ago(time: str) -> Column:
    return (F.unix_micros("as_of") - F.unix_micros(time)) / F.lit(DAY_MICROS)


def _log_rate(days: int) -> Column:
    """Zero where the history is not longer: there is nothing before to set it against."""
    now = (F.col(f"count{days}") + 1) / F.lit(float(days))
    before = (F.col("count") - F.col(f"count{days}") + 1) / F.greatest(_ago("first") - days, F.lit(1.0))
    return F.when(_ago("first") > days, F.log(now) - F.log(before))


def _recent(amount: Number, place: int) -> Column:
    """Amounts of the last days, month after month."""
    own = parts_of(F.col("months"), amount.currency)
    return F.aggregate(own, F.lit(0.0), lambda total, one: total + one["recent"][place]["sum"])


def _slope(amount: Number) -> Column:
    """Of the line through logarithms over time; moments are put together month after month, as deviations are."""
    names = ("events", "time", "value", "spread", "joint")

    def add(one: Column, part: Column) -> Column:
        other = part["trend"]
        events = one["events"] + other["events"]
        share = other["events"] / F.greatest(events, F.lit(1))
        time, value = other["time"] - one["time"], other["value"] - one["value"]
        weight = one["events"] * share
        values = (
            events,
            one["time"] + time * share,
            one["value"] + value * share,
            one["spread"] + other["spread"] + time * time * weight,
            one["joint"] + other["joint"] + time * value * weight,
        )
        return F.struct(*(told.alias(name) for name, told in zip(names, values, strict=True)))

    none = F.struct(F.lit(0).cast("long").alias(names[0]), *(F.lit(0.0).alias(name) for name in names[1:]))
    own = parts_of(F.col("months"), amount.currency)
    return F.aggregate(own, none, add, lambda all_: F.when(all_["spread"] > 0, all_["joint"] / all_["spread"] * _YEAR))
