"""What must be done to rows so that they are others: the form in which a night writes, at the cost of what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

CHANGE = "_change"
"""Column of a frame of differences: INSERT, UPDATE or DELETE; a row to delete needs no more than its key."""
INSERT, UPDATE, DELETE = "insert", "update", "delete"


def differences(old: DataFrame, new: DataFrame, key: Sequence[str], told_by: Sequence[str]) -> DataFrame:
    """The rows in which `new` differs from `old`.

    Args:
        old: rows that are there.
        new: rows that shall be there in their place.
        key: columns that identify a row in either; may hold nulls.
        told_by: columns in which two rows of one key differ if they differ at all.

    Returns:
        The columns of `new` and CHANGE; a row without a difference is left out.
    """
    sides = [
        frame.select(*key, F.struct(*columns).alias(side))
        for frame, columns, side in ((old, told_by, "_old"), (new, new.columns, "_new"))
    ]
    both = sides[0].alias("o").join(sides[1].alias("n"), _same(key), how="full")
    equal = [F.col(f"_old.{name}").eqNullSafe(F.col(f"_new.{name}")) for name in told_by]
    change = F.when(F.col("_new").isNull(), DELETE).when(F.col("_old").isNull(), INSERT).when(~_all(equal), UPDATE)
    columns = [
        (
            F.when(F.col("_new").isNull(), F.col(f"o.{name}")).otherwise(F.col(f"n.{name}"))
            if name in key
            else F.col(f"_new.{name}")
        ).alias(name)
        for name in new.columns
    ]
    return both.select(*columns, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())


def applied(old: DataFrame, changes: DataFrame, key: Sequence[str]) -> DataFrame:
    """The rows after the differences are applied, columns of `changes` without CHANGE."""
    columns = [name for name in changes.columns if name != CHANGE]
    kept = without(old.select(*columns), changes, key)
    return kept.unionByName(changes.where(F.col(CHANGE) != DELETE).select(*columns))


def without(rows: DataFrame, gone: DataFrame, key: Sequence[str]) -> DataFrame:
    """The rows whose keys are not among those of `gone`."""
    return rows.alias("o").join(gone.select(*key).alias("n"), _same(key), how="left_anti")


def _same(key: Sequence[str]) -> Column:
    return _all([F.col(f"o.{name}").eqNullSafe(F.col(f"n.{name}")) for name in key])


def _all(conditions: Sequence[Column]) -> Column:
    found = F.lit(True)
    for one in conditions:
        found = found & one
    return found
