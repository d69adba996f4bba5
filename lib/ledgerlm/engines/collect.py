"""How much may be read to the driver: what the engine profile gives it, and not a number of rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ledgerlm.engines.session import setting
from ledgerlm.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}
_SIZE = re.compile(r"(\d+)\s*([bkmgtp]?)b?", re.IGNORECASE)
# Spark's own defaults.
_RESULTS, _MEMORY = "1g", "1g"
# Of the limit: what Arrow adds to the numbers, and what else lies in the driver's memory.
_SHARE = 0.8


def collectable(spark: SparkSession) -> int:
    """Bytes that one query may bring to this process: `spark.driver.maxResultSize`, and half of the driver's memory.

    Results lie in the driver's heap until Python has taken them over, and Spark ends a query that brings more.
    """
    results = parse_size(setting(spark, "spark.driver.maxResultSize", _RESULTS), unit="b")
    memory = parse_size(setting(spark, "spark.driver.memory", _MEMORY), unit="m")
    return int(_SHARE * min(results or memory, memory / 2))


def parse_size(text: str, *, unit: str) -> int:
    """Bytes of a size as Spark writes it (`2g`, `512m`); `unit` is meant where none is written.

    Raises:
        ConfigError: for what is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"'{text}' is no size; write 512m or 2g")
    return int(found[1]) * _UNITS[(found[2] or unit).lower()]
