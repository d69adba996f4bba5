"""How times are written as text: one way for a whole column, found in all of its values.

A reader that decides value by value reads 10/9 and 30/9 of one column in two orders (pandas-dev/pandas #14301, #25847).
Here an order holds when no value speaks against it; when two orders hold, both are kept, and somebody must choose.
Reported of other readers as well: codes such as `41_10_1` and `04789455` taken for dates (duckdb/duckdb #13121,
tidyverse/readr #291), so only usual separators count, and digits alone need a name or nothing better.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from ledgerlm.events.guesses.columns import CACHED, Column
from ledgerlm.events.guesses.words import is_called

Order = Literal["dmy", "mdy", "ymd"]
_MOSTLY = 0.95
_STEPS = 20  # different days in a row that must agree before the order of rows says anything
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONG = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
         "december")  # fmt: skip
_CLOCK = (
    r"(?P<hour>\d{1,2})(?P<colon>[:.])(?P<minute>\d{2})(?:(?P=colon)(?P<second>\d{2})(?:(?P<point>[.,])"
    r"(?P<fraction>\d{1,9}))?)?(?P<half> ?[AaPp][Mm])?"
)
_ZONE = r"(?P<zone> ?(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))"
_REST = rf"(?:(?P<joint>[T :]|, ){_CLOCK}{_ZONE}?)?"
_APART = re.compile(rf"(?P<a>\d{{1,4}}|[A-Za-z]{{3,9}})(?P<s1>[-/. ])(?P<b>\d{{1,2}}|[A-Za-z]{{3,9}})"
                    rf"(?P<s2>[-/. ]|, )(?P<c>\d{{4}}|\d{{1,2}}){_REST}")  # fmt: skip
_JOINED = re.compile(rf"(?P<a>\d{{1,2}})(?P<s1>)(?P<b>[A-Za-z]{{3}})(?P<s2>)(?P<c>\d{{4}}|\d{{2}}){_REST}")
_DIGITS = re.compile(rf"(?P<a>\d{{8}}|\d{{6}})(?P<s1>)(?P<b>)(?P<s2>)(?P<c>){_REST}")
_TIME_OF_DAY = re.compile(rf"{_CLOCK}|(?P<compact>([01]\d|2[0-3])[0-5]\d[0-5]\d)")
_EPOCHS = {"epoch": 1, "epoch_ms": 10**3, "epoch_us": 10**6, "epoch_ns": 10**9}
_FIRST, _LAST = dt.datetime(1995, 1, 1, tzinfo=dt.UTC), dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
_MONTH, _DAYS = 31, 10_000  # numbers of days up to 31 may be those of a month
_SPREADSHEET = dt.date(1899, 12, 30)  # day 0 of spreadsheets


class _Layout(NamedTuple):
    """How values look alike: widths of digits, names of months, signs between; what varies freely is not in it."""

    kind: str
    first: str
    second: str
    signs: tuple[str, str]
    joint: str
    colon: str
    half: str
    zone: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way in which a column can be read as times.

    Attributes:
        format: as `time.format` has it; of an order that is open, one of `others` too.
        others: formats that fit all values as well; empty where the values decide.
        orders: of day, month and year, of `format` and of `others`; none where they have none of their own.
        why: what was seen.
        share: of the values that fit.
        clock: whether there is a time of day.
        zoned: whether each value says its zone, or is an instant.
        plain: whether it is digits alone, which many things are.
        origin: day 0, where days are counted.
        unknown: whether day 0 is not known at all.
    """

    format: str
    why: str
    share: float
    clock: bool
    others: tuple[str, ...] = ()
    orders: tuple[Order, ...] = ()
    zoned: bool = False
    plain: bool = False
    origin: dt.date | None = None
    unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A value taken apart, and how often it stands there."""

    parts: Mapping[str, str]
    layout: _Layout
    count: int


@lru_cache(CACHED)
def reading_of(column: Column) -> Reading | None:
    """How a column is read as times; None of one that holds none."""
    if column.kind == "time":
        zoned = any(re.search(r"(Z|[+-]\d\d:?\d\d)$", value) for value in column.counts)
        clock = any(len(value) > len("2024-05-01") for value in column.counts)
        return Reading(format="timestamp", why="typed as a time in the file", share=1.0, clock=clock, zoned=zoned)
    if column.kind in ("bool", "nested") or not column.filled:
        return None
    return _written_dates(column) or _counted(column)


def time_of_day(column: Column) -> str | None:
    """The pattern of a column that holds times of day alone; None of others."""
    if column.kind != "text" or not column.filled:
        return None
    found = [_TIME_OF_DAY.fullmatch(value) for value in column.counts]
    shown = [one for one in found if one is not None and (one["compact"] or int(one["hour"]) < 24)]
    if len(shown) < _MOSTLY * len(found):
        return None
    if any(one["colon"] == "." for one in shown) and not is_called(column.name, "clock"):
        return None  # 12.50 is rather money
    compact = [one for one in shown if one["compact"]]
    if compact:
        return "HHmmss" if len(compact) == len(shown) and is_called(column.name, "clock") else None
    return _clock_pattern([one.groupdict("") for one in shown])


def moment(text: str, reading: Reading) -> dt.datetime | None:
    """The instant of a value, its zone left aside; None of one that does not fit."""
    try:
        if reading.format in _EPOCHS:
            return dt.datetime.fromtimestamp(float(text) / _EPOCHS[reading.format], dt.UTC).replace(tzinfo=None)
        if reading.origin is not None:
            return dt.datetime.combine(reading.origin, dt.time()) + dt.timedelta(days=float(text))
    except (ValueError, OverflowError):
        return None
    if not reading.orders:
        return _iso(text)
    shown = next(_taken_apart(Counter([text])), None)
    return _moment(shown, reading.orders[0]) if shown else None


def decided(reading: Reading, order: Order, why: str) -> Reading:
    """The reading with one of its orders."""
    form = (reading.format, *reading.others)[reading.orders.index(order)]
    return replace(reading, format=form, others=(), orders=(order,), why=why)


def _iso(text: str) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(text.strip()[:19])
    except ValueError:
        return None


def _written_dates(column: Column) -> Reading | None:
    """Dates with their parts apart, or as six or eight digits."""
    alike = _alike(list(_taken_apart(column.counts)))
    share = sum(one.count for one in alike) / column.filled
    if share < _MOSTLY:
        return None
    orders, why = _orders(alike)
    if len(orders) > 1 and (going := _order_of_rows(column, orders, alike)):
        orders, why = [going], "the rows go on in time only when the dates are read so"
    if not orders:
        return None
    forms = tuple(_pattern(alike, order) for order in orders)
    if forms == ("timestamp",):
        why = f"ISO 8601, {why}"
    return Reading(
        format=forms[0],
        others=forms[1:],
        orders=tuple(orders),
        why=why,
        share=share,
        clock=any(one.layout.joint for one in alike),
        zoned=any(one.layout.zone for one in alike),
        plain=alike[0].layout.kind == "digits",
    )


def _alike(shown: list[_Shown]) -> list[_Shown]:
    """The values that are written as most are; of times, some may lack the time of day, as at midnight."""
    dates: Counter[_Layout] = Counter()
    timed: Counter[_Layout] = Counter()
    for one in shown:
        dates[_without_clock(one.layout)] += one.count
    if not dates:
        return []
    date = dates.most_common(1)[0][0]
    for one in shown:
        if one.layout.joint and _without_clock(one.layout) == date:
            timed[one.layout] += one.count
    taken = {date, *(layout for layout, _ in timed.most_common(1))}
    return [one for one in shown if one.layout in taken]


def _without_clock(layout: _Layout) -> _Layout:
    return layout._replace(joint="", colon="", half="", zone="")


def _taken_apart(counts: Counter[str]) -> Iterator[_Shown]:
    for value, count in counts.items():
        for kind, pattern in (("apart", _APART), ("joined", _JOINED), ("digits", _DIGITS)):
            found = pattern.fullmatch(value)
            if found is None:
                continue
            parts = found.groupdict("")
            named = parts["a"][:1].isalpha() or parts["b"][:1].isalpha()
            if parts["s1"] == parts["s2"] or named:
                yield _Shown(parts=parts, layout=_layout(kind, parts), count=count)
            break


def _layout(kind: str, parts: Mapping[str, str]) -> _Layout:
    return _Layout(
        kind=kind,
        first=str(len(parts["a"])) if kind == "digits" else _form(parts["a"], 4),
        second=_form(parts["b"], 0),
        signs=(parts["s1"], parts["s2"]),
        joint=parts["joint"],
        colon=parts["colon"],
        half="a" if parts["half"] else "",
        zone=re.sub(r"\d", "0", parts["zone"]).replace("-", "+"),
    )


def _form(part: str, year: int) -> str:
    """Whether a part is a word, a year or a small number."""
    return "word" if part[:1].isalpha() else "year" if year and len(part) == year else "number"


def _split(shown: _Shown, order: Order) -> tuple[str, str, str]:
    """Year, month and day of a value under an order, as they stand there."""
    a, b, c = (shown.parts[name] for name in "abc")
    if shown.layout.kind == "digits":
        width = len(a) - 4 if order == "ymd" else 2
        a, b, c = (a[:width], a[width : width + 2], a[width + 2 :]) if order == "ymd" else (a[:2], a[2:4], a[4:])
    return {"dmy": (c, b, a), "mdy": (c, a, b), "ymd": (a, b, c)}[order]


def _moment(shown: _Shown, order: Order) -> dt.datetime | None:
    """The time of a value under an order; None where there is no such day."""
    year, month, day = _split(shown, order)
    if month[:1].isalpha():
        small = month.lower()
        if small not in _MONTHS and small not in _LONG:
            return None
        month = str(_MONTHS.index(small[:3]) + 1)
    parts = shown.parts
    if not (year.isdigit() and month.isdigit() and day.isdigit()) or len(year) not in (2, 4):
        return None
    hour = int(parts["hour"] or 0)
    if parts["half"]:
        hour = hour % 12 + (12 if "p" in parts["half"].lower() else 0)
    full = int(year) if len(year) == 4 else 1970 + (int(year) - 70) % 100
    if not 1900 <= full < 2100:
        return None
    try:
        return dt.datetime(full, int(month), int(day), hour, int(parts["minute"] or 0), int(parts["second"] or 0) % 60)
    except ValueError:
        return None


def _orders(alike: list[_Shown]) -> tuple[list[Order], str]:
    """The orders of day, month and year under which the values are days, and why; none where they are no days."""
    layout = alike[0].layout
    choices: list[Order] = ["dmy", "mdy", "ymd"]
    if layout.first == "year":
        choices = ["ymd"]
    elif layout.first == "word":
        choices = ["mdy"]
    elif layout.second == "word":
        choices = ["dmy"]
    elif layout.kind != "digits" and max(len(one.parts["c"]) for one in alike) == 4:
        choices = ["dmy", "mdy"]
    against: dict[Order, list[_Shown]] = {one: [each for each in alike if not _moment(each, one)] for one in choices}
    bad = {order: sum(one.count for one in wrong) for order, wrong in against.items()}
    least = min(bad.values())
    if least > (1 - _MOSTLY) * sum(one.count for one in alike):
        return [], ""
    holding = [order for order in choices if bad[order] == least]
    shown = next((against[order][0] for order in choices if order not in holding), alike[0])
    if len(holding) == 1:
        return holding, f"'{_text(shown)}' can be read in no other order" if choices[
            1:
        ] else f"such as '{_text(shown)}'"
    if layout.signs[0] == "." and "dmy" in holding:
        return ["dmy"], f"with dots between, as in '{_text(shown)}', the day comes first"
    return holding, f"no value tells day and month apart: all are like '{_text(shown)}'"


def _text(shown: _Shown) -> str:
    parts = shown.parts
    return f"{parts['a']}{parts['s1']}{parts['b']}{parts['s2']}{parts['c']}"


def _order_of_rows(column: Column, orders: list[Order], alike: list[_Shown]) -> Order | None:
    """The one order under which the rows of a column go on, or back, in time.

    Rows that are sorted as text go on in some order of the parts by themselves, so they say nothing.
    """
    by_text = {_key(one.parts): one for one in alike}
    days = [by_text[key] for value in column.values for key in [_key_of(value)] if key in by_text]
    days = [days[0], *(later for one, later in pairwise(days) if later is not one)] if days else []
    if len(days) < _STEPS or _monotone([_text(one) for one in days]):
        return None
    going = [order for order in orders if _monotone([_moment(one, order) or dt.datetime.min for one in days])]
    return going[0] if len(going) == 1 else None


def _key(parts: Mapping[str, str]) -> str:
    return "|".join(parts.values())


def _key_of(value: str) -> str:
    found = next(_taken_apart(Counter([value])), None)
    return _key(found.parts) if found else ""


def _monotone(values: list[str] | list[dt.datetime]) -> bool:
    steps = [(one > other) - (one < other) for one, other in pairwise(values)]  # type: ignore[operator]
    return 1 not in steps or -1 not in steps


def _pattern(alike: list[_Shown], order: Order) -> str:
    """The pattern, or `timestamp`, that reads values of one layout."""
    timed = [one for one in alike if one.layout.joint]
    layout = (timed or alike)[0].layout
    year, month, day = zip(*(_split(one, order) for one in alike), strict=True)
    two = layout.kind == "digits" or _two_digits([*day, *month])
    letters = {"y": "yyyy" if max(map(len, year)) == 4 else "yy", "m": _month_letters(month, two), "d": "d" * (1 + two)}
    clock = _clock_pattern([one.parts for one in timed]) if timed else ""
    long = min(map(len, [*day, *month])) == 2
    iso = order == "ymd" and layout.signs == ("-", "-") and long and month[0].isdigit()
    if (
        iso
        and letters["y"] == "yyyy"
        and layout.joint in ("", "T", " ")
        and layout.colon in ("", ":")
        and not layout.half
    ):
        return "timestamp"
    joint = {"T": "'T'", ":": ":"}.get(layout.joint, layout.joint)
    date = _joined([letters[one] for one in order], layout.signs)
    rest = f"{joint}{clock}{_zone_letters(layout.zone)}" if timed else ""
    return date + (f"[{rest}]" if timed and len(timed) < len(alike) else rest)


def _joined(parts: list[str], signs: tuple[str, str]) -> str:
    return f"{parts[0]}{signs[0]}{parts[1]}{signs[1]}{parts[2]}"


def _zone_letters(zone: str) -> str:
    """The letters of a zone such as ` +00:00`, `Z` or `UTC`."""
    gap, bare = zone[: len(zone) - len(zone.lstrip())], zone.lstrip()
    if bare in ("UTC", "GMT"):
        return f"{gap}'{bare}'"
    return gap + {"": "", "Z": "XXX", "+00": "X", "+0000": "XX"}.get(bare, "XXX")


def _two_digits(parts: Iterable[str]) -> bool:
    """Whether days, months or hours are filled with zeros; where none shows it, one letter reads both."""
    numbers = [part for part in parts if part.isdigit()]
    return any(part.startswith("0") for part in numbers) and min(map(len, numbers)) == 2


def _month_letters(parts: tuple[str, ...], two: bool) -> str:
    if parts[0][:1].isalpha():
        return "MMMM" if any(len(part) > 3 for part in parts) else "MMM"
    return "MM" if two else "M"


def _clock_pattern(clocks: list[Mapping[str, str]] | list[dict[str, str]]) -> str:
    """The pattern of times of day; seconds that some leave out are in brackets."""
    half = any(one["half"] for one in clocks)
    hours = ("h" if half else "H") * (1 + _two_digits(one["hour"] for one in clocks))
    colon = clocks[0]["colon"]
    seconds = [one for one in clocks if one["second"]]
    rest = ""
    if seconds:
        places = {len(one["fraction"]) for one in seconds}
        point = next((one["point"] for one in seconds if one["point"]), "")
        fraction = point + "S" * max(places) if point else ""
        rest = f"{colon}ss" + (f"[{fraction}]" if fraction and 0 in places else fraction)
        rest = f"[{rest}]" if len(seconds) < len(clocks) else rest
    gap = " a" if any(one["half"].startswith(" ") for one in clocks) else "a"
    return f"{hours}{colon}mm{rest}{gap if half else ''}"


def _counted(column: Column) -> Reading | None:
    """Seconds, or smaller steps, since 1970, or days since some day: digits alone."""
    numbers = [value for value in column.counts if re.fullmatch(r"\d{1,19}(\.\d+)?", value)]
    if len(numbers) < _MOSTLY * column.distinct:
        return None
    least, most = min(map(float, numbers)), max(map(float, numbers))
    shown = numbers[0]
    for name, steps in _EPOCHS.items():
        if _FIRST.timestamp() * steps <= least and most <= _LAST.timestamp() * steps:
            first = dt.datetime.fromtimestamp(float(shown) / steps, dt.UTC)
            why = f"'{shown}' is {first:%Y-%m-%d %H:%M:%S} UTC when it counts {_unit(name)} since 1970"
            return Reading(format=name, why=why, share=1.0, clock=True, zoned=True, plain=True)
    if not is_called(column.name, "time") or is_called(column.name, "hour"):
        return None
    clock = any("." in value and not value.endswith(".0") for value in numbers)
    if least >= 25_000 and most <= 60_000:
        day = _SPREADSHEET + dt.timedelta(days=int(float(shown)))
        why = f"'{shown}' is {day} when it counts days as spreadsheets do"
        return Reading(format="days", why=why, share=1.0, clock=clock, plain=True, origin=_SPREADSHEET)
    if _MONTH < most < _DAYS:
        why = f"whole days such as '{shown}' from a day that nothing tells"
        return Reading(
            format="days", why=why, share=1.0, clock=clock, plain=True, origin=dt.date(2000, 1, 1), unknown=True
        )
    return None


def _unit(name: str) -> str:
    return {"epoch": "seconds", "epoch_ms": "milliseconds", "epoch_us": "microseconds"}.get(name, "nanoseconds")
