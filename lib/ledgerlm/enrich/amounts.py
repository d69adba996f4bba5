"""Numbers as a rewritten text may write them, and the statistics that an analysis may truly state."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from ledgerlm.enrich.source import Kind, SourceDocument

_SPACES = "\u00a0\u202f'\u2019"
# A sign counts when it does not join two words or numbers: in `12-15` and `2017-04-03` it is a dash.
_COUNTED = "%|percent\\b|(?:events|transactions|purchases|payments|operations|records|times)\\b"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]])[-\u2212])?(?P<digits>\d+(?:[.,{_SPACES}]\d+)*(?:e[+-]?\d{{1,3}})?)(?P<counted>\s*(?:{_COUNTED}))?",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"(?:\d{1,3}(?:\.\d{3})+|\d+),\d+")
_GAP = re.compile(r"\+(\d{1,9})d\b|\b(\d{1,9})[ -]?days?\b", re.IGNORECASE)
_HOUR = re.compile(r"\b\d{1,2}h\b|\b\d{1,2}:\d{2}(?::\d{2})?\b")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers found in a text.

    Attributes:
        written: the possible readings of each written number, in order. `1,234` may be 1234, or 1.234, or 1 and 234,
            since a thousands mark, a decimal comma and a list without blanks look alike.
        gaps: how often each day gap (`+3d`, `3 days`) is written; these are not among `written`.
    """

    written: tuple[tuple[Decimal, ...], ...]
    gaps: Counter[int]


def value_of(text: str) -> Decimal | None:
    """The number in a source value, a letter prefix aside; None when there is none."""
    found = _PLAIN.search(text)
    return Decimal(found.group()).normalize() if found else None


def find_numbers(text: str) -> Numbers:
    """Numbers of a text; counts (`12 events`, `3 times`), shares (`40 %`), hours and day gaps are no amounts."""
    gaps = Counter(int(found.group(1) or found.group(2)) for found in _GAP.finditer(text))
    rest = _HOUR.sub(" ", _GAP.sub(" ", text))
    return Numbers(
        written=tuple(_readings(found) for found in _NUMBER.finditer(rest) if not _is_count(found)), gaps=gaps
    )


def _is_count(found: re.Match[str]) -> bool:
    return found.group("counted") is not None and ("." not in found.group("digits") or "%" in found.group("counted"))


def _readings(found: re.Match[str]) -> tuple[Decimal, ...]:
    digits = re.sub(f"[{_SPACES}]", "", found.group("digits").casefold())
    readings = [part for item in digits.split(",") for part in ([item] if item.count(".") < 2 else item.split("."))]
    if _THOUSANDS.fullmatch(digits):
        readings.append(digits.replace(",", ""))
    if _DECIMAL_COMMA.fullmatch(digits):
        readings.append(digits.replace(".", "").replace(",", "."))
    sign = "-" if found.group("sign") else ""
    return tuple(Decimal(sign + reading).normalize() for reading in readings)


def statistics(source: SourceDocument) -> frozenset[Decimal]:
    """Numbers that follow from the source.

    These are the numbers it holds, its count of events, the days it spans, and the count, sum, mean, median, least and
    largest of all amounts, of those of one sign, and of those of each category, weekday and hour; with or without sign.
    """
    known = {Decimal(found.group()).normalize() for found in _PLAIN.finditer(source.text)}
    gaps = [int(value[1:-1]) for place in source.places(Kind.GAP) for value in source.values(place)]
    known |= {Decimal(len(source.events)), Decimal(sum(gaps)), Decimal(sum(gaps[1:]))}
    signed = known.union(*(_moments(group) for group in _groups(source)))
    return frozenset(signed | {abs(value) for value in signed})


def _groups(source: SourceDocument) -> list[list[Decimal]]:
    groups: dict[tuple[object, ...], list[Decimal]] = {}
    others = source.places(Kind.CATEGORY, Kind.WEEKDAY, Kind.HOUR)
    for place in source.places(Kind.AMOUNT):
        for event in source.events:
            amount = value_of(event[place])
            if amount is None:
                continue
            for key in ((place,), (place, amount > 0), *((place, other, event[other]) for other in others)):
                groups.setdefault(key, []).append(amount)
    return list(groups.values())


def _moments(amounts: list[Decimal]) -> set[Decimal]:
    ordered, count = sorted(amounts), len(amounts)
    total = sum(amounts, Decimal(0))
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return {Decimal(count), total, total / count, median, ordered[0], ordered[-1]}


def is_rounding(value: Decimal, known: Iterable[Decimal]) -> bool:
    """Whether `value` is one of the known numbers, rounded to as many places as it is written with."""
    half = Decimal(1).scaleb(min(0, int(value.as_tuple().exponent))) / 2
    return any(abs(value - item) <= half for item in known)
