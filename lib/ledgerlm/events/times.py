"""Times as they are written in files, and the instants that they mean.

Native Spark expressions only. ANSI mode is on, so every conversion is a `try_` one: what cannot be read is null, and
the caller gives the row its reason.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Protocol

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import SpecError
from ledgerlm.events.clock import local, zoned
from ledgerlm.events.identity import present
from ledgerlm.events.numbers import number
from ledgerlm.events.patterns import EPOCH_DIGITS, unquoted

_DAY_SECONDS = 86_400
# Spark's timestamps end in the year 294247; beyond some 200,000 years a number of seconds is no time.
_MOST_SECONDS = 6e12
# What stands behind a time of day: an offset, or the name of a zone, which ISO 8601 dates of Java put in brackets.
_ZONED = r"[0-9]:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]*)?)? ?(?:[A-Za-z]|[+-][0-9])"


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


def time_of(value: Column, kind: T.DataType, form: TimeFormat, zone: Column | None = None) -> Column:
    """A timestamp; null where the value is no time in the stated form.

    Args:
        value: the raw column.
        kind: its type; a timestamp or date is taken as it is, anything else must be text.
        form: how it is written, and the zone of times that carry none.
        zone: that of each row, in place of the form's; null is an unknown one.
    """
    own, shown = _read(value, kind, form)
    there = zoned(shown, form.zone if zone is None else zone)
    return there if own is None else F.coalesce(own, there)


def skipped(value: Column, kind: T.DataType, form: TimeFormat, zone: Column | None = None) -> Column:
    """Whether a time carries no zone, and the clock of its zone never showed it: it was put forward over it.

    Such a time is read as so much later as the clock was put forward.

    Args:
        value: as for `time_of`, and so are the others.
        kind: its type.
        form: how it is written.
        zone: that of each row.
    """
    there = form.zone if zone is None else zone
    if there is None or (isinstance(there, str) and (there == "UTC" or there[0] in "+-")):
        return F.lit(False)
    _, shown = _read(value, kind, form)
    return F.coalesce(local(zoned(shown, there), there) != shown, F.lit(False))


def _read(value: Column, kind: T.DataType, form: TimeFormat) -> tuple[Column | None, Column]:
    """The instant of values that say it themselves (None: none does), and what a clock showed at the others."""
    nothing = F.lit(None).cast("timestamp")
    if isinstance(kind, T.TimestampType):
        return value, nothing
    if isinstance(kind, T.TimestampNTZType | T.DateType):
        return None, value.cast("timestamp")
    value = present(value)
    if form.format == "timestamp":
        # Without this check Spark reads "12:30" as today at half past twelve, and "93010" as a year.
        text = F.regexp_replace(value, r"(?<=[0-9Z])\[[^\]]*\]$", "")
        text = F.regexp_replace(text, r"(:[0-9]{2} ?[+-][0-9]{2})([0-9]{2})$", "$1:$2")
        # ISO 8601 may leave out seconds, Spark wants them.
        text = F.regexp_replace(text, r"^([0-9-]{8,10}[T ][0-9]{1,2}:[0-9]{2})(?=$| ?[A-Za-z+-])", "$1:00")
        parsed = F.when(text.rlike(r"^[0-9]{4}-"), text.try_cast("timestamp"))
        carries = text.rlike(_ZONED)
        return F.when(carries, parsed), F.when(~carries, parsed)
    if form.format in EPOCH_DIGITS:
        return _epoch(value, form), nothing
    if form.format in _COUNTED:
        return None, _COUNTED[form.format](value, form)
    shown = _by_pattern(value, form)
    carries_one = re.search("[VzOXxZ]", unquoted(form.format)) or form.format.endswith("'Z'")
    return (shown, nothing) if carries_one else (None, shown)


def hours_later(time: Column, hours: Column, zone: str | Column) -> Column:
    """The instant at which a clock in the zone shows so many whole hours more."""
    shown = F.timestamp_seconds(F.unix_seconds(local(time, zone)) + hours.cast("int") * 3600)
    return zoned(shown, zone)


def _from_seconds(seconds: Column) -> Column:
    return F.timestamp_seconds(F.when(F.abs(seconds) < _MOST_SECONDS, seconds))


def _origin_seconds(form: TimeFormat) -> int:
    if form.origin is None:
        raise SpecError(f"time format {form.format} needs an origin")
    return (form.origin - dt.date(1970, 1, 1)).days * _DAY_SECONDS


def _epoch(value: Column, form: TimeFormat) -> Column:
    """Seconds, or smaller steps, since 1970; in decimals, since a double loses digits of nanoseconds."""
    places = EPOCH_DIGITS[form.format]
    steps = value.try_cast(f"decimal(24,{9 - places})")
    micros = F.floor(steps * F.lit(10 ** (6 - places)) if places <= 6 else steps / F.lit(1000))
    return F.timestamp_micros(F.when(F.abs(number(value)) < _MOST_SECONDS * 10.0**places, micros.try_cast("long")))


def _days(value: Column, form: TimeFormat) -> Column:
    return _from_seconds(number(value) * _DAY_SECONDS + _origin_seconds(form))


def _days_before(value: Column, form: TimeFormat) -> Column:
    return _days((-number(value)).cast("string"), form)


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
    text = F.regexp_replace(value, ":60$", ":59") if form.format.endswith(":ss") else value
    time = F.try_to_timestamp(text, F.lit(form.format))
    if re.search(r"(?<!y)yy(?!y)", form.format):
        # Spark reads two digits as 2000 to 2099.
        century = F.make_interval(F.lit(100))
        time = F.when(F.year(time) > form.pivot + 99, time - century).otherwise(time)
    return time
