"""Serialisation of histories: a document for each client and `as_of`, by native Spark expressions.

How the work is laid out, because speed is decided here. There is one shuffle and one sort. Each event is rendered
before the shuffle, in generated code, so that shuffle and sort carry one short string instead of all columns. Behind
the shuffle one window ranks the events of a client from the newest back, sums their token estimates and looks at the
event before; what is over budget turns to null before anything is collected, so a client with a million events costs
the memory of a document, not of a million rows. No lambda runs per event. The aggregation streams over the window's
order when the session sets `spark.sql.execution.replaceHashWithSortAgg`; without it Spark hashes, slower, to the same.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.events.clock import aware
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.formats import FORMATS, FieldKind, Format, FormatName, Shown
from ledgerlm.text.published import as_published, published_shown
from ledgerlm.text.rendering import KEYS, frame_tokens, line, line_tokens, render, text_hash, whole_text

_KINDS: dict[str, FieldKind] = {"categorical": "word", "text": "text", "numeric": "number"}


class DocumentConf(Conf):
    """What a document shows and how long it may be."""

    format: FormatName = Field(
        "compact", description="compact, lines, table, markdown, html, xml, json, yaml or published"
    )
    fields: tuple[str, ...] = Field(
        (),
        description="what each event shows, in order: fields of the data set and days or pause (since the event "
        "before; pause in minutes, from an hour on in hours, from two days on in days), weekday, hour, time, amount, "
        "currency; left out: all that the data set has. The format published takes its own from the data set",
    )
    max_events: int = Field(2000, ge=1, description="newest events of a client that a document may hold")
    max_tokens: int = Field(
        16384,
        ge=1,
        description="estimated tokens of a document: in compact text one for each field and one for four characters "
        "of free text, elsewhere one for four characters. The oldest events go first; the newest always stays",
    )
    max_value_length: int = Field(
        48, ge=1, description="characters of a category or free text that are kept; up to 48 can be one token"
    )
    case: Literal["kept", "lower"] = Field(
        "kept",
        description="letters of categories and free texts; lower: small ones, of which a tokenizer that learnt from "
        "running text makes fewer tokens than of capitals",
    )


def shown_fields(spec: DataSetSpec, conf: DocumentConf) -> tuple[Shown, ...]:
    """What each event shows, in order: as configured, or else everything that the data set has.

    Raises:
        ConfigError: for an unknown field, or `days` or `pause` in the middle.
    """
    if conf.format == "published":
        if conf.fields:
            raise ConfigError("serialize: fields: the format published shows the columns under 'published' of the spec")
        return published_shown(spec)
    known = _known_fields(spec)
    names = conf.fields or _default_fields(spec, exact=FORMATS[conf.format].exact)
    for name in names:
        if name not in known:
            raise ConfigError(f"serialize: fields: no field '{name}' in data set {spec.name}: {nearest(name, known)}")
    shown = tuple(known[name] for name in names)
    gaps = [place for place, one in enumerate(shown) if one.kind == "gap"]
    if len(gaps) > 1 or any(0 < place < len(shown) - 1 for place in gaps):
        found = "|".join(names)
        raise ConfigError(f"serialize: fields: put one of 'days' and 'pause' first or last; found {found}")
    return shown


def _known_fields(spec: DataSetSpec) -> dict[str, Shown]:
    """Name to what is shown; a field of the data set wins over a derived one of the same name."""
    known = [
        Shown(name="days", title="days since the event before", kind="gap"),
        Shown(name="pause", title="time since the event before", kind="gap"),
        Shown(name="weekday", title="weekday", kind="time"),
        Shown(name="hour", title="hour", kind="time"),
        Shown(name="time", title="time" if spec.time.has_clock else "date", kind="time"),
    ]
    if spec.amount:
        one = spec.amount.convert.into if spec.amount.convert else spec.amount.currency
        currency = f" ({one})" if one else ""
        known.append(Shown(name="amount", title=f"amount{currency}", kind="number"))
        known.append(Shown(name="currency", title="currency", kind="word"))
    shorts = {field.short for field in spec.fields}
    for field in spec.fields:
        short = field.short
        if field.kind == "numeric" and not short:
            short = _short(field.name, shorts)
            shorts.add(short)
        known.append(Shown(name=field.name, title=field.title or field.name, kind=_KINDS[field.kind], short=short))
    return {shown.name: shown for shown in known}


def _short(name: str, taken: Collection[str]) -> str:
    """Shortest beginning of a name that no other field has: equal numbers of two fields must be different tokens."""
    beginnings = (name[:length].lower() for length in range(1, len(name) + 1))
    return next((short for short in beginnings if short not in taken), name)


def _default_fields(spec: DataSetSpec, *, exact: bool) -> tuple[str, ...]:
    amount = ("amount",) if spec.amount else ()
    currency = ("currency",) if spec.several_currencies else ()
    clock = ("hour",) if spec.time.has_clock else ()
    if exact:
        time = ("time",) if spec.time.calendar else ("days", *clock)
        return tuple(dict.fromkeys((*time, *amount, *currency, *(field.name for field in spec.fields))))
    weekday = ("weekday",) if spec.time.calendar else ()
    words = (field.name for field in spec.fields_of("categorical", "text"))
    numbers = (field.name for field in spec.fields_of("numeric"))
    return tuple(dict.fromkeys(("days", *weekday, *clock, *words, *amount, *currency, *numbers)))


def serialize(
    events: DataFrame,
    labels: DataFrame | None,
    as_of: dt.datetime,
    spec: DataSetSpec,
    conf: DocumentConf,
    *,
    dictionaries: DataFrame | None = None,
    described: Collection[str] | None = None,
    ranked_on: DataFrame | None = None,
) -> DataFrame:
    """Turns histories into documents of one format.

    Args:
        events: the events table.
        labels: labels table; a client in it gets one document for each distinct `as_of` of its labels.
        as_of: for all other clients; without a zone it is in the session's.
        spec: the data set.
        conf: format, fields, budgets.
        dictionaries: the dictionaries table; codes are shown as their descriptions.
        described: fields that have a dictionary; left out, those whose spec names one. A code that the dictionary
            of its field lacks is shown as `code 1234`.
        ranked_on: events of training clients, on which the format published ranks codes; left out, `events`.

    Returns:
        One row a client and `as_of` with at least one event before it, columns of the documents table without
        `run_id`, unordered. Within a document events are ordered by event_time, event_seq, event_id.

    Raises:
        ConfigError: for fields that the data set lacks.
    """
    shown = shown_fields(spec, conf)
    if conf.format == "published":
        events = as_published(events, spec, events if ranked_on is None else ranked_on)
    lines = rendered(events, spec, conf, dictionaries=dictionaries, described=described)
    histories = with_as_of(lines, labels, aware(as_of, spec.time.zone)).where(F.col("event_time") < F.col("as_of"))
    return _assemble(_rank(histories, shown, conf, spec.time.zone), shown, FORMATS[conf.format])


def rendered(
    events: DataFrame,
    spec: DataSetSpec,
    conf: DocumentConf,
    *,
    dictionaries: DataFrame | None = None,
    described: Collection[str] | None = None,
    carried: Sequence[str] = (),
) -> DataFrame:
    """Each event as `rendering.render` leaves it, under the settings of a document.

    Args:
        events: the events table; for the format published, from `as_published`.
        spec: the data set.
        conf: format and fields.
        dictionaries: as for `serialize`.
        described: as for `serialize`.
        carried: further columns of `events` that are kept.
    """
    shown = shown_fields(spec, conf)
    named = {field.name for field in spec.fields if field.dictionary} if described is None else set(described)
    return render(
        events,
        shown,
        FORMATS[conf.format],
        spec.time.zone,
        max_length=conf.max_value_length,
        lower=conf.case == "lower",
        dictionaries=dictionaries,
        coded=[one.name for one in shown if one.name in named] if dictionaries is not None else [],
        carried=carried,
    )


def with_as_of(events: DataFrame, labels: DataFrame | None, as_of: dt.datetime) -> DataFrame:
    """Adds `as_of` to events: each distinct one of the client's labels (repeating the event), else the given one.

    Args:
        events: rows with client_id.
        labels: rows with client_id and as_of, or None.
        as_of: for clients without labels.
    """
    default = F.lit(as_of.isoformat(sep=" ")).cast("timestamp")
    if labels is None:
        return events.withColumn("as_of", default)
    # Shuffled by client alone, which serves the distinct as well as the join.
    own = labels.select("client_id", F.col("as_of").alias("_own")).repartition("client_id").distinct()
    # A hash join needs no sort of the events by client beside the window's, and its shuffle serves the window.
    joined = events.join(own.hint("shuffle_hash"), on="client_id", how="left")
    return joined.withColumn("as_of", F.coalesce("_own", default)).drop("_own")


def _rank(histories: DataFrame, shown: Sequence[Shown], conf: DocumentConf, zone: str) -> DataFrame:
    """Puts the newest events first and drops what is over budget.

    Returns:
        client_id, as_of, and for events within the budgets event_time, `_line` (rank and text) and `_tokens`; the
        others stay as rows of nulls, to be counted.
    """
    form = FORMATS[conf.format]
    newest = Window.partitionBy("client_id", "as_of").orderBy(*(F.col(key).desc() for key in KEYS[1:]))
    up_to_here = newest.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = histories.withColumn("_tokens", line_tokens(shown, form)).select(
        "client_id",
        "as_of",
        "event_time",
        "_tokens",
        F.row_number().over(newest).alias("_rank"),
        F.sum("_tokens").over(up_to_here).alias("_sum"),
        line(shown, form, F.lead("event_time").over(newest), zone).alias("_text"),
    )
    affordable = (F.col("_rank") <= conf.max_events) & (F.col("_sum") <= conf.max_tokens - frame_tokens(shown, form))
    kept = affordable | (F.col("_rank") == 1)
    return ranked.select(
        "client_id",
        "as_of",
        *(F.when(kept, F.col(name)).alias(name) for name in ("event_time", "_tokens")),
        F.when(kept, F.struct("_rank", "_text")).alias("_line"),
    )


def _assemble(ranked: DataFrame, shown: Sequence[Shown], form: Format) -> DataFrame:
    """Joins the kept events of each client to a document; columns of the documents table."""
    histories = ranked.groupBy("client_id", "as_of").agg(
        F.collect_list("_line").alias("_lines"),
        F.count("_line").cast("int").alias("event_count_used"),
        (F.count(F.lit(1)) - F.count("_line")).cast("int").alias("event_count_cut"),
        F.min("event_time").alias("first_event_time"),
        F.max("event_time").alias("last_event_time"),
        (F.sum("_tokens") + frame_tokens(shown, form)).cast("int").alias("token_estimate"),
    )
    # The order of a collected list is promised by nobody, so it is sorted by rank: runs already in order cost little.
    oldest_first = F.sort_array("_lines", asc=False).getField("_text")
    return histories.withColumn("text", whole_text(shown, form, oldest_first)).select(
        "client_id",
        "as_of",
        F.lit(form.name).alias("format"),
        "text",
        "event_count_used",
        "event_count_cut",
        "first_event_time",
        "last_event_time",
        "token_estimate",
        text_hash(form, F.col("text")).alias("input_hash"),
        F.lit(form.serializer).alias("serializer"),
    )
