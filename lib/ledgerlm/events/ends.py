"""Where the data end: what lies beyond is not known, so neither a history nor the days of a label may reach there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.clock import aware, fixed_instant, local
from ledgerlm.events.spec_times import TimeSpec

_GAP = dt.timedelta(days=366)
_SHARE = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Where the data end.

    Attributes:
        time: the instant; without a zone where the data's is UTC.
        beyond: events at or after it.
    """

    time: dt.datetime
    beyond: int


def end_of_data(events: DataFrame, time: TimeSpec) -> End:
    """`time.end`, or midnight after the last event that does not stand alone.

    The latest event alone would let a single one, dated 2099, move the end of all histories and cover the windows of
    all labels. So events count for nothing here when they are at most one in a thousand (or one) and come more than a
    year after all others. Without such a gap the end is midnight after the last event.

    Args:
        events: the `events` table; its months are counted, of which a century has 1,200.
        time: the data set's.

    Raises:
        DataError: for an empty table.
    """
    shown = local(F.col("event_time"), time.zone)
    beyond = F.col("event_time") >= fixed_instant(time.end, time.zone) if time.end else F.lit(False)
    months = (
        events.where("event_time IS NOT NULL")
        .groupBy(F.date_trunc("month", shown).alias("month"))
        .agg(
            F.count(F.lit(1)).alias("events"),
            F.count_if(beyond).alias("beyond"),
            F.min(F.to_date(shown)).alias("first"),
            F.max(F.to_date(shown)).alias("last"),
        )
        .orderBy("month")
        .collect()
    )
    if not months:
        raise DataError("the events table is empty: there is no history to tell; look at the quarantine table")
    if time.end is not None:
        return End(time=time.end, beyond=sum(row["beyond"] for row in months))
    kept = _before_the_lonely(months)
    midnight = dt.datetime.combine(months[kept - 1]["last"] + dt.timedelta(days=1), dt.time())
    return End(time=aware(midnight, time.zone), beyond=sum(row["events"] for row in months[kept:]))


def _before_the_lonely(months: Sequence[Row]) -> int:
    """How many months stand before the first long gap that almost nothing follows."""
    total = left = sum(row["events"] for row in months)
    most = min(max(1, int(total * _SHARE)), (total - 1) // 2)  # of two events none is the exception
    for place in range(1, len(months)):
        left -= months[place - 1]["events"]
        if left <= most and months[place]["first"] - months[place - 1]["last"] > _GAP:
            return place
    return len(months)
