"""Descriptions of codes, so that banks with codes of their own are read alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def with_description(events: DataFrame, dictionaries: DataFrame | None, field: str, into: str) -> DataFrame:
    """Adds what a code means; the code itself where no dictionary knows it.

    Args:
        events: rows with a column `field`.
        dictionaries: the `dictionaries` table, if there is one; small enough to be sent to every task.
        field: column of codes.
        into: column to add, or to replace (`field` itself, say).
    """
    if dictionaries is None:
        return events.withColumn(into, F.col(field))
    own = dictionaries.where(F.col("field") == field)
    codes = own.select(F.col("code").alias(field), F.col("description").alias("_description"))
    joined = events.join(F.broadcast(codes), on=field, how="left")
    return joined.withColumn(into, F.coalesce("_description", field)).drop("_description")
