"""Champions: of several heads of a task the one whose scores readers get, since somebody said so and why.

A head that learns anew is another head. It scores beside the champion, and readers get its scores once it is promoted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from ledgerlm.lake.schemas import CHAMPIONS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.lake.lake import Lake

_SCHEMA = (
    "promotion long, task string, head_id string, replaced string, reason string, promoted_by string, "
    "promoted_at timestamp, publication long"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """One row of `champions`; the newest of a task holds.

    Attributes:
        promotion: counts from 1.
        task: the task.
        head_id: the head.
        replaced: the champion before it; None for the first of the task.
        reason: why, in the words of who did it.
        promoted_by: who did it.
        promoted_at: when.
        publication: whose scores were looked at.
    """

    promotion: int
    task: str
    head_id: str
    replaced: str | None
    reason: str
    promoted_by: str
    promoted_at: dt.datetime
    publication: int

    def row(self, spark: SparkSession) -> DataFrame:
        """The row, as the table has it."""
        return spark.createDataFrame([astuple(self)], _SCHEMA)


def promotions(lake: Lake) -> list[Champion]:
    """All promotions of a lake, newest first; they are as many as somebody has made."""
    if not lake.exists(CHAMPIONS.name):
        return []
    rows = lake.read(CHAMPIONS.name).drop("run_id").orderBy("promotion", ascending=False).collect()
    return [
        Champion(**{**row.asDict(), "promoted_at": row["promoted_at"].replace(tzinfo=dt.UTC)})  # the session is in UTC
        for row in rows
    ]


def champions(lake: Lake) -> dict[str, Champion]:
    """Task -> its champion; a task without one is left out, and readers get the scores of all its heads."""
    return {one.task: one for one in reversed(promotions(lake))}


def shown(champions: Mapping[str, Champion], heads: Sequence[str]) -> dict[str, str]:
    """Task -> the one head of a publication that readers get; one without the champion shows all that it has."""
    return {task: one.head_id for task, one in champions.items() if one.head_id in heads}
