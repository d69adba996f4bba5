"""Frames that are computed once and read several times, and how many tasks work is cut into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ledgerlm.engines.session import setting

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

Keep = Callable[["DataFrame"], "DataFrame"]
"""Gives a frame whose rows are computed once, however often they are read; see `Keeper.keep`."""

_TASKS_AT_LEAST, _TASKS_AT_MOST = 8, 20_000
_IN_THE_PLAN = 10_000  # rows that a plan may carry as a literal


class Keeper:
    """Keeps frames on disk until it is released.

    Where a session refuses to persist (serverless compute), rows are staged as Parquet files below `folder`.

    Args:
        folder: URL for what is staged; left out, such a session's frames are computed again at each reading.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._kept: list[DataFrame] = []
        self._staged = 0

    def keep(self, frame: DataFrame) -> DataFrame:
        """The same rows, computed once."""
        from pyspark import StorageLevel
        from pyspark.errors import PySparkException

        try:
            kept = frame.persist(StorageLevel.DISK_ONLY)
        except PySparkException:  # [NOT_SUPPORTED_WITH_SERVERLESS] PERSIST TABLE is not supported
            if self._folder is None:
                return frame
            self._staged += 1
            path = f"{self._folder.rstrip('/')}/kept-{self._staged}"
            frame.write.mode("overwrite").parquet(path)
            return frame.sparkSession.read.parquet(path)
        self._kept.append(kept)
        return kept

    def release(self) -> None:
        """Gives the disk back."""
        while self._kept:
            self._kept.pop().unpersist()


def settled(frame: DataFrame, keep: Keep) -> DataFrame:
    """The same few rows, computed once; plans that read them need not hold how they were made.

    A plan holds, whole, those of all kept frames in it, so of frames kept one upon the other it has thousands of
    operators, and they cost more than the rows. Where one process does all the work the rows are computed at once, and
    that is the end of their plan. On a cluster an executor can be lost, and with it rows of which nobody would know
    how they were made: there, and where Spark is another process, they are kept as others are.

    Args:
        frame: rows whose making needs no word of progress.
        keep: computes a frame once.
    """
    from pyspark import StorageLevel
    from pyspark.sql.utils import is_remote

    master = setting(frame.sparkSession, "spark.master", "")
    if (master == "local" or master.startswith("local[")) and not is_remote():
        return frame.localCheckpoint(eager=True, storageLevel=StorageLevel.DISK_ONLY)
    return keep(frame)


def tasks_for(rows: int, rows_a_task: int) -> int:
    """Tasks for work whose cost lies in its rows (a model reads them), whatever the cluster's size of the moment.

    With dynamic allocation the cores that are there when a job starts say nothing of those that come; so the number
    comes from the rows, with a few tasks at the least, so that cores can share.
    """
    return max(_TASKS_AT_LEAST, min(_TASKS_AT_MOST, -(-rows // rows_a_task)))


def filtered_last(rows: DataFrame) -> DataFrame:
    """The same rows, for a filter on columns that many steps have made: it stays behind them.

    Spark 4.0 moves a filter before the steps and writes out what each column in it is made of, again and again: with
    the reasons of ingest its optimizer comes to no end. No filter is moved before a count.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    return rows.observe(Observation(), F.count(F.lit(1)).alias("rows"))


def with_columns(rows: DataFrame, columns: Mapping[str, Column]) -> DataFrame:
    """`DataFrame.withColumns` for columns that may be none, which Spark Connect refuses."""
    return rows.withColumns(dict(columns)) if columns else rows


def small_frame(spark: SparkSession, rows: Sequence[Sequence[Any]], schema: str) -> DataFrame:
    """A frame of the values given; of a few, without the Python processes that `createDataFrame` has read them.

    Args:
        spark: session.
        rows: texts, numbers, booleans and None, in the order of the columns.
        schema: names and types, as in `code string, place int`.
    """
    from pyspark.sql import functions as F

    if len(rows) > _IN_THE_PLAN:
        return spark.createDataFrame(list(rows), schema)
    names = [part.split()[0] for part in schema.split(",")]
    told = json.dumps([dict(zip(names, row, strict=True)) for row in rows])
    found = spark.range(1).select(F.inline(F.from_json(F.lit(told), f"array<struct<{schema}>>")))
    return found if rows else found.limit(0)  # of which Spark knows that it is empty, and plans accordingly
