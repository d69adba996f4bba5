"""The documents, or the windows, of all clients in one format, checked against the events that they tell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field, model_validator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.clock import aware, fixed_instant, with_clock
from ledgerlm.events.condition import Condition
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.slices import Slice
from ledgerlm.text.changed_windows import changed_windows, dirty_windows, told_alike
from ledgerlm.text.check import check_documents, check_windows, sum_up, sum_up_windows
from ledgerlm.text.serialize import DocumentConf, serialize, shown_fields
from ledgerlm.text.windows import ToldWindows, WindowConf, refuse_unfit, windows

_EXAMPLE_LENGTH = 1500  # characters of the example document in the report


class SerializeConf(DocumentConf, AsOfConf):
    """Settings of the serialize job."""

    windows: WindowConf | None = Field(
        None,
        description="writes windows that stay instead of documents, which shift with every event: `period` (month, "
        "quarter, year or none; month) anchors them, `events` (32) is the most that one holds; embed reads them with "
        "source: windows, finetune as the format `windows`",
    )
    only: Condition | None = Field(None, description="SQL condition on columns of the events; others are not told")
    until: dt.datetime | None = Field(
        None,
        description="no history ends later, whatever its label's as_of: documents for a backbone that must not see "
        "what comes after",
    )

    @model_validator(mode="after")
    def _fits(self) -> SerializeConf:
        if self.windows is not None:
            try:
                refuse_unfit(self)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables that are read; whose events changed matters to windows alone."""
        labels, changes = (("labels?",) if self.labels else ()), (("changes?",) if self.windows else ())
        return ("events", "clients", "dictionaries?", *labels, *changes)

    @property
    def slices(self) -> dict[str, Slice]:
        """The part of each table that is written: of documents or of windows."""
        if self.windows is None:
            return {"documents": {"format": (self.format,)}}
        return {"windows": {"format": (self.format,), "windowing": (self.windows.windowing,)}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Windows that were told before, and what has changed since.

    Attributes:
        windows: of the format and windowing.
        dirty: client_id, earliest: whose events changed, from when on.
        keep: computes a frame once.
    """

    windows: DataFrame
    dirty: DataFrame
    keep: Keep


def tell_histories(
    events: DataFrame,
    clients: DataFrame,
    conf: SerializeConf,
    *,
    spec: DataSetSpec,
    end: dt.datetime,
    labels: DataFrame | None = None,
    dictionaries: DataFrame | None = None,
    standing: Standing | None = None,
) -> Made:
    """Turns each client's history into a document for each `as_of` that is asked of it, or into windows.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        conf: format, fields, budgets; which events, until when.
        spec: the data set.
        end: end of the histories of clients without a label.
        labels: the `labels` table, if there is one.
        dictionaries: the `dictionaries` table, if there is one; codes are told by their descriptions.
        standing: windows that are there, of which those are told again that may have changed; None: all are told.

    Returns:
        `documents` of the format, or `windows` of the format and windowing; rows in are clients. When they are written
        all events are counted once more: none may have leaked in or been lost. Facts: `format`, `fields`, `as_of`, the
        counts of `Checked` or `sum_up_windows`, `clients_without_events` and an `example`; of windows those of
        `ToldWindows`.

    Raises:
        ConfigError: fields that the data set lacks, or settings that windows cannot obey.
        DataError: texts that do not hold what the events say, or clients that the clients table lacks.
    """
    spec = with_clock(spec, events)
    events = events if conf.only is None else Condition(conf.only, spec.time.zone).rows(events)
    labels = labels if conf.labels else None
    end = aware(end, spec.time.zone)
    if conf.until is not None:
        end = min(end, aware(conf.until, spec.time.zone))
        last = fixed_instant(conf.until, spec.time.zone)
        labels = None if labels is None else labels.withColumn("as_of", F.least("as_of", last))
    if conf.windows is not None:
        return _tell_windows(
            events,
            clients,
            conf,
            conf.windows,
            spec=spec,
            end=end,
            labels=labels,
            dictionaries=dictionaries,
            standing=standing,
        )
    if conf.everyone:
        labels = asked(clients, labels, end, conf)
    rows_in, described = _known(clients, dictionaries)
    documents = serialize(
        events,
        labels,
        end,
        spec,
        conf,
        dictionaries=dictionaries,
        described=described,
        ranked_on=events.join(clients.where("split = 'train'"), "client_id", how="left_semi"),
    )

    def tell(own: Mapping[str, DataFrame]) -> dict[str, Any]:
        checked = sum_up(check_documents(own["documents"], events, labels, end, spec=spec, conf=conf))
        without = _without_events(rows_in, checked.counts)
        example = _example(own["documents"], labels, checked.typical)
        return {**checked.counts, "clients_without_events": without, "example": example}

    return Made(
        rows_in=rows_in,
        tables={"documents": Rows(frame=documents, slice=conf.slices["documents"])},
        facts=_facts(conf, spec, end),
        tell=tell,
    )


def _tell_windows(
    events: DataFrame,
    clients: DataFrame,
    conf: SerializeConf,
    windowing: WindowConf,
    *,
    spec: DataSetSpec,
    end: dt.datetime,
    labels: DataFrame | None,
    dictionaries: DataFrame | None,
    standing: Standing | None,
) -> Made:
    """The windows of all events, or what changes in them; cut where histories are asked for."""
    if conf.until is not None:
        events = events.where(F.col("event_time") < fixed_instant(conf.until, spec.time.zone))
    rows_in, described = _known(clients, dictionaries)
    times = asked(clients, labels, end, conf)
    make = partial(
        windows,
        spec=spec,
        conf=conf,
        windowing=windowing,
        cuts=times,
        dictionaries=dictionaries,
        described=described,
    )
    touched = None
    if standing is None or not told_alike(standing.windows, spec, conf):
        rows = Rows(frame=make(events), slice=conf.slices["windows"])
    else:
        touched = settled(dirty_windows(standing.windows, standing.dirty, times), standing.keep)
        changed = changed_windows(
            events, standing.windows, touched, make=make, windowing=windowing, zone=spec.time.zone
        )
        rows = Rows(frame=settled(changed, standing.keep), slice=conf.slices["windows"], differences=True)

    def tell(own: Mapping[str, DataFrame]) -> dict[str, Any]:
        told, seen = own["windows"], events
        if touched is not None:
            told, seen = (one.join(touched.select("client_id"), "client_id", how="left_semi") for one in (told, seen))
        counts = sum_up_windows(check_windows(told, seen, spec=spec, windowing=windowing))
        without = {} if touched is not None else {"clients_without_events": _without_events(rows_in, counts)}
        return {**counts, **without, "example": _example_window(own["windows"])}

    whose = ToldWindows(
        format=conf.format,
        windowing=windowing.windowing,
        as_of=end,
        labels=conf.labels,
        everyone=conf.everyone,
        until=None if conf.until is None else aware(conf.until, spec.time.zone),
    )
    return Made(
        rows_in=rows_in,
        tables={"windows": rows},
        facts={**_facts(conf, spec, end), **whose.model_dump(mode="json")},
        tell=tell,
    )


def _facts(conf: SerializeConf, spec: DataSetSpec, end: dt.datetime) -> dict[str, Any]:
    return {
        "format": conf.format,
        "fields": [field.name for field in shown_fields(spec, conf)],
        "as_of": end.isoformat(),
    }


def _without_events(clients: int, counts: Mapping[str, int]) -> int:
    """How many clients have no event.

    Raises:
        DataError: more clients have events than there are.
    """
    with_events = counts["clients_with_events"]
    if clients < with_events:
        raise DataError(
            f"{with_events} clients have events, but the clients table holds {clients}; run the ingest stage again"
        )
    return clients - with_events


def _known(clients: DataFrame, dictionaries: DataFrame | None) -> tuple[int, list[str]]:
    """How many clients there are, and which fields have a dictionary (no more than the data set has); in one query."""
    if dictionaries is None:
        return clients.count(), []
    rows = clients.select(F.lit(None).cast("string").alias("field")).unionByName(dictionaries.select("field"))
    counts = {row["field"]: row["count"] for row in rows.groupBy("field").count().collect()}
    return counts.pop(None, 0), sorted(counts)


def _example(documents: DataFrame, labels: DataFrame | None, tokens: int | None) -> dict[str, Any]:
    """A document of the typical length, of a client without a label where there is one."""
    typical = documents.where(F.col("token_estimate") == F.lit(tokens))
    labelled = F.lit(False)
    if labels is not None:
        known = labels.select("client_id", F.lit(True).alias("labelled"))
        typical = typical.join(known, on="client_id", how="left")
        labelled = F.coalesce("labelled", F.lit(False))
    return _shown(typical.orderBy(labelled, "client_id", "as_of").withColumnRenamed("event_count_used", "events"))


def _example_window(windows: DataFrame) -> dict[str, Any]:
    """A window of the typical number of events."""
    whole = windows.where("cut_at IS NULL")
    typical = whole.agg(F.percentile_approx("event_count", 0.5).alias("events"))
    chosen = whole.withColumnRenamed("event_count", "events").join(typical, "events", how="left_semi")
    return _shown(chosen.orderBy("client_id", "period", "place"))


def _shown(texts: DataFrame) -> dict[str, Any]:
    """The first text, shortened to whole lines."""
    row = texts.select("text", "token_estimate", "events").first()
    if row is None:
        return {}
    text = row["text"]
    if len(text) > _EXAMPLE_LENGTH:
        text = text[: text.rfind("\n", 0, _EXAMPLE_LENGTH)] + "\n..."
    return {"text": text, "token_estimate": row["token_estimate"], "events": row["events"]}
