"""Which windows a batch of events changes: those of the clients that it touched, from the earliest change on.

The dirty set is a client and the time from which on its events are others than they were. Windows of earlier periods
cannot change: they are anchored at their period, and the gap that their first line tells is to an event before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.lake.differences import differences
from ledgerlm.text.formats import FORMATS
from ledgerlm.text.serialize import shown_fields
from ledgerlm.text.windows import WindowConf, period_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.text.serialize import DocumentConf

    Make = Callable[..., DataFrame]

_TOLD_BY = ("text_hash", "first_event_time", "last_event_time", "event_count", "token_estimate", "serializer")


def told_alike(standing: DataFrame, spec: DataSetSpec, conf: DocumentConf) -> bool:
    """Whether the windows that stand show what the settings show now; a data set may have got a time of day.

    Args:
        standing: windows of the format.
        spec: the data set, with what its events say of it.
        conf: the settings.
    """
    head = FORMATS[conf.format].head(shown_fields(spec, conf))
    row = standing.select(F.startswith("text", F.lit(head)).alias("alike")).first()
    return row is not None and bool(row["alike"])


def dirty_windows(standing: DataFrame, dirty: DataFrame, asked: DataFrame) -> DataFrame:
    """The clients whose windows may be others, and from which time on: those whose events changed, and those of whom
    another time is asked than before inside a window, or no longer.

    Args:
        standing: windows of one format and windowing.
        dirty: client_id, earliest.
        asked: client_id, as_of.

    Returns:
        client_id, earliest; a row a client.
    """
    whole = standing.where("cut_at IS NULL").select("client_id", "first_event_time", "last_event_time")
    inside = (F.col("first_event_time") < F.col("as_of")) & (F.col("as_of") <= F.col("last_event_time"))
    wanted = asked.join(whole, "client_id").where(inside).select("client_id", "as_of")
    there = standing.where("cut_at IS NOT NULL").select("client_id", F.col("cut_at").alias("as_of"))
    key = ["client_id", "as_of"]
    other = wanted.join(there, key, how="left_anti").unionByName(there.join(wanted, key, how="left_anti"))
    # A window that is cut before a time begins before it, in the same period.
    cut = other.select("client_id", F.expr("as_of - INTERVAL 1 MICROSECOND").alias("earliest"))
    return dirty.unionByName(cut).groupBy("client_id").agg(F.min("earliest").alias("earliest"))


def changed_windows(
    events: DataFrame, standing: DataFrame, dirty: DataFrame, *, make: Make, windowing: WindowConf, zone: str
) -> DataFrame:
    """The differences between the windows that stand and those of the events now.

    Args:
        events: the events table.
        standing: windows of one format and windowing.
        dirty: from `dirty_windows`; kept.
        make: `windows.windows` with its settings.
        windowing: period and events of a window.
        zone: that of the data set.

    Returns:
        Rows of the windows table as `lake.differences` has them.
    """
    now = make(events.join(dirty.select("client_id"), "client_id", how="left_semi"), since=dirty)
    start = period_of(F.col("earliest"), windowing.period, zone)
    before = standing.join(dirty.select("client_id", start.alias("_start")), "client_id")
    before = before.where(F.col("period") >= F.col("_start"))
    key = ("client_id", "format", "windowing", "period", "place", "cut_at")
    return differences(before, now, key, _TOLD_BY)
