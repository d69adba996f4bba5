"""What makes a row bad, and how values that came as text become times, numbers, codes and pseudonyms.

Native Spark expressions only. ANSI mode is on, so every conversion is a `try_` one: what cannot be read is null, and
the caller gives the row its reason.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import SpecError
from ledgerlm.lake.schemas import AMOUNT

_DAY_SECONDS = 86_400
# Spark's timestamps end in the year 294247; beyond some 200,000 years a number of seconds is no time.
_MOST_SECONDS = 6e12
_HMAC_BLOCK = 64  # bytes of a SHA-256 block


class Reason(StrEnum):
    """Why a row went to quarantine. The first that applies is given."""

    NUL_BYTE = "nul_byte"
    BAD_UTF8 = "bad_utf8"
    UNCLOSED_QUOTE = "unclosed_quote"
    WRONG_COLUMN_COUNT = "wrong_column_count"
    OTHER_HEADER = "other_header"
    BAD_JSON = "bad_json"
    NO_CLIENT = "no_client"
    NO_EVENT_ID = "no_event_id"
    BAD_TIME = "bad_time"
    TIME_BEFORE_RANGE = "time_before_range"
    TIME_IN_FAR_FUTURE = "time_in_far_future"
    BAD_AMOUNT = "bad_amount"
    BAD_NUMBER = "bad_number"
    BAD_LABEL = "bad_label"
    CONFLICTING_LABEL = "conflicting_label"
    LABEL_WITHOUT_HISTORY = "label_without_history"


class TimeFormat(Protocol):
    """The part of a time spec that says how a time is written."""

    @property
    def format(self) -> str:
        """Name of the form, or a Spark pattern."""

    @property
    def origin(self) -> dt.date | None:
        """Day 0."""

    @property
    def zone(self) -> str:
        """Zone of times that carry none."""

    @property
    def pivot(self) -> int:
        """First year that a two-digit year can mean."""


def present(value: Column, nulls: Sequence[str] = ()) -> Column:
    """The text without outer blanks; null where nothing is left, or what is left stands for absent."""
    trimmed = F.trim(value)
    return F.when(~trimmed.isin("", *nulls), trimmed)


def recoded(value: Column, values: Mapping[str, str]) -> Column:
    """The text with `values` put in place; others stay as they are."""
    if not values:
        return value
    pairs = [F.lit(part) for pair in values.items() for part in pair]
    return F.coalesce(F.try_element_at(F.create_map(*pairs), value), value)


def number(value: Column) -> Column:
    """A double; null where the text is no finite number."""
    # Java's parser takes a type letter ("3d"), which in data is a code, not a number.
    parsed = F.when(value.rlike(r"[0-9.]$"), value.try_cast("double"))
    return F.when(~F.isnan(parsed) & (F.abs(parsed) < float("inf")), parsed)


def decimal_amount(value: Column) -> Column:
    """A decimal(18,4); null where the text is no number or too large."""
    return value.try_cast(AMOUNT)


def time_of(value: Column, kind: T.DataType, form: TimeFormat) -> Column:
    """A timestamp; null where the value is no time in the stated form.

    Args:
        value: the raw column.
        kind: its type; a timestamp or date is taken as it is, anything else must be text.
        form: how it is written, and the zone of times that carry none.
    """
    if isinstance(kind, T.TimestampType):
        return value
    if isinstance(kind, T.TimestampNTZType | T.DateType):
        return _in_zone(value.cast("timestamp"), form.zone)
    if form.format == "timestamp":
        # Without this check Spark reads "12:30" as today at half past twelve, and "93010" as a year.
        parsed = F.when(value.rlike(r"^[0-9]{4}-"), value.try_cast("timestamp"))
        return F.when(value.rlike(r"(Z|[+-][0-9]{2}:?[0-9]{2})$"), parsed).otherwise(_in_zone(parsed, form.zone))
    return _COUNTED[form.format](value, form) if form.format in _COUNTED else _by_pattern(value, form)


def _in_zone(time: Column, zone: str) -> Column:
    return time if zone == "UTC" else F.to_utc_timestamp(time, zone)


def _from_seconds(seconds: Column) -> Column:
    return F.timestamp_seconds(F.when(F.abs(seconds) < _MOST_SECONDS, seconds))


def _origin_seconds(form: TimeFormat) -> int:
    if form.origin is None:
        raise SpecError(f"time format {form.format} needs an origin")
    return (form.origin - dt.date(1970, 1, 1)).days * _DAY_SECONDS


def _epoch(value: Column, form: TimeFormat) -> Column:
    return _from_seconds(number(value) / (1000.0 if form.format == "epoch_ms" else 1.0))


def _days(value: Column, form: TimeFormat) -> Column:
    return _in_zone(_from_seconds(number(value) * _DAY_SECONDS + _origin_seconds(form)), form.zone)


def _days_before(value: Column, form: TimeFormat) -> Column:
    return _days((-number(value)).cast("string"), form)


def _days_clock(value: Column, form: TimeFormat) -> Column:
    pattern = r"^(-?[0-9]{1,7}) ([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})$"
    day, hour, minute, second = (F.regexp_extract(value, pattern, group).try_cast("long") for group in range(1, 5))
    valid = (hour < 24) & (minute < 60) & (second <= 60)
    seconds = day * _DAY_SECONDS + hour * 3600 + minute * 60 + F.least(second, F.lit(59)) + _origin_seconds(form)
    return _in_zone(_from_seconds(F.when(valid, seconds)), form.zone)


_COUNTED: dict[str, Callable[[Column, TimeFormat], Column]] = {
    "epoch": _epoch,
    "epoch_ms": _epoch,
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
    return time if re.search("[VzOXxZ]", form.format) else _in_zone(time, form.zone)


def pseudonymised(frame: DataFrame, columns: Sequence[str], key_env: str | None) -> DataFrame:
    """Replaces columns by their HMAC-SHA256 (RFC 2104), in lower-case hex; null stays null.

    The key comes from the environment. It reaches the executors as a one-row table, not as literals, so that it
    stands in no plan, no Spark UI and no event log.

    Args:
        frame: any rows.
        columns: string columns to replace.
        key_env: environment variable that holds the key; None leaves the frame as it is.

    Raises:
        SpecError: when the variable is not set.
    """
    if key_env is None:
        return frame
    secret = os.environ.get(key_env, "")
    if not secret:
        raise SpecError(
            f"pseudonymise.key_env: the environment variable {key_env} is not set; put the secret key there"
        )
    key = secret.encode()
    block = (hashlib.sha256(key).digest() if len(key) > _HMAC_BLOCK else key).ljust(_HMAC_BLOCK, b"\0")
    pads = [(bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block))]
    keys = frame.sparkSession.createDataFrame(pads, "_inner binary, _outer binary")
    inner = {name: F.unhex(F.sha2(F.concat("_inner", F.col(name).cast("binary")), 256)) for name in columns}
    replaced = {name: F.sha2(F.concat(F.col("_outer"), inner[name]), 256) for name in columns}
    return frame.crossJoin(F.broadcast(keys)).withColumns(replaced).drop("_inner", "_outer")
