"""Settings of a session that is there; a platform may tell, or take, but a few of them (serverless compute)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def setting(spark: SparkSession, key: str, default: str) -> str:
    """What a session says of a setting; `default` where it is not set, or is not told."""
    from pyspark.errors import PySparkException

    try:
        return spark.conf.get(key, default) or default
    except PySparkException:  # [CONFIG_NOT_AVAILABLE], in spite of the default
        return default


def change(spark: SparkSession, values: Mapping[str, str]) -> dict[str, str | None]:
    """Sets what is set otherwise.

    Returns:
        What each was before, for `put_back`; None for one that was not set.

    Raises:
        PySparkException: the platform takes one of them not; then all are as they were.
    """
    from pyspark.errors import PySparkException

    before: dict[str, str | None] = {}
    try:
        for key, value in values.items():
            was = spark.conf.get(key, None)
            if was != value:
                spark.conf.set(key, value)
                before[key] = was
    except PySparkException:
        put_back(spark, before)
        raise
    return before


def put_back(spark: SparkSession, before: Mapping[str, str | None]) -> None:
    """Takes a `change` back."""
    for key, value in before.items():
        if value is None:
            spark.conf.unset(key)
        else:
            spark.conf.set(key, value)
