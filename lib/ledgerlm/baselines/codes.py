"""Events of histories, and the codes that are most frequent in them."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

Codes = dict[str, list[str]]
ABSENT = "-"
"""Stands for an absent code, as in a compact document."""


def histories(observed: DataFrame, as_of: DataFrame) -> DataFrame:
    """Gives each event to each `as_of` of its client that lies after it.

    Args:
        observed: client_id, event_time and what is seen of an event.
        as_of: client_id, as_of.

    Returns:
        The columns of `observed` and as_of; every event_time is before its as_of.
    """
    pairs = as_of.select("client_id", "as_of").distinct()
    return observed.join(pairs, on="client_id", how="inner").where(F.col("event_time") < F.col("as_of"))


def learn_codes(training: DataFrame, max_codes: int) -> Codes:
    """The most frequent codes of each field, most frequent first, ties by code.

    Args:
        training: `codes` array<struct<field, code>> of `histories` of training clients, so that no test client shapes a
            feature.
        max_codes: codes kept of a field.

    Returns:
        Field to codes; at most fields x max_codes strings reach the driver.
    """
    pairs = training.select(F.explode("codes").alias("pair"))
    return most_frequent(pairs.select("pair.field", "pair.code", F.lit(1).alias("events")), max_codes)


def most_frequent(seen: DataFrame, max_codes: int) -> Codes:
    """The codes of each field with most events, most frequent first, ties by code.

    Args:
        seen: field, code, events; a code may have several rows.
        max_codes: codes kept of a field.
    """
    counts = seen.groupBy("field", "code").agg(F.sum("events").alias("events"))
    rank = F.row_number().over(Window.partitionBy("field").orderBy(F.desc("events"), "code"))
    kept = counts.withColumn("rank", rank).where(F.col("rank") <= max_codes).orderBy("field", "rank")
    codes: Codes = {}
    for row in kept.toLocalIterator():
        codes.setdefault(row["field"], []).append(row["code"])
    return codes
