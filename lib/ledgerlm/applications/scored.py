"""What an application starts from: the scores of one head for one task, and the instant that it is about."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import DataError
from ledgerlm.heads.tasks import Task
from ledgerlm.lake.slices import Slice, instant

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# A slice names each instant that it replaces.
_MOST_INSTANTS = 10_000


class ScoredConf(Conf):
    """Whose scores an application takes, and of which instant."""

    scores: HeadRef = Field(
        HeadRef("forecast"), description="STAGE whose head scored the task, or STAGE:NAME for one of several"
    )
    task: str = Field(description="task whose classes are the goals")
    as_of: dt.datetime | None = Field(None, description="scores of this instant; default the newest of the head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of one head.

    Attributes:
        task: what they are about.
        head_id: the head.
        as_of: the instant that the application is about, with its zone.
        rows: client_id, as_of, probabilities, of all instants; key (client_id, as_of).
    """

    task: Task
    head_id: str
    as_of: dt.datetime
    rows: DataFrame

    @property
    def instant(self) -> Column:
        """`as_of` as a column."""
        return F.lit(instant(self.as_of)).cast("timestamp")

    @property
    def now(self) -> DataFrame:
        """The rows of the instant."""
        return self.rows.where(F.col("as_of") == self.instant)

    def part(self, stage: str) -> Slice:
        """What a stage replaces with what it makes of them: its own rows of the instant, and of no other."""
        return {"stage": (stage,), "as_of": (instant(self.as_of),)}


def choose_scores(scores: DataFrame, heads: Sequence[str], task: Task, conf: ScoredConf) -> Scored:
    """The scores of the one head among `heads` that scored the task.

    Args:
        scores: the `scores` table.
        heads: ids of the heads that the configuration names.
        task: what was scored.
        conf: names heads and instant.

    Raises:
        DataError: no head or several have scores of the task, or the head has none of the instant.
    """
    rows = scores.where(F.col("head_id").isin(list(heads)) & (F.col("task") == task.name))
    given = F.lit(None if conf.as_of is None else conf.as_of.isoformat(sep=" ")).cast("timestamp")
    row = rows.agg(
        F.min("head_id").alias("head"),
        F.max("head_id").alias("other"),
        F.unix_micros(F.coalesce(given, F.max("as_of"))).alias("as_of"),
        F.count_if(F.col("as_of") == given).alias("there"),
        F.max("as_of").cast("string").alias("newest"),
    ).first()
    if row is None or row["head"] is None:
        raise DataError(f"stage {conf.scores.stage} has no scores of task {task.name}; run it, or name another stage")
    if row["head"] != row["other"]:
        raise DataError(f"stage {conf.scores.stage} has several heads for task {task.name}; name one with STAGE:NAME")
    if conf.as_of is not None and not row["there"]:
        raise DataError(
            f"{conf.scores} has no scores of {task.name} as of {conf.as_of}; its newest are of {row['newest']}"
        )
    return Scored(
        task=task,
        head_id=row["head"],
        as_of=_EPOCH + dt.timedelta(microseconds=row["as_of"]),
        rows=rows.select("client_id", "as_of", "probabilities"),
    )


def instants(rows: DataFrame) -> tuple[str, ...]:
    """The different `as_of` of some rows, as a slice has them, oldest first.

    Raises:
        DataError: when they are too many to be named one by one.
    """
    different = rows.select(F.unix_micros("as_of").alias("as_of")).distinct().orderBy("as_of")
    found = [row["as_of"] for row in different.limit(_MOST_INSTANTS + 1).collect()]
    if len(found) > _MOST_INSTANTS:
        raise DataError(f"the scores have more than {_MOST_INSTANTS:,} different as_of; choose one of them with as_of")
    return tuple(instant(_EPOCH + dt.timedelta(microseconds=one)) for one in found)
