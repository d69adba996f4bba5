"""Windows: runs of a client's events inside one period, filled from the period's oldest event, by native expressions.

Where a document is filled from the newest event back and so shifts with every event, a window keeps its text: only the
newest one of a period grows, and a late event changes its own window and those behind it in its period (see
docs/rescoring.md).

The work is laid out as in `ledgerlm.text.serialize`: one shuffle of rendered lines by client and one sort, whose order
serves both the look at the event before and the place in the period. What is collected is one window at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.clock import local
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.schemas import BUCKETS
from ledgerlm.text.formats import FORMATS, FormatName
from ledgerlm.text.rendering import KEYS, frame_tokens, line, line_tokens, text_hash, whole_text
from ledgerlm.text.serialize import DocumentConf, rendered, shown_fields

Period = Literal["month", "quarter", "year", "none"]

_NO_PERIOD = dt.date(1970, 1, 1)  # the period of all events where windows are anchored at none
_WINDOW = ("client_id", "_period", "_place")


class WindowConf(Conf):
    """How a client's events are cut into windows."""

    period: Period = Field(
        "month",
        description="calendar unit that anchors windows, in the data's zone: month, quarter, year, or none for one run "
        "through the whole history; a late event changes no window of another unit but the one of the event after it",
    )
    events: int = Field(32, ge=1, description="most events of a window")

    @property
    def windowing(self) -> str:
        """Both in a word, such as `month:32`."""
        return f"{self.period}:{self.events}"


class ToldWindows(AsOfConf):
    """Which windows a serialize stage wrote, and when histories end that are read from them; facts of the stage."""

    format: FormatName = Field(description="format of the texts")
    windowing: str = Field(description="period and events")
    as_of: dt.datetime = Field(description="end of the histories of clients without a label")
    until: dt.datetime | None = Field(None, description="no history ends later")

    @classmethod
    def of(cls, facts: Mapping[str, Any], stage: str) -> ToldWindows:
        """From the facts of a stage.

        Args:
            facts: of a serialize stage.
            stage: its name, for the message.

        Raises:
            ConfigError: the stage wrote documents.
        """
        if "windowing" not in facts:
            raise ConfigError(
                f"stage {stage} wrote documents, and windows are to be read: set `windows` of the stage, or name the "
                "serialize stage that has it with `serialize`"
            )
        return cls(**{name: facts[name] for name in cls.model_fields})

    @property
    def name(self) -> str:
        """Format and windowing in a word, such as `compact@month:32`."""
        return f"{self.format}@{self.windowing}"

    def of_table(self, windows: DataFrame) -> DataFrame:
        """The windows of this format and windowing."""
        return windows.where((F.col("format") == self.format) & (F.col("windowing") == self.windowing))

    def asked(self, clients: DataFrame, labels: DataFrame | None) -> DataFrame:
        """When histories end: client_id, as_of; at these times, and no others, windows are cut.

        Args:
            clients: the `clients` table.
            labels: the `labels` table, if there is one.
        """
        times = asked(clients, labels, self.as_of, self)
        if self.until is None:
            return times
        last = F.lit(self.until.isoformat(sep=" ")).cast("timestamp")
        return times.withColumn("as_of", F.least("as_of", last)).distinct()


def bucket(client_id: Column) -> Column:
    """The bucket of a client, by which large tables are clustered."""
    return F.pmod(F.xxhash64(client_id), F.lit(BUCKETS)).cast("int")


def period_of(time: Column, period: Period, zone: str) -> Column:
    """First day of the calendar unit that a clock in the zone shows.

    Args:
        time: an instant.
        period: the unit; with `none` the day is always 1 January 1970.
        zone: that of the data set.
    """
    return F.lit(_NO_PERIOD) if period == "none" else F.trunc(F.to_date(local(time, zone)), period)


def refuse_unfit(conf: DocumentConf) -> None:
    """Refuses what windows cannot obey.

    Raises:
        ConfigError: a format of other than one line an event, the format published, or a document's budgets.
    """
    fit = [name for name, form in FORMATS.items() if form.line_by_line and name != "published"]
    if conf.format not in fit:
        why = (
            "ranks its codes by all training clients, so new events would change old windows"
            if conf.format == "published"
            else "does not tell each event in one line, by which states are folded"
        )
        raise ConfigError(f"serialize: windows: the format {conf.format} {why}; take one of {', '.join(fit)}")
    budgets = sorted({"max_events", "max_tokens"} & conf.model_fields_set)
    if budgets:
        raise ConfigError(
            f"serialize: windows: {' and '.join(budgets)} cut documents, but windows hold every event; leave "
            f"{'them' if len(budgets) > 1 else 'it'} out, and set windows.events for the length of a window"
        )


def windows(
    events: DataFrame,
    spec: DataSetSpec,
    conf: DocumentConf,
    windowing: WindowConf,
    *,
    cuts: DataFrame | None = None,
    dictionaries: DataFrame | None = None,
    described: Collection[str] | None = None,
    since: DataFrame | None = None,
) -> DataFrame:
    """Turns histories into windows.

    Args:
        events: the events table.
        spec: the data set.
        conf: format and fields; budgets do not apply.
        windowing: period and events of a window.
        cuts: client_id, as_of: when histories are asked for. Where one falls inside a window, that window's events
            before it are told as a window of their own.
        dictionaries: the dictionaries table; codes are shown as their descriptions.
        described: fields that have a dictionary; left out, those whose spec names one.
        since: client_id, earliest (one row a client): only windows of these clients are made, of the periods from
            that of `earliest` on.

    Returns:
        One row a client, period and place: the whole window (`cut_at` null); and one for each `as_of` in a window
        (first event < as_of <= last event), its events before it. Columns of the windows table without `run_id`,
        unordered. Within a window events are ordered by event_time, event_seq, event_id. With `since` the rows equal
        those of a call without it, restricted to its clients and periods.

    Raises:
        ConfigError: fields that the data set lacks, or settings that windows cannot obey.
    """
    refuse_unfit(conf)
    shown, form, zone = shown_fields(spec, conf), FORMATS[conf.format], spec.time.zone
    start = [] if since is None else ["_start"]
    if since is not None:
        own = since.select("client_id", period_of(F.col("earliest"), windowing.period, zone).alias("_start"))
        events = events.join(own, on="client_id", how="inner")
    lines = rendered(events, spec, conf, dictionaries=dictionaries, described=described, carried=start)
    placed = _placed(lines.withColumn("_tokens", line_tokens(shown, form)), conf, spec, windowing, started=bool(start))
    line_of = F.struct("_ordinal", "event_time", "_sum", "_tokens", "_text")
    # Sorted by ordinal, since the order of a collected list is promised by nobody; in order already, it costs little.
    whole = placed.groupBy(*_WINDOW).agg(F.sort_array(F.collect_list(line_of)).alias("_lines"))
    told = _told(whole.withColumn("cut_at", F.lit(None).cast("timestamp")) if cuts is None else _cut(whole, cuts))
    first, last = F.element_at("_told", 1), F.element_at("_told", -1)
    tokens = last["_sum"] - first["_sum"] + first["_tokens"] + frame_tokens(shown, form)
    text = whole_text(shown, form, F.col("_told").getField("_text"))
    return told.withColumn("text", text).select(
        "client_id",
        F.lit(form.name).alias("format"),
        F.lit(windowing.windowing).alias("windowing"),
        bucket(F.col("client_id")).alias("bucket"),
        F.col("_period").alias("period"),
        F.col("_place").alias("place"),
        "cut_at",
        first["event_time"].alias("first_event_time"),
        last["event_time"].alias("last_event_time"),
        F.size("_told").alias("event_count"),
        tokens.cast("int").alias("token_estimate"),
        "text",
        text_hash(form, F.col("text")).alias("text_hash"),
        F.lit(form.serializer).alias("serializer"),
    )


def before_asked(windows: DataFrame, asked: DataFrame) -> DataFrame:
    """The windows that hold what came before the times that are asked: whole ones that end before the newest of their
    client, and the cut ones of these times.

    Args:
        windows: rows of the windows table, of one format and windowing.
        asked: client_id, as_of.
    """
    newest = asked.groupBy("client_id").agg(F.max("as_of").alias("_newest"))
    whole = windows.where("cut_at IS NULL").join(newest, "client_id").where("last_event_time < _newest")
    times = asked.select("client_id", F.col("as_of").alias("cut_at")).distinct()
    cut = windows.where("cut_at IS NOT NULL").join(times, ["client_id", "cut_at"], how="left_semi")
    return whole.drop("_newest").unionByName(cut)


def _placed(
    lines: DataFrame, conf: DocumentConf, spec: DataSetSpec, windowing: WindowConf, *, started: bool
) -> DataFrame:
    """Each event's period, place and line; both windows of Spark work on one sort by client, period and time."""
    zone = spec.time.zone
    rows = lines.withColumn("_period", period_of(F.col("event_time"), windowing.period, zone))
    if started:  # of older events only the time is needed: the first line tells the gap to it
        rows = rows.withColumn("_tail", F.when(F.col("_period") >= F.col("_start"), F.col("_tail")))
    of_client = Window.partitionBy("client_id").orderBy("_period", *KEYS[1:])
    of_period = Window.partitionBy("client_id", "_period").orderBy(*KEYS[1:])
    up_to_here = of_period.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    rows = rows.withColumn("_before", F.lag("event_time").over(of_client)).withColumns(
        {"_ordinal": F.row_number().over(of_period), "_sum": F.sum("_tokens").over(up_to_here)}
    )
    if started:
        rows = rows.where(F.col("_period") >= F.col("_start"))
    place = F.floor((F.col("_ordinal") - 1) / F.lit(windowing.events)).cast("int")
    text = line(shown_fields(spec, conf), FORMATS[conf.format], F.col("_before"), zone)
    return rows.select(
        "client_id",
        "_period",
        place.alias("_place"),
        "_ordinal",
        "event_time",
        "_sum",
        "_tokens",
        text.alias("_text"),
    )


def _cut(whole: DataFrame, cuts: DataFrame) -> DataFrame:
    """Adds `cut_at`: each window once with null, and once for each time asked of its client that falls into it."""
    both = F.explode(F.array(F.lit(None).cast("timestamp"), F.col("as_of")))
    # Shuffled by client alone, as the windows are, and made distinct without a further shuffle.
    asked = cuts.select(F.col("client_id").alias("_client"), both.alias("cut_at")).repartition("_client").distinct()
    first = F.element_at("_lines", 1)["event_time"]
    last = F.element_at("_lines", -1)["event_time"]
    inside = F.col("cut_at").isNull() | ((first < F.col("cut_at")) & (F.col("cut_at") <= last))
    fits = (F.col("client_id") == F.col("_client")) & inside
    return whole.join(asked.hint("shuffle_hash"), on=fits, how="left").drop("_client")


def _told(windows: DataFrame) -> DataFrame:
    """Adds `_told`: the lines of the window, or those before `cut_at`."""
    times = F.col("_lines").getField("event_time")
    # As many events are older as stand before the time once it is sorted in among theirs; ties come behind it.
    older = F.array_position(F.sort_array(F.array_append(times, F.col("cut_at"))), F.col("cut_at")) - 1
    count = F.when(F.col("cut_at").isNull(), F.size("_lines")).otherwise(older).cast("int")
    return windows.withColumn("_told", F.slice("_lines", F.lit(1), count))
