"""What a history says by when it happened: how long ago it ended and began, and what changed of late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import Column, DataFrame

_KEY = ("client_id", "as_of")
_DAY_MICROS = 86_400_000_000
_SPANS = (30, 90, 365)  # days before as_of
_YEAR = 365.25


def recency(rows: DataFrame, *, amounts: Sequence[str]) -> DataFrame:
    """Features of the clock, of which the numbers of single events know nothing.

    `since_last_days`, `since_first_days`; for the last 30, 90 and 365 days `last_30d:count`, `last_30d:amount:sum`, and
    `last_30d:log_rate`, the logarithm of events a day in them against those a day before (one event is added to both);
    `log_amount:slope`, its change a year by least squares.

    Args:
        rows: from `agg.histories`.
        amounts: columns of amounts, one a currency, each with its logarithm under `log_` and its name.

    Returns:
        client_id, as_of, recency map<string, float> without zeros; a row for each history with an event.
    """
    ago = (F.unix_micros("as_of") - F.unix_micros("event_time")) / F.lit(_DAY_MICROS)
    sums = [F.min("ago").alias("last"), F.max("ago").alias("first"), F.count(F.lit(1)).alias("events")]
    for days in _SPANS:
        inside = F.col("ago") <= days
        sums.append(F.count_if(inside).alias(f"count{days}"))
        sums += [F.sum(F.when(inside, F.col(f"`{name}`"))).alias(f"{name}{days}") for name in amounts]
    sums += [(F.regr_slope(f"`log_{name}`", -F.col("ago")) * _YEAR).alias(f"{name}:slope") for name in amounts]
    found = rows.withColumn("ago", ago).groupBy(*_KEY).agg(*sums)
    values = {"since_last_days": F.col("last"), "since_first_days": F.col("first")}
    for days in _SPANS:
        values[f"last_{days}d:count"] = F.col(f"count{days}")
        values[f"last_{days}d:log_rate"] = _log_rate(days)
        values |= {f"last_{days}d:{name}:sum": F.col(f"`{name}{days}`") for name in amounts}
    values |= {f"log_{name}:slope": F.col(f"`{name}:slope`") for name in amounts}
    entries = F.array(
        *(
            F.struct(
                F.lit(name).alias("name"), F.coalesce(value.cast("float"), F.lit(0.0).cast("float")).alias("value")
            )
            for name, value in values.items()
        )
    )
    named = F.map_from_entries(F.filter(entries, lambda entry: entry["value"] != 0))
    return found.select(*_KEY, named.alias("recency"))


def _log_rate(days: int) -> Column:
    """Zero where the history is not longer: there is nothing before to set it against."""
    now = (F.col(f"count{days}") + 1) / F.lit(float(days))
    before = (F.col("events") - F.col(f"count{days}") + 1) / F.greatest(F.col("first") - days, F.lit(1.0))
    return F.when(F.col("first") > days, F.log(now) - F.log(before))
