"""Times as they are written in files, and the instants that they mean.

Native Spark expressions only. ANSI mode is on, so every conversion is a `try_` one: what cannot be read is null, and
the caller gives the row its reason.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import SpecError
from ledgerlm.events.clock import local, zoned
from ledgerlm.events.identity import present
from ledgerlm.events.numbers import number
from ledgerlm.events.patterns import EPOCH_DIGITS, ZONE, unquoted

_DAY_SECONDS = 86_400
# Spark's timestamps end in the year 294247; beyond some 200,000 years a number of seconds is no time.
_MOST_SECONDS = 6e12
_MICRO_PLACES = 6
# A day, and maybe a time of day. Without it Spark reads "12:30" as today at half past twelve, "2024-01" as a day.
_ISO = r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[T ].*)?$"
_ISO_DAY = r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}$"
_ISO_ZONE = r"^[0-9-]{8,10}[T ][0-9:.]+ ?([^0-9:. ].*)$"
_SECOND_60 = r"(?<=[0-9]:[0-9]{1,2}:)60(?![0-9:])"
_VALUE, _OWN, _SHOWN, _DAY = "_value", "_own", "_shown", "_day"
TIME, READABLE = "_time", "_readable"
"""What `timed` adds."""
SKIPPED, DOUBLED, LOSSY = "_skipped", "_doubled", "_lossy"
"""Flags of `timed`, which are counted."""
CLOCK_CHOICES = {
    SKIPPED: "times that the clock of their zone skipped",
    DOUBLED: "times that the clock of their zone showed twice, the earlier taken",
    LOSSY: "times cut to the microsecond, or from second 60 to 59",
}
"""What is said of the flags."""
TIMES: Any = getattr(T, "DatetimeType", (T.DateType, T.TimestampType, T.TimestampNTZType))
"""Types of times, for `isinstance`: Spark 4.0 has no class of them all, and no type of a time of day."""


class TimeFormat(Protocol):
    """The part of a time spec that says how a time is written."""

    @property
    def format(self) -> str:
        """Name of the form, or a Spark pattern."""

    @property
    def origin(self) -> dt.date | None:
        """Day 0."""

    @property
    def zone(self) -> str | None:
        """Zone of times that carry none; None for UTC."""

    @property
    def pivot(self) -> int:
        """First year that a two-digit year can mean."""


class _Written(NamedTuple):
    """What a value says of a time.

    Attributes:
        own: the instant of a value that says it itself; null of others.
        shown: what a clock showed at the others.
        day: whether a value is a day without a time of day.
        lossy: whether a value says more than is kept: digits beyond the microsecond, or second 60, read as 59.
    """

    own: Column
    shown: Column
    day: Column
    lossy: Column


def time_of(value: Column, kind: T.DataType, form: TimeFormat) -> Column:
    """A timestamp; null where the value is no time in the stated form.

    Args:
        value: the raw column.
        kind: its type; a timestamp or date is taken as it is, anything else must be text.
        form: how it is written, and the zone of times that carry none.
    """
    found = _written(_plain(value, kind, form), kind, form)
    return F.coalesce(found.own, zoned(found.shown, form.zone))


def timed(
    rows: DataFrame,
    value: Column,
    kind: T.DataType,
    form: TimeFormat,
    *,
    zone: Column | None = None,
    hours: Column | None = None,
    days_in_zone: bool = True,
) -> DataFrame:
    """Adds the instant of a value, and what became of it; step by step, so that none stands twice in a plan.

    A time that the clock of its zone skipped, when it was put forward, is read as so much later; of one that the clock
    showed twice, when it was put back, the earlier instant is taken.

    Args:
        rows: those of the value.
        value: as for `time_of`, and so are the next two.
        kind: its type.
        form: how it is written.
        zone: that of each row, in place of the form's; null is an unknown one.
        hours: whole hours that the clock showed more than the midnight that is written; null is no hour.
        days_in_zone: whether a day without a time of day is one of the form's zone, whatever the row's zone is.

    Returns:
        The rows with TIME (null where the value, its zone or its hour is none), READABLE (whether the value is a time,
        whatever zone and hour are), and the flags SKIPPED, DOUBLED and LOSSY.
    """
    found = _written(F.col(_VALUE), kind, form)
    there: str | Column = form.zone or "UTC"
    if zone is not None:
        there = F.when(F.col(_DAY), form.zone or "UTC").otherwise(zone) if days_in_zone and hours is None else zone
    fixed = isinstance(there, str) and (there == "UTC" or there[0] in "+-")
    steps = rows.withColumn(_VALUE, _plain(value, kind, form))
    steps = steps.withColumns({_OWN: found.own, _SHOWN: found.shown, _DAY: found.day, LOSSY: found.lossy})
    steps = steps.withColumn(READABLE, F.coalesce(_OWN, _SHOWN).isNotNull())
    if hours is not None:
        day = F.coalesce(_SHOWN, local(F.col(_OWN), there))
        whole = F.when(day == F.date_trunc("day", day), day)  # whatever has an hour of its own gets no second one
        later = F.timestamp_seconds(F.unix_seconds(whole) + hours * 3600)
        steps = steps.withColumns({_OWN: F.lit(None).cast("timestamp"), _SHOWN: later, _DAY: F.lit(False)})
    steps = steps.withColumn(TIME, F.coalesce(_OWN, zoned(F.col(_SHOWN), there)))
    clear = F.col(_OWN).isNotNull() | F.col(_DAY)
    skipped, doubled = (F.lit(False), F.lit(False)) if fixed else _clock_changes(there)
    flags = {SKIPPED: ~clear & skipped, DOUBLED: ~clear & doubled}
    return steps.withColumns({name: F.coalesce(flag, F.lit(False)) for name, flag in flags.items()}).drop(
        _VALUE, _OWN, _SHOWN, _DAY
    )


def _clock_changes(zone: str | Column) -> tuple[Column, Column]:
    """Whether the clock of a zone never showed what is written, and whether it did so twice."""
    clock, seconds = local(F.col(TIME), zone), F.unix_seconds(F.col(TIME))
    back = F.unix_seconds(clock) - F.unix_seconds(local(F.timestamp_seconds(seconds + _DAY_SECONDS), zone))
    # The clock is put back within a day: does it show the same then?
    back = back + _DAY_SECONDS
    again = F.unix_seconds(local(F.timestamp_seconds(seconds + back), zone)) == F.unix_seconds(clock)
    return clock != F.col(_SHOWN), F.when(back > 0, again).otherwise(F.lit(False))


def _plain(value: Column, kind: T.DataType, form: TimeFormat) -> Column:
    """A value as it is read: what programs write of ISO 8601 in the form that Spark knows."""
    if isinstance(kind, TIMES):
        return value
    text = present(value)
    if form.format != "timestamp":
        return text
    # Dates of Java have their zone in brackets behind the offset, or alone.
    bare = F.regexp_replace(text, r"(:[0-9.]+ ?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?))\[[^\]]*\]$", "$1")
    bare = F.regexp_replace(bare, r"(:[0-9.]+)\[([^\]]*)\]$", "$1 $2")
    text = F.when(F.contains(text, F.lit("[")), bare).otherwise(text)
    text = F.regexp_replace(text, r"(:[0-9]{2} ?[+-][0-9]{2})([0-9]{2})$", "$1:$2")
    # ISO 8601 may leave out seconds, Spark wants them.
    return F.regexp_replace(text, r"^([0-9-]{8,10}[T ][0-9]{1,2}:[0-9]{2})(?=$| ?[A-Za-z+-])", "$1:00")


def _written(value: Column, kind: T.DataType, form: TimeFormat) -> _Written:
    """What a plain value says of a time."""
    nothing, no = F.lit(None).cast("timestamp"), F.lit(False)
    if isinstance(kind, TIMES):
        day = F.lit(isinstance(kind, T.DateType))
        instant = isinstance(kind, T.TimestampType)
        return _Written(value, nothing, no, no) if instant else _Written(nothing, value.cast("timestamp"), day, no)
    if form.format == "timestamp":
        return _iso(value)
    if form.format in EPOCH_DIGITS:
        time, finer = _epoch(value, form)
        return _Written(time, nothing, no, finer)
    if form.format in _COUNTED:
        shown = _COUNTED[form.format](value, form)
        whole = no if form.format == "days_clock" else shown == F.date_trunc("day", shown)
        return _Written(nothing, shown, whole, value.rlike(":60$"))
    shown, letters = _by_pattern(value, form), unquoted(form.format)
    lossy = _beyond_pattern(value, form)
    if re.search("[VOXxZ]", letters) or form.format.endswith("'Z'"):
        return _Written(shown, nothing, no, lossy)
    return _Written(nothing, shown, F.lit(not re.search("[HhKk]", letters)), lossy)


def _iso(text: Column) -> _Written:
    """ISO 8601 as Spark knows it; a zone is an offset, UTC or a region, since other words mean several."""
    zone = F.regexp_extract(text, _ISO_ZONE, 1)
    known = text.rlike(_ISO) & ((zone == "") | zone.rlike(ZONE))
    parsed = F.when(known, F.regexp_replace(text, _SECOND_60, "59").try_cast("timestamp"))
    lossy = text.rlike(rf"\.[0-9]{{{_MICRO_PLACES}}}[0-9]*[1-9]|{_SECOND_60}")
    return _Written(F.when(zone != "", parsed), F.when(zone == "", parsed), text.rlike(_ISO_DAY), lossy)


def _from_seconds(seconds: Column) -> Column:
    return F.timestamp_seconds(F.when(F.abs(seconds) < _MOST_SECONDS, seconds))


def _origin_seconds(form: TimeFormat) -> int:
    if form.origin is None:
        raise SpecError(f"time format {form.format} needs an origin")
    return (form.origin - dt.date(1970, 1, 1)).days * _DAY_SECONDS


def _epoch(value: Column, form: TimeFormat) -> tuple[Column, Column]:
    """Seconds, or smaller steps, since 1970, and whether they say more than the microsecond.

    In decimals, since a double loses digits of nanoseconds.
    """
    places = EPOCH_DIGITS[form.format]
    steps = value.try_cast(f"decimal(30,{15 - places})")
    micros = steps * F.lit(10 ** (_MICRO_PLACES - places)) if places <= _MICRO_PLACES else steps / F.lit(1000)
    inside = F.abs(number(value)) < _MOST_SECONDS * 10.0**places
    return F.timestamp_micros(F.when(inside, F.floor(micros).try_cast("long"))), F.floor(micros) != micros


def _days(value: Column, form: TimeFormat) -> Column:
    return _from_seconds(number(value) * _DAY_SECONDS + _origin_seconds(form))


def _days_before(value: Column, form: TimeFormat) -> Column:
    days = number(value)
    return _from_seconds(_origin_seconds(form) - F.when(days == F.floor(days), days) * _DAY_SECONDS)


def _days_clock(value: Column, form: TimeFormat) -> Column:
    pattern = r"^(-?[0-9]{1,7}) ([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})$"
    day, hour, minute, second = (F.regexp_extract(value, pattern, group).try_cast("long") for group in range(1, 5))
    valid = (hour < 24) & (minute < 60) & (second <= 60)
    seconds = day * _DAY_SECONDS + hour * 3600 + minute * 60 + F.least(second, F.lit(59)) + _origin_seconds(form)
    return _from_seconds(F.when(valid, seconds))


_COUNTED: dict[str, Callable[[Column, TimeFormat], Column]] = {
    "days": _days,
    "days_before": _days_before,
    "days_clock": _days_clock,
}


def _by_pattern(value: Column, form: TimeFormat) -> Column:
    text = F.regexp_replace(value, _SECOND_60, "59") if ":ss" in form.format else value
    time = F.try_to_timestamp(text, F.lit(form.format))
    if re.search(r"(?<!y)yy(?!y)", form.format):
        # Spark reads two digits as 2000 to 2099.
        century = F.make_interval(F.lit(100))
        time = F.when(F.year(time) > form.pivot + 99, time - century).otherwise(time)
    return time


def _beyond_pattern(value: Column, form: TimeFormat) -> Column:
    """Whether a value that a pattern reads says more than is kept."""
    found = [_SECOND_60] if ":ss" in form.format else []
    fraction = re.search(r"([^A-Za-z])(S+)", unquoted(form.format))
    if fraction and len(fraction[2]) > _MICRO_PLACES:
        places = f"[0-9]{{{len(fraction[2])}}}(?![0-9])"
        found.append(rf"(?<={re.escape(fraction[1])})(?={places})[0-9]{{{_MICRO_PLACES}}}[0-9]*[1-9]")
    return value.rlike("|".join(found)) if found else F.lit(False)
