"""Whether documents and windows hold what the events say, counted again from the events themselves."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.formats import FORMATS
from ledgerlm.text.serialize import DocumentConf, shown_fields, with_as_of
from ledgerlm.text.windows import WindowConf, period_of

_KEY = ("client_id", "as_of")
_FROM_EVENTS = ("events_before", "events_after")
_FROM_DOCUMENTS = ("documents", "event_count_used", "event_count_cut", "token_estimate", "late", "broken")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """Documents in which no fault was found.

    Attributes:
        counts: `clients_with_events`, `documents`, `events_before_as_of`, `events_after_as_of`, `events_used`,
            `events_cut`.
        typical: the median of the documents' estimated tokens; None without documents.
    """

    counts: dict[str, int]
    typical: int | None


def check_documents(
    documents: DataFrame,
    events: DataFrame,
    labels: DataFrame | None,
    as_of: dt.datetime,
    *,
    spec: DataSetSpec,
    conf: DocumentConf,
) -> DataFrame:
    """Counts again, from the events, what every document must hold: finds leaks, lost events and missing documents.

    What the events and what the documents say of a history is laid below each other and added up: neither the texts
    nor the events are shuffled, only counts.

    Args:
        documents: documents of the format of `conf`.
        events: the events table.
        labels: as they were given to `serialize`.
        as_of: as it was given to `serialize`.
        spec: the data set.
        conf: as it was given to `serialize`.

    Returns:
        One row a client and `as_of`: client_id, as_of, events_before, events_after (at or after `as_of`),
        event_count_used, event_count_cut, token_estimate, and `fault`: null, `missing` (no document), `unknown` (a
        document, but no event before its `as_of`), `leak` (an event at or after `as_of`), `lost` (fewer events than
        there are) or `text` (not as many events in the text as counted).
    """
    before = F.col("event_time") < F.col("as_of")
    seen = with_as_of(events.select("client_id", "event_time"), labels, as_of).select(
        *_KEY,
        *_whole(dict(zip(_FROM_EVENTS, (before, ~before), strict=True))),
        *_whole(dict.fromkeys(_FROM_DOCUMENTS, F.lit(0))),
    )
    told = documents.select(
        *_KEY,
        *_whole(dict.fromkeys(_FROM_EVENTS, F.lit(0))),
        *_whole(
            {
                "documents": F.lit(1),
                **{name: F.col(name) for name in ("event_count_used", "event_count_cut", "token_estimate")},
                "late": F.coalesce(F.col("last_event_time") >= F.col("as_of"), F.lit(False)),
                "broken": _line_breaks(F.col("text")) != _expected_breaks(spec, conf),
            }
        ),
    )
    sums = (F.sum(name).alias(name) for name in (*_FROM_EVENTS, *_FROM_DOCUMENTS))
    rows = seen.unionByName(told).groupBy(*_KEY).agg(*sums)
    known, held = F.col("events_before"), F.col("event_count_used") + F.col("event_count_cut")
    fault = (
        F.when(F.col("documents") == 0, F.when(known > 0, F.lit("missing")))
        .when((F.col("late") > 0) | ((held > known) & (known > 0)), F.lit("leak"))
        .when(known == 0, F.lit("unknown"))
        .when(held < known, F.lit("lost"))
        .when(F.col("broken") > 0, F.lit("text"))
    )
    return rows.select(
        *_KEY, *_FROM_EVENTS, "event_count_used", "event_count_cut", "token_estimate", fault.alias("fault")
    )


def sum_up(checked: DataFrame) -> Checked:
    """Sums up the check.

    Args:
        checked: from `check_documents`.

    Raises:
        DataError: for a leak, a lost event or a missing document, naming the kind, the number and one client.
    """
    told = F.col("event_count_used") > 0
    row = checked.agg(
        F.count_distinct(F.when(told, F.col("client_id"))).alias("clients_with_events"),
        F.count_if(told).alias("documents"),
        _total("events_before").alias("events_before_as_of"),
        _total("events_after").alias("events_after_as_of"),
        _total("event_count_used").alias("events_used"),
        _total("event_count_cut").alias("events_cut"),
        F.percentile_approx(F.when(told, F.col("token_estimate")), 0.5).alias("typical"),
        F.count("fault").alias("faults"),
        F.min(F.when(F.col("fault").isNotNull(), F.struct("fault", *_KEY))).alias("first"),
    ).first()
    counts: dict[str, Any] = {} if row is None else row.asDict()
    first, faults, typical = (counts.pop(name, None) for name in ("first", "faults", "typical"))
    if faults and first is not None:
        raise DataError(
            f"{faults} documents do not hold what the events say; the first: fault '{first['fault']}', client "
            f"{first['client_id']}, as_of {first['as_of']}; run the stage again, and ingest if it stays"
        )
    if counts["events_used"] + counts["events_cut"] != counts["events_before_as_of"]:
        raise DataError(f"events used and cut do not add up to the events before as_of: {counts}")
    return Checked(counts=counts, typical=typical)


def check_windows(windows: DataFrame, events: DataFrame, *, spec: DataSetSpec, windowing: WindowConf) -> DataFrame:
    """Counts again, from the events, what the windows of every client and period must hold.

    Args:
        windows: windows of one format and windowing.
        events: the events that they were made of.
        spec: the data set.
        windowing: as it was given to `windows`.

    Returns:
        One row a client and period: client_id, period, events, windows (whole ones), cut_windows, told (events in
        whole windows), tokens (estimated, of whole windows), and `fault`: null, `missing` (no window), `unknown` (a
        window, but no event), `doubled` (more events than there are), `lost` (fewer), `places` (not filled in order) or
        `text` (not as many lines in a text as events counted).
    """
    period = period_of(F.col("event_time"), windowing.period, spec.time.zone).alias("period")
    whole, count = F.col("cut_at").isNull(), F.col("event_count")
    counted = {
        "windows": whole,
        "cut_windows": ~whole,
        "told": F.when(whole, count).otherwise(0),
        "tokens": F.when(whole, F.col("token_estimate")).otherwise(0),
        "short": whole & (count < windowing.events),
        "short_places": F.when(whole & (count < windowing.events), F.col("place") + 1).otherwise(0),
        "places": F.when(whole, F.col("place")).otherwise(0),
        "broken": _line_breaks(F.col("text")) != count,
    }
    seen = events.select("client_id", period, *_whole({"events": F.lit(1), **dict.fromkeys(counted, F.lit(0))}))
    told = windows.select("client_id", "period", *_whole({"events": F.lit(0), **counted}))
    sums = [F.sum(name).alias(name) for name in ("events", *counted)]
    rows = seen.unionByName(told).groupBy("client_id", "period").agg(*sums)
    number = F.col("windows")
    # The places are 0 to one less than their number, and no window is short but the last.
    in_order = (F.col("places") * 2 == number * (number - 1)) & (F.col("short_places") == F.col("short") * number)
    in_order &= F.col("short") <= 1
    fault = (
        F.when(F.col("events") == 0, F.lit("unknown"))
        .when(number == 0, F.lit("missing"))
        .when(F.col("told") > F.col("events"), F.lit("doubled"))
        .when(F.col("told") < F.col("events"), F.lit("lost"))
        .when(~in_order, F.lit("places"))
        .when(F.col("broken") > 0, F.lit("text"))
    )
    return rows.select(
        "client_id", "period", "events", "windows", "cut_windows", "told", "tokens", fault.alias("fault")
    )


def sum_up_windows(checked: DataFrame) -> dict[str, int]:
    """Sums up the check of windows.

    Args:
        checked: from `check_windows`.

    Returns:
        `clients_with_events`, `events`, `windows`, `cut_windows`, `tokens` (estimated, of whole windows).

    Raises:
        DataError: for an event that is not in exactly one whole window, naming the kind, the number and one client.
    """
    row = checked.agg(
        F.count_distinct("client_id").alias("clients_with_events"),
        *(_total(name).alias(name) for name in ("events", "windows", "cut_windows", "tokens")),
        F.count("fault").alias("faults"),
        F.min(F.when(F.col("fault").isNotNull(), F.struct("fault", "client_id", "period"))).alias("first"),
    ).first()
    counts: dict[str, Any] = {} if row is None else row.asDict()
    first, faults = counts.pop("first", None), counts.pop("faults", None)
    if faults and first is not None:
        raise DataError(
            f"windows of {faults} clients and periods do not hold what the events say; the first: fault "
            f"'{first['fault']}', client {first['client_id']}, period {first['period']}; run the stage again, and "
            "ingest if it stays"
        )
    return counts


def _whole(columns: dict[str, Column]) -> list[Column]:
    return [column.cast("long").alias(name) for name, column in columns.items()]


def _total(name: str) -> Column:
    return F.coalesce(F.sum(name), F.lit(0))


def _line_breaks(text: Column) -> Column:
    return F.length(text) - F.length(F.replace(text, F.lit("\n"), F.lit("")))


def _expected_breaks(spec: DataSetSpec, conf: DocumentConf) -> Column:
    """Line breaks of a document of as many events as it counts."""
    form, shown = FORMATS[conf.format], shown_fields(spec, conf)
    around = (form.head(shown) + form.foot).count("\n") - 1
    return F.col("event_count_used") * (1 + form.between.count("\n") * (len(shown) - 1)) + around
