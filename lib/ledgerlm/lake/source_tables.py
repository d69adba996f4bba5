"""Delta tables that others write: which version is the newest, its rows, and what each commit since another changed.

Everything goes through DataFrames and SQL, so that a Spark Connect session serves as well as a classic one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ledgerlm.config import Conf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NAME = re.compile(r"^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*){2}$")
_LATER = 20  # commits that others may make while one looks
CHANGE_TYPE = "_change_type"
"""Column of a change data feed: `insert`, `update_preimage`, `update_postimage` or `delete`."""
_OF_THE_FEED = ("_commit_version", "_commit_timestamp")


class TableVersion(Conf):
    """A version of a table.

    Attributes:
        table_id: what Delta gave the table when it was made; one that is made anew in its place has another.
        version: number of the version.
        committed: when its commit was made, in microseconds since 1970. A log that was put back from a copy, and grew
            again, has other commits under the same numbers.
    """

    table_id: str
    version: int
    committed: int


def in_catalog(path: str) -> bool:
    """Whether a path is `catalog.schema.table`, and not a folder or a URL; a folder of such a name is `./a.b.c`."""
    return bool(_NAME.match(path))


def newest_version(spark: SparkSession, path: str) -> TableVersion | None:
    """The newest version of a table, by its folder, URL or name; None where no Delta table is."""
    from pyspark.errors import PySparkException

    try:
        detail = spark.sql(f"DESCRIBE DETAIL {_identifier(path)}").select("id").first()
        commit = _history(spark, path, 1).first()
    except PySparkException:
        return None
    if detail is None or commit is None:
        return None
    return TableVersion(table_id=detail["id"], version=commit["version"], committed=commit["committed"])


def has_version(spark: SparkSession, path: str, at: TableVersion, newest: int) -> bool:
    """Whether the log of a table holds the very commit of a version, whose number is not above the newest."""
    from pyspark.sql import functions as F

    commit = _history(spark, path, newest - at.version + _LATER).where(F.col("version") == at.version).first()
    return commit is not None and commit["committed"] == at.committed


def _history(spark: SparkSession, path: str, commits: int) -> DataFrame:
    """Version, and when it was committed, of the newest commits."""
    from pyspark.sql import functions as F

    rows = spark.sql(f"DESCRIBE HISTORY {_identifier(path)} LIMIT {commits}")
    return rows.select("version", F.unix_micros("timestamp").alias("committed"))


def rows_at(spark: SparkSession, path: str, version: int | None = None) -> DataFrame:
    """The rows of a version of a table; of the newest one."""
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    return reader.table(path) if in_catalog(path) else reader.load(path)


def change_feed(spark: SparkSession, path: str, since: int, until: int) -> DataFrame:
    """The table's columns and CHANGE_TYPE of each row that the commits after one version, up to another, touched.

    What it cannot give (the feed was off, files are gone) raises when it is made or when it is read.
    """
    reader = spark.read.format("delta").option("readChangeFeed", "true")
    reader = reader.option("startingVersion", since + 1).option("endingVersion", until)
    return (reader.table(path) if in_catalog(path) else reader.load(path)).drop(*_OF_THE_FEED)


def _identifier(path: str) -> str:
    """The table in a SQL statement."""
    if in_catalog(path):
        return ".".join(f"`{part}`" for part in path.split("."))
    return f"delta.`{path.replace('`', '``')}`"
