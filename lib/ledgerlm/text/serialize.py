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
import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import add, or_

from pydantic import Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.events.clock import aware, local
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.formats import FORMATS, FieldKind, Format, FormatName, Shown
from ledgerlm.text.numbers import e12, plain_amount, plain_number
from ledgerlm.text.published import as_published, published_shown
from ledgerlm.text.sanitise import SEPARATOR, sanitise, suspicious

CHARACTERS_A_TOKEN = 4  # of running text, for the estimates
_GAP_LENGTH = 6  # `+123d` and its surroundings, for the estimates
_HOUR, _DAY = 3600, 86_400  # seconds
_KEYS = ("client_id", "event_time", "event_seq", "event_id")
_KINDS: dict[str, FieldKind] = {"categorical": "word", "text": "text", "numeric": "number"}
_WEEKDAYS = "Thu,Fri,Sat,Sun,Mon,Tue,Wed"  # from 1 January 1970


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
    named = {field.name for field in spec.fields if field.dictionary} if described is None else set(described)
    coded = [one.name for one in shown if one.name in named] if dictionaries is not None else []
    if conf.format == "published":
        events = as_published(events, spec, events if ranked_on is None else ranked_on)
    rows = events if dictionaries is None else _describe(events, dictionaries, coded, conf.max_value_length)
    lines = _render(rows, shown, coded, conf, spec.time.zone)
    histories = with_as_of(lines, labels, aware(as_of, spec.time.zone)).where(F.col("event_time") < F.col("as_of"))
    return _assemble(_rank(histories, shown, conf, spec.time.zone), shown, FORMATS[conf.format])


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


def _describe(events: DataFrame, dictionaries: DataFrame, fields: Sequence[str], max_length: int) -> DataFrame:
    """Adds `_of_FIELD`, the description of the code in FIELD; sanitised here, once for a code.

    Broadcast hash joins: a lookup costs the same for ten codes and for a million, where a map literal is searched
    from its first key to its last for each event.
    """
    for name in fields:
        codes = dictionaries.where(F.col("field") == name).select(
            F.col("code").alias(name),
            F.nullif(sanitise(F.col("description"), max_length), F.lit("")).alias(f"_of_{name}"),
        )
        events = events.join(F.broadcast(codes), on=name, how="left")
    return events


def _render(
    events: DataFrame, shown: Sequence[Shown], coded: Collection[str], conf: DocumentConf, zone: str
) -> DataFrame:
    """Renders each event: `_KEYS`, `_tail` (its text beside the gap) and `_characters` (those of free text)."""
    form = FORMATS[conf.format]
    fixed = [one for one in shown if one.kind != "gap"]
    words = [one for one in fixed if one.kind in ("word", "text")]
    values = [(_word(one, coded) if one in words else _plain(one, form, zone)).alias(f"_{one.name}") for one in fixed]
    # Columns used more than once get a projection of their own: Spark then computes them once.
    rows = events.select(*_KEYS, *values)
    rows = rows.withColumn("_clean", _cleaned([F.col(f"_{one.name}") for one in words], form, conf.max_value_length))
    place = {one.name: index for index, one in enumerate(words)}
    cells = {one.name: _value(one, place.get(one.name)) for one in fixed}
    free = [F.coalesce(F.length(f"_{one.name}"), F.lit(0)) for one in words if one.kind == "text"]
    characters = reduce(add, free, F.lit(0))
    return rows.select(*_KEYS, _tail(shown, form, cells).alias("_tail"), characters.alias("_characters"))


def _word(shown: Shown, coded: Collection[str]) -> Column:
    """A category or free text as it came, without blanks around; null when nothing is left."""
    value = F.nullif(F.trim(shown.name), F.lit(""))
    if shown.name not in coded:
        return value
    return F.coalesce(f"_of_{shown.name}", F.concat(F.lit("code "), value))


def _plain(shown: Shown, form: Format, zone: str) -> Column:
    """A time, as a clock in the zone shows it, or a number as text that needs no sanitising."""
    time = local(F.col("event_time"), zone)
    day = F.unix_date(F.to_date(time))
    if shown.kind == "number":
        number = F.col(shown.name)
        if not form.exact:
            return e12(number.cast("double"))
        return plain_amount(number) if shown.name == "amount" else plain_number(number)
    if shown.name == "weekday":
        return F.get(F.split(F.lit(_WEEKDAYS), ","), F.pmod(day, F.lit(7)))
    if shown.name == "hour":
        return F.concat(F.hour(time).cast("string"), F.lit("h"))
    return F.date_format(time, "yyyy-MM-dd HH:mm" if shown.title == "time" else "yyyy-MM-dd")


def _cleaned(words: Sequence[Column], form: Format, max_length: int) -> Column:
    """The words of an event sanitised and escaped, in order; null, without further work, when they need neither."""
    if not words:
        return F.lit(None).cast("array<string>")
    escaped = "".join(sign.strip() for sign, _ in form.escapes)
    doubtful = reduce(or_, (F.octet_length(word) > max_length for word in words))
    doubtful = suspicious(F.concat_ws(",", *words), escaped) | F.coalesce(doubtful, F.lit(False))
    present = [F.coalesce(F.replace(word, F.lit(SEPARATOR), F.lit(" ")), F.lit("")) for word in words]
    text = sanitise(F.concat_ws(SEPARATOR, *present), max_length)
    for sign, replacement in form.escapes:
        text = F.replace(text, F.lit(sign), F.lit(replacement))
    return F.when(doubtful, F.split(text, SEPARATOR))


def _value(shown: Shown, place: int | None) -> Column:
    """The text of a value: cleaned where the event needed it, else as it came. `place` is that in `_clean`."""
    value = F.col(f"_{shown.name}")
    if place is None:
        return value
    cleaned = F.nullif(F.get("_clean", F.lit(place)), F.lit(""))
    return F.when(F.col("_clean").isNull(), value).otherwise(cleaned)


def _tail(shown: Sequence[Shown], form: Format, values: Mapping[str, Column]) -> Column:
    """Text of an event but for its gap: from behind that on, or, where it stands last, up to the value before."""
    pieces: list[Column] = []
    pending = form.opening
    for place, one in enumerate(shown):
        cell = form.cell(one)
        if one.kind == "gap":
            pending = cell.after
            if place:
                return F.concat(*pieces)
            continue
        pieces.append(F.lit(pending + form.between * (place > 0)))
        framed = F.concat(F.lit(cell.before), values[one.name], F.lit(cell.after))
        pieces.append(F.coalesce(framed if cell.before or cell.after else values[one.name], F.lit(cell.absent)))
        pending = ""
    return F.concat(*pieces, F.lit(pending + form.closing))


def _line(shown: Sequence[Shown], form: Format, before: Column, zone: str) -> Column:
    """Text of an event whose `_tail` is rendered; `before` is the time of the event before, null for the first."""
    first, last = (shown[place].kind == "gap" for place in (0, -1))
    if not first and not last:
        return F.col("_tail")
    gap = shown[0 if first else -1]
    cell = form.cell(gap)
    value = _gap(gap, before, zone)
    if first:
        return F.concat(F.lit(f"{form.opening}{cell.before}+"), value, F.col("_tail"))
    return F.concat(F.col("_tail"), F.lit(f"{form.between}{cell.before}+"), value, F.lit(cell.after + form.closing))


def _gap(shown: Shown, before: Column, zone: str) -> Column:
    """Number and unit of the time since the event before: `3d`; of a pause also `12m` and `5h`."""
    if shown.name == "days":
        return F.concat(
            F.coalesce(F.datediff(local(F.col("event_time"), zone), local(before, zone)), F.lit(0)), F.lit("d")
        )
    seconds = F.coalesce(F.unix_timestamp("event_time") - F.unix_timestamp(before), F.lit(0))
    minutes, hours, days = (F.floor(seconds / unit).cast("string") for unit in (60, _HOUR, _DAY))
    return (
        F.when(seconds < _HOUR, F.concat(minutes, F.lit("m")))
        .when(seconds < 2 * _DAY, F.concat(hours, F.lit("h")))
        .otherwise(F.concat(days, F.lit("d")))
    )


def _tokens(shown: Sequence[Shown], form: Format) -> Column:
    """Estimated tokens of an event."""
    if not form.exact:
        return (F.lit(len(shown)) + F.col("_characters") / CHARACTERS_A_TOKEN).cast("int")
    gaps = sum(len(form.opening + form.cell(one).before) + _GAP_LENGTH for one in shown if one.kind == "gap")
    return F.ceil((F.length("_tail") + len(form.joiner) + gaps) / CHARACTERS_A_TOKEN).cast("int")


def _frame_tokens(shown: Sequence[Shown], form: Format) -> int:
    """Estimated tokens of head and foot."""
    return math.ceil(len(form.head(shown) + form.foot) / CHARACTERS_A_TOKEN) if form.exact else len(shown)


def _rank(histories: DataFrame, shown: Sequence[Shown], conf: DocumentConf, zone: str) -> DataFrame:
    """Puts the newest events first and drops what is over budget.

    Returns:
        client_id, as_of, and for events within the budgets event_time, `_line` (rank and text) and `_tokens`; the
        others stay as rows of nulls, to be counted.
    """
    form = FORMATS[conf.format]
    newest = Window.partitionBy("client_id", "as_of").orderBy(*(F.col(key).desc() for key in _KEYS[1:]))
    up_to_here = newest.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = histories.withColumn("_tokens", _tokens(shown, form)).select(
        "client_id",
        "as_of",
        "event_time",
        "_tokens",
        F.row_number().over(newest).alias("_rank"),
        F.sum("_tokens").over(up_to_here).alias("_sum"),
        _line(shown, form, F.lead("event_time").over(newest), zone).alias("_text"),
    )
    affordable = (F.col("_rank") <= conf.max_events) & (F.col("_sum") <= conf.max_tokens - _frame_tokens(shown, form))
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
        (F.sum("_tokens") + _frame_tokens(shown, form)).cast("int").alias("token_estimate"),
    )
    # The order of a collected list is promised by nobody, so it is sorted by rank: runs already in order cost little.
    oldest_first = F.sort_array("_lines", asc=False).getField("_text")
    text = F.concat(F.lit(form.head(shown)), F.array_join(oldest_first, form.joiner), F.lit(form.foot))
    hashed = F.sha2(F.concat(F.lit(f"{form.serializer}\n"), F.col("text")), 256)
    return histories.withColumn("text", text).select(
        "client_id",
        "as_of",
        F.lit(form.name).alias("format"),
        "text",
        "event_count_used",
        "event_count_cut",
        "first_event_time",
        "last_event_time",
        "token_estimate",
        hashed.alias("input_hash"),
        F.lit(form.serializer).alias("serializer"),
    )
