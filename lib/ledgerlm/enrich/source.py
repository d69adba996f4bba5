"""The source document as events: the one parser of the `compact` and `lines` formats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ledgerlm.errors import DataError

ABSENT = "-"
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Kind(StrEnum):
    """What the values of a field are, judged by their form."""

    GAP = "gap"
    """Whole days since the event before, `+3d`."""
    WEEKDAY = "weekday"
    HOUR = "hour"
    """Hour of the day, `19h`."""
    DATE = "date"
    """ISO date, with or without a time of day."""
    AMOUNT = "amount"
    NUMBER = "number"
    """A number, with or without the field's short prefix, `r0.47`."""
    CATEGORY = "category"
    """Any other text."""


_FORMS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.GAP, re.compile(r"\+\d{1,9}d")),
    (Kind.WEEKDAY, re.compile("|".join(WEEKDAYS))),
    (Kind.HOUR, re.compile(r"\d{1,2}h")),
    (Kind.DATE, re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?")),
    (Kind.NUMBER, re.compile(r"[a-z]{0,4}-?\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of the header line."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDocument:
    """What a document states.

    Attributes:
        fields: the header, in order.
        events: one value a field, as written (`-` is absent), oldest event first.
        untold: events of the document that are older than these and left out.
    """

    fields: tuple[Field, ...]
    events: tuple[tuple[str, ...], ...]
    untold: int = 0

    @property
    def text(self) -> str:
        """The told events in the compact form again."""
        return "\n".join("|".join(line) for line in (tuple(field.name for field in self.fields), *self.events))

    def places(self, *kinds: Kind) -> tuple[int, ...]:
        """Positions of the fields of these kinds."""
        return tuple(place for place, field in enumerate(self.fields) if field.kind in kinds)

    def values(self, place: int) -> list[str]:
        """Present values of one field, in the order of the events."""
        return [event[place] for event in self.events if event[place] != ABSENT]

    def counts(self, place: int) -> Counter[str]:
        """How often each present value of one field occurs."""
        return Counter(self.values(place))


def parse_source(text: str, *, max_events: int | None = None) -> SourceDocument:
    """Reads a header line and event lines back into events.

    The header is joined by `|`. An event line is joined by `|`, or by `, ` as in the `lines` format.

    Args:
        text: a document of format `compact` or `lines`.
        max_events: newest events to keep; None keeps all.

    Raises:
        DataError: no header, no event, or a line with more or fewer values than the header has names.
    """
    header, *lines = text.strip("\n").split("\n")
    names = header.split("|")
    told = lines if max_events is None else lines[-max_events:]
    if not told or not header:
        raise DataError("the document has no header or no event line")
    events = tuple(_values(line, len(names), len(lines) - len(told) + place + 2) for place, line in enumerate(told))
    fields = tuple(
        Field(name=name, kind=_kind(name, column))
        for name, column in zip(names, zip(*events, strict=True), strict=True)
    )
    return SourceDocument(fields=fields, events=events, untold=len(lines) - len(told))


def _values(line: str, width: int, number: int) -> tuple[str, ...]:
    values = line.split("|" if "|" in line or width == 1 else ", ")
    if len(values) != width:
        raise DataError(f"line {number} has {len(values)} values where the header has {width} names: {line[:80]!r}")
    return tuple(values)


def _kind(name: str, column: Sequence[str]) -> Kind:
    if name.casefold().startswith("amount"):
        return Kind.AMOUNT
    present = set(column) - {ABSENT}
    matching = (kind for kind, form in _FORMS if present and _all_match(form, present))
    return next(matching, Kind.CATEGORY)


def _all_match(form: re.Pattern[str], values: Iterable[str]) -> bool:
    return all(form.fullmatch(value) for value in values)
