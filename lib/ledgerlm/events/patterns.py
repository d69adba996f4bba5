"""Checks how a time is said to be written, before Spark starts: patterns that would read another time than meant."""

from __future__ import annotations

import datetime as dt
import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ledgerlm.config import nearest

NAMED_FORMATS = ("timestamp", "epoch", "epoch_ms", "epoch_us", "epoch_ns", "days", "days_clock", "days_before")
EPOCH_DIGITS = {"epoch": 0, "epoch_ms": 3, "epoch_us": 6, "epoch_ns": 9}
"""Epoch formats, and how many decimal places of a second one step is."""

OFFSET = r"^[+-](0\d|1[0-7]):[0-5]\d$|^[+-]18:00$"
"""A zone of a spec that is an offset."""
ZONE = r"^(?:Z|(?:UTC|GMT|UT)(?![A-Z])|(?=[+-]))(?:[+-][0-9]{1,2}(?::?[0-9]{2}){0,2})?$|^[A-Za-z_]+/[A-Za-z0-9_+/-]+$"
"""A zone of a value that means one: an offset, UTC, or a region; IST, CST and others mean several."""

# Letters of a Spark pattern that can be read, and how often each may stand in a row.
_LETTERS = {
    "G": (1, 2, 3, 4), "y": (1, 2, 3, 4, 5, 6), "M": (1, 2, 3, 4), "L": (1, 2, 3, 4), "d": (1, 2), "D": (3,),
    "a": (1,), "H": (1, 2), "h": (1, 2), "K": (1, 2), "k": (1, 2), "m": (1, 2), "s": (1, 2), "S": tuple(range(1, 10)),
    "V": (2,), "O": (1, 4), "X": (1, 2, 3, 4, 5), "x": (1, 2, 3, 4, 5), "Z": (1, 2, 3, 4, 5),
}  # fmt: skip
_WRONG_LETTERS = {
    "Y": "YYYY is the year of a week; write yyyy",
    "u": "uuuu cannot be read by Spark; write yyyy",
    "D": "DD is a day of the year; write dd (or DDD without a month)",
    "E": "names of weekdays cannot be read; cut them off before, or give the pattern without them",
    "e": "numbers of weekdays cannot be read",
    "W": "weeks cannot be read",
    "w": "weeks cannot be read",
    "Q": "quarters cannot be read",
    "z": "names of zones such as CST mean several; write VV (Europe/Berlin) or XXX (+02:00), or quote the name",
    "n": "nanoseconds are S, up to SSSSSSSSS",
}


def unquoted(pattern: str) -> str:
    """The pattern without its quoted literals."""
    return re.sub(r"'[^']*'", "", pattern)


def check_format(form: str) -> str:
    """A time format as it is.

    Raises:
        ValueError: when it is no known name and no pattern that can read a date, with what to write instead.
    """
    if form in NAMED_FORMATS:
        return form
    if "%" in form:
        raise ValueError(f"'{form}' is written for Python; Spark's patterns are like yyyy-MM-dd HH:mm:ss")
    if form.count("'") % 2:
        raise ValueError(f"'{form}': a quote is open")
    bare = unquoted(form)
    runs = [found.group() for found in re.finditer(r"([A-Za-z])\1*", bare)]
    if not re.search(r"[yMdHms]", bare) or (re.fullmatch(r"[a-z_]{4,}", form) and "yy" not in form):
        raise ValueError(f"'{form}' is neither a pattern nor a name of a format: {nearest(form, NAMED_FORMATS)}")
    for run in runs:
        letter = run[0]
        if len(run) not in _LETTERS.get(letter, ()):
            known = f"'{letter}' may stand {_LETTERS[letter]} times" if letter in _LETTERS else f"no letter '{letter}'"
            raise ValueError(f"'{form}': {_WRONG_LETTERS.get(letter, known)}; quote words like 'T'")
    _check_date(form, runs)
    _check_clock(form, runs)
    return form


def _check_date(form: str, runs: list[str]) -> None:
    letters = [run[0] for run in runs]
    for letter in set(letters):
        if letters.count(letter) > 1:
            hint = (
                "; MM is the month, mm the minute" if letter in "Mm" else "; SS are parts of a second" * (letter == "S")
            )
            raise ValueError(f"'{form}': '{letter}' stands in two places{hint}")
    if "y" not in letters:
        raise ValueError(f"'{form}' has no year (yyyy or yy)")
    month = "M" in letters or "L" in letters
    if "d" in letters and not month:
        raise ValueError(f"'{form}' has a day and no month: MM is the month, mm the minute")
    if "D" in letters and (month or "d" in letters):
        raise ValueError(f"'{form}': {_WRONG_LETTERS['D']}")
    if not month and "D" not in letters:
        raise ValueError(f"'{form}' has no month (MM)")


def _check_clock(form: str, runs: list[str]) -> None:
    letters = {run[0] for run in runs}
    if letters & set("mHhKk") and not letters & set("dD"):
        raise ValueError(f"'{form}' has a time of day and no day (dd)")
    if "m" in letters and not letters & set("HhKk"):
        raise ValueError(f"'{form}' has minutes and no hour (HH); MM is the month")
    if letters & set("hK") and "a" not in letters:
        raise ValueError(f"'{form}': hh counts to 12 and needs 'a' (AM, PM); HH counts to 24")
    if "s" in letters and "m" not in letters:
        raise ValueError(f"'{form}' has seconds and no minutes (mm)")
    if "S" in letters and "s" not in letters:
        raise ValueError(f"'{form}': S are parts of a second; ss are the seconds")


def check_zone(zone: str) -> str:
    """A time zone as it is.

    Raises:
        ValueError: when nobody knows it.
    """
    if re.fullmatch(OFFSET, zone):
        return zone
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        import zoneinfo

        raise ValueError(
            f"no time zone '{zone}': {nearest(zone, zoneinfo.available_timezones()).partition(', ')[0]}; write a name "
            "such as Europe/Berlin, or an offset such as +02:00"
        ) from None
    return zone


def offset_of(zone: str) -> dt.tzinfo:
    """A zone that `check_zone` has taken, for Python."""
    return dt.datetime.strptime(zone, "%z").tzinfo or dt.UTC if zone[0] in "+-" else ZoneInfo(zone)
