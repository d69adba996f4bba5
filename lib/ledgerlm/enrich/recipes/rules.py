"""Summaries of a history by rules alone: what the template engine writes where a text recipe asks for one.

Every figure in them is a number of the source or follows from it, so they pass the same check as a language model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from random import Random
from statistics import median_low

from ledgerlm.enrich.amounts import value_of
from ledgerlm.enrich.source import ABSENT, Kind, SourceDocument
from ledgerlm.enrich.wording import analysis, plain, ranked, times

_REMEMBERED = 700  # characters of the description so far that the next one keeps
_DAYTIMES = {5: "at night", 11: "in the morning", 17: "in the afternoon", 22: "in the evening", 24: "at night"}
_TOP = 3


SUMMARIES = ("trsr_block", "trsr_whole", "trsr_update", "hkfr")
"""Kinds of requests that `summary` answers."""


def summary(kind: str, source: SourceDocument, notes: Sequence[str], rng: Random) -> str:
    """The text that a recipe asks for.

    Args:
        kind: one of `SUMMARIES`.
        source: the events to speak of.
        notes: summaries that this one builds on.
        rng: decides between wordings.
    """
    if kind == "hkfr":
        return _profile(source)
    if kind == "trsr_whole":
        return _whole(source, notes)
    block = _block(source, rng)
    return block if kind == "trsr_block" else _running(block, notes[-1])


def _block(source: SourceDocument, rng: Random) -> str:
    """What one block of a history shows (LLM-TRSR's first level)."""
    return " ".join([*analysis(source, rng), *_money(source), *_rhythm(source)])


def _whole(source: SourceDocument, notes: Sequence[str]) -> str:
    """The summaries of consecutive blocks under what holds for all of them (LLM-TRSR, hierarchical)."""
    parts = [f"Part {number}: {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([" ".join([*_leaders(source), *_rhythm(source)]), *parts])


def _running(block: str, before: str) -> str:
    """The newest block, then what is remembered of the description before it (LLM-TRSR, recurrent).

    Rules cannot merge two texts, so memory fades: the older a sentence, the sooner it is dropped.
    """
    before = before.replace("Lately: ", "").replace(" Before: ", " ")
    kept = before[:_REMEMBERED].rpartition(". ")[0] + "." if len(before) > _REMEMBERED else before
    return f"Lately: {block} Before: {kept}"


def _profile(source: SourceDocument) -> str:
    """The sides of a history brought together: what, where, when, how much, and what has changed (HKFR)."""
    sides = (*_leaders(source), *_habits(source), *_rhythm(source), *_money(source), *_changes(source))
    return " ".join([f"Profile from {len(source.events)} events.", *sides])


def _leaders(source: SourceDocument) -> list[str]:
    """For each category field its most frequent values."""
    sentences = []
    for place in source.places(Kind.CATEGORY):
        top = [f"{value} ({times(count)})" for value, count in ranked(source.counts(place))[:_TOP]]
        if top:
            sentences.append(f"By {source.fields[place].name}: {', '.join(top)}.")
    return sentences


def _habits(source: SourceDocument) -> list[str]:
    """Leading values of the first category with the weekday and the sum that go with them."""
    categories, days, amounts = (source.places(kind) for kind in (Kind.CATEGORY, Kind.WEEKDAY, Kind.AMOUNT))
    if not categories:
        return []
    sentences = []
    for value, _ in ranked(source.counts(categories[0]))[:_TOP]:
        events = [event for event in source.events if event[categories[0]] == value]
        sayings = [f"mostly on {_commonest(events, days[0])}"] if days and len(events) > 1 else []
        found = [amount for event in events for place in amounts[:1] if (amount := value_of(event[place])) is not None]
        sayings += [f"sum {plain(sum(found, Decimal(0)))}"] if found else []
        if sayings:
            sentences.append(f"{value}: {', '.join(sayings)}.")
    return sentences


def _commonest(events: Sequence[tuple[str, ...]], place: int) -> str:
    return ranked(Counter(event[place] for event in events))[0][0]


def _rhythm(source: SourceDocument) -> list[str]:
    """Usual gap between events and usual time of the day."""
    sentences = []
    gaps = [int(value[1:-1]) for place in source.places(Kind.GAP)[:1] for value in source.values(place)][1:]
    if gaps:
        usual = median_low(gaps)
        often = {0: "Often several events a day.", 1: "Usually an event a day."}
        sentences.append(often.get(usual, f"Usually {usual} days between events."))
    hours = [int(value[:-1]) for place in source.places(Kind.HOUR)[:1] for value in source.values(place)]
    if hours:
        sentences.append(f"Mostly {ranked(Counter(map(_daytime, hours)))[0][0]}.")
    return sentences


def _daytime(hour: int) -> str:
    return next(name for end, name in _DAYTIMES.items() if hour < end)


def _money(source: SourceDocument) -> list[str]:
    """Largest and smallest amount."""
    texts = (text for place in source.places(Kind.AMOUNT)[:1] for text in source.values(place))
    amounts = [value for text in texts if (value := value_of(text)) is not None]
    return [f"Amounts from {plain(min(amounts))} to {plain(max(amounts))}."] if amounts else []


def _changes(source: SourceDocument) -> list[str]:
    """Values of the first category that only the newest quarter of the events has, or has no more."""
    categories = source.places(Kind.CATEGORY)
    cut = len(source.events) - max(1, len(source.events) // 4)
    if not categories or not cut:
        return []
    before, lately = (
        {event[categories[0]] for event in events} - {ABSENT} for events in (source.events[:cut], source.events[cut:])
    )
    new, ended = sorted(lately - before)[:_TOP], sorted(before - lately)[:_TOP]
    sentences = [f"New lately: {', '.join(new)}."] if new else []
    return sentences + ([f"Not lately: {', '.join(ended)}."] if ended else [])
