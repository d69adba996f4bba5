"""What a history says by when it happened: how long ago it ended and began, and what changed of late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KEY = ("client_id", "as_of")
_DAY_MICROS = 86_400_000_000
_SPANS = (30, 90, 365)  # days before as_of
_YEAR = 365.25


def recency(rows: DataFrame, *, amounts: bool) -> DataFrame:
    """Features of the clock, of which the numbers of single events know nothing.

    `since_last_days`, `since_first_days`; for the last 30, 90 and 365 days `last_30d:count`, `last_30d:amount:sum`, and
    `last_30d:log_rate`, the logarithm of events a day in them against those a day before (one event is added to both);
    `log_amount:slope`, its change a year by least squares.

    Args:
        rows: from `agg.histories`.
        amounts: the data have amounts.

    Returns:
        client_id, as_of, recency map<string, float> without zeros; a row for each history with an event.
    """
    ago = (F.unix_micros("as_of") - F.unix_micros("event_time")) / F.lit(_DAY_MICROS)
    sums = [F.min("ago").alias("last"), F.max("ago").alias("first"), F.count(F.lit(1)).alias("events")]
    for days in _SPANS:
        inside = F.col("ago") <= days
        sums += [F.count_if(inside).alias(f"count{days}"), F.sum(F.when(inside, F.col("amount"))).alias(f"sum{days}")]
    sums.append((F.regr_slope("log_amount", -F.col("ago")) * _YEAR).alias("slope"))
    found = rows.withColumn("ago", ago).groupBy(*_KEY).agg(*sums)
    values = {"since_last_days": F.col("last"), "since_first_days": F.col("first")}
    for days in _SPANS:
        values[f"last_{days}d:count"] = F.col(f"count{days}")
        values[f"last_{days}d:log_rate"] = _log_rate(days)
        values |= {f"last_{days}d:amount:sum": F.col(f"sum{days}")} if amounts else {}
    values |= {"log_amount:slope": F.col("slope")} if amounts else {}
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
