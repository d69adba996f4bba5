"""Frames that are computed once and read several times, and how many tasks work is cut into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Keep = Callable[["DataFrame"], "DataFrame"]
"""Gives a frame whose rows are computed once, however often they are read; see `Keeper.keep`."""

_TASKS_AT_LEAST, _TASKS_AT_MOST = 8, 20_000


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


def tasks_for(rows: int, rows_a_task: int) -> int:
    """Tasks for work whose cost lies in its rows (a model reads them), whatever the cluster's size of the moment.

    With dynamic allocation the cores that are there when a job starts say nothing of those that come; so the number
    comes from the rows, with a few tasks at the least, so that cores can share.
    """
    return max(_TASKS_AT_LEAST, min(_TASKS_AT_MOST, -(-rows // rows_a_task)))


def with_columns(rows: DataFrame, columns: Mapping[str, Column]) -> DataFrame:
    """`DataFrame.withColumns` for columns that may be none, which Spark Connect refuses."""
    return rows.withColumns(dict(columns)) if columns else rows
