"""What both documents and windows are made of: each event as a line of text, by native Spark expressions.

An event is rendered before any shuffle, in generated code, but for its gap to the event before, which only the order of
a client's events tells: `render` leaves the rest of the line as `_tail`, and `line` puts the gap to it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import add, or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.clock import local
from ledgerlm.text.formats import Format, Shown
from ledgerlm.text.numbers import e12, plain_amount, plain_number
from ledgerlm.text.sanitise import SEPARATOR, sanitise, suspicious

CHARACTERS_A_TOKEN = 4  # of running text, for the estimates
KEYS = ("client_id", "event_time", "event_seq", "event_id")
"""Columns that tell events apart; those behind the client order them."""
_GAP_LENGTH = 6  # `+123d` and its surroundings, for the estimates
_HOUR, _DAY = 3600, 86_400  # seconds
_WEEKDAYS = "Thu,Fri,Sat,Sun,Mon,Tue,Wed"  # from 1 January 1970


def render(
    events: DataFrame,
    shown: Sequence[Shown],
    form: Format,
    zone: str,
    *,
    max_length: int,
    lower: bool = False,
    dictionaries: DataFrame | None = None,
    coded: Collection[str] = (),
    carried: Sequence[str] = (),
) -> DataFrame:
    """Renders each event.

    Args:
        events: the events table, or what stands for it.
        shown: what each event shows, in order.
        form: the format.
        zone: that of the data set.
        max_length: characters of a category or free text that are kept.
        lower: categories and free texts in small letters.
        dictionaries: the dictionaries table; None where no field is coded.
        coded: fields whose codes are shown as their descriptions.
        carried: further columns of `events` that are kept.

    Returns:
        `KEYS`, the carried columns, `_tail` (the text of the event beside its gap) and `_characters` (those of free
        text).
    """
    rows = events if dictionaries is None else _describe(events, dictionaries, coded, max_length)
    kept = (*KEYS, *carried)
    fixed = [one for one in shown if one.kind != "gap"]
    words = [one for one in fixed if one.kind in ("word", "text")]
    values = [
        (_word(one, coded, lower=lower) if one in words else _plain(one, form, zone)).alias(f"_{one.name}")
        for one in fixed
    ]
    # Columns used more than once get a projection of their own: Spark then computes them once.
    rows = rows.select(*kept, *values)
    rows = rows.withColumn("_clean", _cleaned([F.col(f"_{one.name}") for one in words], form, max_length))
    place = {one.name: index for index, one in enumerate(words)}
    cells = {one.name: _value(one, place.get(one.name)) for one in fixed}
    free = [F.coalesce(F.length(f"_{one.name}"), F.lit(0)) for one in words if one.kind == "text"]
    characters = reduce(add, free, F.lit(0))
    return rows.select(*kept, _tail(shown, form, cells).alias("_tail"), characters.alias("_characters"))


def _describe(events: DataFrame, dictionaries: DataFrame, fields: Collection[str], max_length: int) -> DataFrame:
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


def _word(shown: Shown, coded: Collection[str], *, lower: bool) -> Column:
    """A category or free text as it came, without blanks around; null when nothing is left."""
    value = F.nullif(F.trim(shown.name), F.lit(""))
    if shown.name in coded:
        value = F.coalesce(f"_of_{shown.name}", F.concat(F.lit("code "), value))
    return F.lower(value) if lower else value


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


def line(shown: Sequence[Shown], form: Format, before: Column, zone: str) -> Column:
    """Text of an event whose `_tail` is rendered.

    Args:
        shown: what each event shows, in order.
        form: the format.
        before: time of the event before, null for a client's first.
        zone: that of the data set.
    """
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


def line_tokens(shown: Sequence[Shown], form: Format) -> Column:
    """Estimated tokens of an event that `render` rendered."""
    if not form.exact:
        return (F.lit(len(shown)) + F.col("_characters") / CHARACTERS_A_TOKEN).cast("int")
    gaps = sum(len(form.opening + form.cell(one).before) + _GAP_LENGTH for one in shown if one.kind == "gap")
    return F.ceil((F.length("_tail") + len(form.joiner) + gaps) / CHARACTERS_A_TOKEN).cast("int")


def frame_tokens(shown: Sequence[Shown], form: Format) -> int:
    """Estimated tokens of head and foot."""
    return math.ceil(len(form.head(shown) + form.foot) / CHARACTERS_A_TOKEN) if form.exact else len(shown)


def whole_text(shown: Sequence[Shown], form: Format, lines: Column) -> Column:
    """The text of lines (an array of strings, oldest first), with the format's head and foot."""
    return F.concat(F.lit(form.head(shown)), F.array_join(lines, form.joiner), F.lit(form.foot))


def text_hash(form: Format, text: Column) -> Column:
    """Identity of a text: changes with it and with the serializer."""
    return F.sha2(F.concat(F.lit(f"{form.serializer}\n"), text), 256)
