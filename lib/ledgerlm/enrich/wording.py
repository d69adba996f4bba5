"""Words of the template engine: field names, and a short analysis that is true of the events told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from random import Random

from ledgerlm.enrich.amounts import value_of
from ledgerlm.enrich.source import ABSENT, Field, Kind, SourceDocument

_SYNONYMS = {
    Kind.GAP: ("days", "gap", "days since last", "after"),
    Kind.WEEKDAY: ("weekday", "day", "day of week"),
    Kind.HOUR: ("hour", "time", "at"),
    Kind.DATE: ("date", "when", "time"),
    Kind.AMOUNT: ("amount", "sum", "value"),
}
_TOKEN_NAME = re.compile("s|bos|eos|pad|unk|mask|think", re.IGNORECASE)
_CASES: tuple[Callable[[str], str], ...] = (str, str, str.title, str.upper, lambda name: name.replace(" ", "_"))


def labels(fields: tuple[Field, ...], rng: Random) -> list[str]:
    """Distinct names of the fields, in their order: synonyms for times and amounts, one spelling for all."""
    case = rng.choice(_CASES)
    names = [case(rng.choice(_SYNONYMS.get(field.kind, (field.name,)))) for field in fields]
    doubled = {name for name, count in Counter(names).items() if count > 1}
    return [field.name if name in doubled else name for name, field in zip(names, fields, strict=True)]


def identifiers(names: list[str]) -> list[str]:
    """The names as XML names, distinct, and none of them such that its tag looks like a special token."""
    clean = [re.sub(r"\W+", "_", name) for name in names]
    names = [
        name if re.match(r"[^\W\d]", name) and not _TOKEN_NAME.fullmatch(name) else f"field_{name}" for name in clean
    ]
    return [name if name not in names[:place] else f"{name}_{place}" for place, name in enumerate(names)]


def grouping(source: SourceDocument, rng: Random) -> int | None:
    """Place of a category that sorts the events into two to twelve groups; None when there is none."""
    fit = [place for place in source.places(Kind.CATEGORY) if 2 <= len({event[place] for event in source.events}) <= 12]
    return rng.choice(fit) if fit else None


def analysis(source: SourceDocument, rng: Random) -> list[str]:
    """Two to five short sentences: count and period, total, leading categories, busiest weekday."""
    sentences = [_extent(source, rng), *_totals(source, rng)]
    categories = [place for place in source.places(Kind.CATEGORY) if max(source.counts(place).values(), default=0) > 1]
    sentences += [_leaders(source, place, rng) for place in categories[: rng.choice((1, 1, 2))]]
    weekdays = source.places(Kind.WEEKDAY)
    if weekdays and rng.random() < 0.5:
        day, count = ranked(source.counts(weekdays[0]))[0]
        sentences.append(f"{rng.choice(('Busiest weekday', 'Most often on'))}: {day} ({times(count)}).")
    return sentences


def _extent(source: SourceDocument, rng: Random) -> str:
    count = len(source.events)
    noun = rng.choice(("events", "transactions", "records"))
    gaps, dates = source.places(Kind.GAP), source.places(Kind.DATE)
    period = ""
    if gaps:
        days = sum(int(event[gaps[0]][1:-1]) for event in source.events[1:] if event[gaps[0]] != ABSENT)
        period = rng.choice((f" over {days} days", f" within {days} days"))
    elif dates and (told := source.values(dates[0])):
        period = f" from {told[0][:10]} to {told[-1][:10]}"
    return rng.choice(
        (f"{count} {noun}{period}.", f"In all {count} {noun}{period}.", f"History of {count} {noun}{period}.")
    )


def _totals(source: SourceDocument, rng: Random) -> list[str]:
    places = source.places(Kind.AMOUNT)
    amounts = [value for text in source.values(places[0]) if (value := value_of(text)) is not None] if places else []
    if not amounts:
        return []
    # What a sign means is the data set's affair: the words stay neutral.
    above, below = sum(amount for amount in amounts if amount > 0), sum(amount for amount in amounts if amount < 0)
    if above and below:
        opening = rng.choice(("Positive amounts add up to", "Sum of the positive amounts", "Positive in total"))
        return [
            f"{opening} {plain(above)}, {rng.choice(('negative', 'the negative ones', 'below zero'))} {plain(below)}."
        ]
    return [f"{rng.choice(('Total', 'Sum', 'Together'))} {plain(above or below)}."]


def plain(value: Decimal | int) -> str:
    """A number without exponent and trailing zeros."""
    return f"{Decimal(value).normalize():f}"


def _leaders(source: SourceDocument, place: int, rng: Random) -> str:
    name = source.fields[place].name
    top = ", ".join(
        f"{value} ({times(count)})" for value, count in ranked(source.counts(place))[: rng.choice((1, 2, 3))]
    )
    return rng.choice((f"Top {name}: {top}.", f"Mostly {name} {top}.", f"Leading {name}: {top}."))


def times(count: int) -> str:
    """A count in words that no amount can be taken for."""
    return "once" if count == 1 else f"{count} times"


def ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, ties by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
