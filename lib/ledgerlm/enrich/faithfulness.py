"""Whether a rewritten text tells its source: a check of the text alone, whatever engine wrote it.

What is checked, over the events that the engine was given:

* the engine ended by itself, and the text is neither empty nor beyond a length;
* no special or chat token stands in it, and no talk about the task itself (`the user wants`, `let me check`), as models
  leave it that think without marking their thoughts;
* the events are not told twice: not every amount stands there twice as often as in the source;
* every amount is written at least as often as the source has it, so that a dropped event or a changed amount is seen;
  numbers are compared by value (`1,234.50` is `1234.5`) and sign; a number that counts events or days is no amount;
* every time is written: dates in any usual form, weekdays short or long, hours as `19h`, `19:..` or `7 pm`, day gaps
  as often as the source has them (a gap of no days needs no words);
* every category is written, upper or lower case, with HTML, XML, JSON or Markdown escapes undone; or the share of them
  that the configuration asks for; under a prompt that lets names be put in other words, one telling word of each is
  enough (one of four letters or more, or another form of it), while names with digits stay whole;
* every other number is written once;
* of events without an amount, the values of the most varied field are written as often as the source has them;
* a number with decimals, or from 100 on, stands in the source or follows from it (a sum, a mean, a count ...).

Of a summary, which leaves events out on purpose, only the first two and the last are checked: it need not be complete.

What it can't see: single events told twice, values moved from one event to another, small whole numbers that are made
up, and false statements in words.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from typing import Literal

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.amounts import Numbers, find_numbers, is_rounding, statistics, value_of
from ledgerlm.enrich.engine import Generation, Wording
from ledgerlm.enrich.source import ABSENT, Kind, SourceDocument
from ledgerlm.enrich.tokens import SPECIAL_TOKENS

_WEEKDAY_NAMES = {
    "Mon": "Monday",
    "Tue": "Tuesday",
    "Wed": "Wednesday",
    "Thu": "Thursday",
    "Fri": "Friday",
    "Sat": "Saturday",
    "Sun": "Sunday",
}
_CODE_POINT = re.compile(r"\\u([0-9a-fA-F]{4})")
_WORD = re.compile(r"[^\W\d_]{4,}")
_DIGIT = re.compile(r"\d")
# What a model says to itself about its task, and no account of purchases says.
_THINKING = re.compile(
    r"\bthe user (?:wants|asks|asked|is asking|gave|has given|provided)\b|\bwe are asked\b"
    r"|\bwe need to (?:write|rewrite|convert)\b"
    r"|\blet (?:me|us) (?:think|see|check|start|begin|go through|write|rewrite|convert|format|now|first|double)\b"
    r"|\bi (?:need|have|was asked) to (?:write|rewrite|convert|keep|make sure|produce|output|follow|check|include)\b"
    r"|\bi (?:should|must|will|'ll) (?:write|rewrite|convert|keep|make sure|produce|output|follow|check|include|now)\b"
    r"|\b(?:my|the) task is to\b|\bstep by step\b|\bthe instructions? says?\b|^(?:okay|ok|alright|hmm|wait), ",
    re.IGNORECASE | re.MULTILINE,
)
_FEW = 3  # amounts, below which each may stand twice by chance
_NAMED = 5  # missing values that a fault names

Code = Literal[
    "engine_error",
    "cut_off",
    "empty",
    "too_long",
    "special_token",
    "reasoning",
    "told_twice",
    "amount_missing",
    "time_missing",
    "category_missing",
    "number_missing",
    "event_missing",
    "number_invented",
]


class CheckConf(Conf):
    """How strictly rewritten texts are held against their source."""

    categories: float = Field(
        1.0, ge=0, le=1, description="share of a document's distinct category values to be found word for word"
    )
    wording: Wording | None = Field(
        None, description="exact or recognisable category names; left out, as the prompt has it, exact without one"
    )
    complete: bool = Field(True, description="whether every event must be told; off for summaries")
    signs: bool = Field(
        True, description="whether -5 and 5 are different amounts; off for engines that say it in words"
    )
    invented: int = Field(
        0, ge=0, description="numbers a text may hold that neither stand in the source nor follow from it"
    )
    max_characters: int = Field(200_000, gt=0, description="characters of the longest text that is kept")


class Fault(Conf):
    """One way in which a text fails its source."""

    code: Code
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class FaithfulnessCheck:
    """Checks any number of rewrites of one source.

    Args:
        source: the events told.
        conf: how strictly.
        parts: parts of the source, whose sums and counts a summary may state as well.
    """

    def __init__(self, source: SourceDocument, conf: CheckConf, parts: Sequence[SourceDocument] = ()) -> None:
        self._source = source
        self._conf = conf
        self._amounts = self._amounts_of(Kind.AMOUNT)
        self._numbers = self._amounts_of(Kind.NUMBER)
        self._gaps = Counter(int(text[1:-1]) for text in self._values(Kind.GAP))
        self._times = {
            part: _time_forms(part)
            for text in self._values(Kind.WEEKDAY, Kind.HOUR, Kind.DATE)
            for part in (text[:10], text[11:16])
            if part not in ("", "00:00")
        }
        self._categories = {text: fold(text) for text in self._values(Kind.CATEGORY)}
        self._told = " ".join(self._categories.values())
        self._anchors = _anchors(source)
        self._known = statistics(source).union(*(statistics(part) for part in parts))

    def faults(self, generation: Generation) -> list[Fault]:
        """What is wrong with a rewrite, in the order of the checks; empty when nothing is."""
        unfit = self._unfit(generation)
        if unfit is not None:
            return [unfit]
        numbers = find_numbers(html.unescape(generation.text))
        if self._conf.complete and self._is_told_twice(numbers):
            return [Fault(code="told_twice", detail="every amount stands there twice as often as in the source")]
        found: list[tuple[Code, list[str]]] = [("number_invented", self._invented(numbers))]
        if self._conf.complete:
            found = [*self._missing(numbers, fold(generation.text)), *found]
        return [Fault(code=code, detail=_listed(values)) for code, values in found if values]

    def _missing(self, numbers: Numbers, words: str) -> tuple[tuple[Code, list[str]], ...]:
        return (
            ("amount_missing", _shown(self._amounts - self._supply(numbers))),
            ("time_missing", self._missing_times(numbers, words)),
            ("category_missing", self._missing_categories(words)),
            ("number_missing", _shown(self._numbers.keys() - self._supply(numbers).keys())),
            ("event_missing", self._missing_events(words)),
        )

    def _unfit(self, generation: Generation) -> Fault | None:
        text, longest = generation.text, self._conf.max_characters
        if generation.finish_reason == "error":
            return Fault(code="engine_error", detail=generation.detail)
        if generation.finish_reason == "length":
            return Fault(code="cut_off", detail=f"after {generation.output_tokens} tokens, {len(text)} characters")
        if not text.strip():
            return Fault(code="empty", detail="the engine returned no text")
        if len(text) > longest:
            return Fault(code="too_long", detail=f"{len(text)} characters, at most {longest}")
        return self._foreign(text)

    def _foreign(self, text: str) -> Fault | None:
        """What no text about events holds."""
        if special := SPECIAL_TOKENS.search(text):
            return Fault(code="special_token", detail=special.group())
        thought = _THINKING.search(text)
        if thought and fold(thought.group()) not in self._told:
            return Fault(code="reasoning", detail=f"'{thought.group()}' is said about the task, not of the events")
        return None

    def _is_told_twice(self, numbers: Numbers) -> bool:
        supply = self._supply(numbers)
        few = self._amounts.total() < _FEW
        return not few and all(supply[amount] >= 2 * count for amount, count in self._amounts.items())

    def _values(self, *kinds: Kind) -> Iterator[str]:
        return (text for place in self._source.places(*kinds) for text in self._source.values(place))

    def _amounts_of(self, kind: Kind) -> Counter[Decimal]:
        found = (value_of(text) for text in self._values(kind))
        return Counter(self._signed(value) for value in found if value is not None)

    def _signed(self, value: Decimal) -> Decimal:
        return value if self._conf.signs else abs(value)

    def _supply(self, numbers: Numbers) -> Counter[Decimal]:
        return Counter(self._signed(value) for readings in numbers.written for value in readings)

    def _missing_times(self, numbers: Numbers, words: str) -> list[str]:
        # A gap may stand as a bare number (`"days": 3`), so long as an amount does not need that number.
        bare = self._supply(numbers) - self._amounts
        short = self._gaps - numbers.gaps
        gaps = [f"+{gap}d" for gap, count in short.items() if gap > 0 and count > bare[Decimal(gap).normalize()]]
        named = [text for text, forms in self._times.items() if not any(occurrences(words, form) for form in forms)]
        return gaps + named

    def _missing_events(self, words: str) -> list[str]:
        if self._conf.wording == "recognisable":  # names told in other words cannot be counted
            return []
        return [text for text, wanted in self._anchors.items() if occurrences(words, text) < wanted]

    def _missing_categories(self, words: str) -> list[str]:
        told = _stems(words) if self._conf.wording == "recognisable" else frozenset()
        missing = [
            text
            for text, folded in self._categories.items()
            if not (occurrences(words, folded) or (not _DIGIT.search(folded) and told & _stems(folded)))
        ]
        allowed = (1 - self._conf.categories) * len(self._categories)
        return missing if len(missing) > allowed else []

    def _invented(self, numbers: Numbers) -> list[str]:
        invented = [
            readings[-1]
            for readings in numbers.written
            if any(abs(value) >= 100 or value != int(value) for value in readings)
            and not any(value in self._known or is_rounding(value, self._known) for value in readings)
        ]
        return _shown(invented) if len(invented) > self._conf.invented else []


def fold(text: str) -> str:
    """Text as it is compared, source values and rewrites alike: no entities, no escapes, no case, single blanks."""
    plain = html.unescape(html.unescape(text)) if "&" in text else text
    if "\\" in plain:
        plain = _CODE_POINT.sub(lambda code: chr(int(code.group(1), 16)), plain).replace("\\n", " ").replace("\\", "")
    return " ".join(plain.replace("''", "'").replace('""', '"').casefold().split())


def _stems(words: str) -> frozenset[str]:
    """The beginnings of the telling words of a folded text: five letters stand for a word and its forms."""
    return frozenset(word[:5] for word in _WORD.findall(words))


def occurrences(words: str, phrase: str) -> int:
    """How often a folded phrase stands in a folded text, not as a part of a longer word."""
    count, place = 0, words.find(phrase)
    while phrase and place >= 0:
        end = place + len(phrase)
        inside = (phrase[0].isalnum() and words[max(place - 1, 0) : place].isalnum()) or (
            phrase[-1].isalnum() and words[end : end + 1].isalnum()
        )
        count += not inside
        place = words.find(phrase, end)
    return count


def _time_forms(text: str) -> tuple[str, ...]:
    """Folded ways to write a weekday (`Sat`), an hour (`19h`), a time of day (`19:32`) or an ISO date."""
    if text in _WEEKDAY_NAMES:
        return text.casefold(), _WEEKDAY_NAMES[text].casefold()
    if text.endswith("h"):
        return _hour_forms(int(text[:-1]))
    if ":" in text:
        hour, minute = text.split(":")
        return text, f"{int(hour)}:{minute}", f"{int(hour) % 12 or 12}:{minute} {_half(int(hour))}"
    try:
        when = date.fromisoformat(text)
    except ValueError:  # no day of the calendar; then as written
        return (text,)
    numeric = (f"{when:{form}}" for form in ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d"))
    names = [f"{when:{form}}".casefold() for form in ("%B", "%b")]
    spoken = (form for name in names for form in (f"{when.day} {name} {when.year}", f"{name} {when.day}, {when.year}"))
    return *numeric, *spoken


def _hour_forms(hour: int) -> tuple[str, ...]:
    spoken = (f"{hour % 12 or 12} {_half(hour)}", f"{hour % 12 or 12}{_half(hour)}", f"hour {hour}")
    return f"{hour}h", f"{hour:02d}h", f"{hour} h", f"{hour}:", f"{hour:02d}:", *spoken


def _half(hour: int) -> str:
    return "am" if hour < 12 else "pm"


def _anchors(source: SourceDocument) -> Counter[str]:
    """Folded values that tell events without an amount apart, with how often they are to be written."""
    amounts = source.places(Kind.AMOUNT)
    bare = [event for event in source.events if all(event[place] == ABSENT for place in amounts)]
    others = source.places(Kind.CATEGORY, Kind.NUMBER)
    if not bare or not others:
        return Counter()
    place = max(others, key=lambda other: len({event[other] for event in bare}))
    return Counter(fold(event[place]) for event in bare if event[place] != ABSENT)


def _shown(values: Iterable[Decimal]) -> list[str]:
    return [f"{value:f}" for value in values]


def _listed(values: list[str]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(values[:_NAMED]) + more
