"""How the template engine lays out events: layouts for each format, every one telling all values.

Values are written as in the source, so that both texts share their words; absent ones are left out where a layout names
its fields. The analysis stands at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from xml.sax.saxutils import escape, quoteattr

from ledgerlm.enrich.source import ABSENT, Kind, SourceDocument
from ledgerlm.enrich.wording import grouping, identifiers

Event = tuple[str, ...]

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_YAML_PLAIN = re.compile(r"[A-Za-z+][\w./+]*(?: [\w./]+)*")
_YAML_WORDS = frozenset({"yes", "no", "true", "false", "null", "on", "off", "y", "n"})
_TIMES = (Kind.GAP, Kind.DATE, Kind.WEEKDAY, Kind.HOUR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a layout is given.

    Attributes:
        source: the events to tell.
        names: labels of the fields, in their order.
        analysis: sentences that are true of the events.
        rng: decides what the layout leaves open.
    """

    source: SourceDocument
    names: list[str]
    analysis: list[str]
    rng: Random

    def pick(self, *options: str) -> str:
        """One of the wordings."""
        return self.rng.choice(options)

    def pairs(self, event: Event) -> list[tuple[str, str]]:
        """(label, value) of the present values."""
        return [(name, value) for name, value in zip(self.names, event, strict=True) if value != ABSENT]

    def values(self, event: Event, places: Iterable[int]) -> list[str]:
        """Present values at some places, an amount after its label."""
        amounts = self.source.places(Kind.AMOUNT)
        return [
            f"{self.names[place]} {event[place]}" if place in amounts else event[place]
            for place in places
            if event[place] != ABSENT
        ]

    def told(self) -> str:
        """The analysis as one line."""
        return " ".join(self.analysis)


Layout = Callable[[Page], str]


def json_rows(page: Page) -> str:
    """Field names once, then one array an event."""
    head = f'"{page.pick("fields", "columns")}": {_json(page.names)},\n'
    lines = ["[" + ", ".join(_json_value(value) for value in event) + "]" for event in page.source.events]
    return _json_document(page, lines, head)


def json_objects(page: Page) -> str:
    """A list of objects, one a line."""
    rows = (page.pairs(event) for event in page.source.events)
    lines = ["{" + ", ".join(f"{_json(name)}: {_json_value(value)}" for name, value in row) + "}" for row in rows]
    return _json_document(page, lines)


def _json_document(page: Page, lines: list[str], head: str = "") -> str:
    events, last = ",\n".join(lines), page.pick("analysis", "summary")
    key = page.pick("events", "transactions", "history")
    return f'{{{head}"{key}": [\n{events}],\n"{last}": {_json(page.told())}}}'


def _json(content: str | list[str]) -> str:
    return json.dumps(content, ensure_ascii=False)


def _json_value(text: str) -> str:
    if text == ABSENT:
        return "null"
    return text if _JSON_NUMBER.fullmatch(text) else _json(text)


def markdown_table(page: Page) -> str:
    """A pipe table under a heading."""
    rows = ["|".join(value.replace("|", "\\|") for value in event) for event in page.source.events]
    title, last = page.pick("Transactions", "History", "Events"), page.pick("Analysis", "Summary")
    head = ("|".join(page.names), "|".join("---" for _ in page.names))
    return "\n".join((f"# {title}", *head, *rows, "", f"**{last}** {page.told()}"))


def markdown_list(page: Page) -> str:
    """A bullet an event, its first category in bold; the analysis as bullets."""
    bold = page.source.places(Kind.CATEGORY)[:1]
    rest = [place for place in range(len(page.names)) if place not in bold]
    joint = page.pick(", ", "; ", " - ")
    bullets = []
    for event in page.source.events:
        strong = [f"**{value}**" for value in page.values(event, bold)]
        bullets.append("- " + joint.join(strong + page.values(event, rest)))
    return "\n".join((*bullets, f"## {page.pick('Analysis', 'Summary')}", *(f"- {line}" for line in page.analysis)))


def html_list(page: Page) -> str:
    """An ordered list of events and the analysis as a paragraph."""
    joint, places = page.pick(", ", " / ", "; "), range(len(page.names))
    items = [f"<li>{escape(joint.join(page.values(event, places)))}</li>" for event in page.source.events]
    title = page.pick("Transactions", "Account history", "Events")
    return "\n".join((f"<h1>{title}</h1>", "<ol>", *items, "</ol>", f"<p>{escape(page.told())}</p>"))


def html_table(page: Page) -> str:
    """A table, with the closing tags or without those that HTML lets us leave out."""
    closed = page.rng.random() < 0.5
    head = _html_row("th", page.names, closed)
    rows = (_html_row("td", event, closed) for event in page.source.events)
    return "\n".join(("<table>", head, *rows, "</table>", f"<p>{escape(page.told())}</p>"))


def _html_row(tag: str, cells: Iterable[str], closed: bool) -> str:
    end = f"</{tag}>" if closed else ""
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}{end}" for cell in cells) + ("</tr>" if closed else "")


def xml_attributes(page: Page) -> str:
    """An empty element an event, its values as attributes."""
    tag, keys = page.pick("event", "transaction", "tx"), identifiers(page.names)
    rows = (zip(keys, event, strict=True) for event in page.source.events)
    inner = (" ".join(f"{key}={quoteattr(value)}" for key, value in row if value != ABSENT) for row in rows)
    return _xml_document(page, [f"<{tag} {attributes}/>" for attributes in inner])


def xml_elements(page: Page) -> str:
    """An element an event, its values as elements on the same line."""
    tag, keys = page.pick("event", "transaction", "tx"), identifiers(page.names)
    rows = (zip(keys, event, strict=True) for event in page.source.events)
    inner = ("".join(f"<{key}>{escape(value)}</{key}>" for key, value in row if value != ABSENT) for row in rows)
    return _xml_document(page, [f"<{tag}>{elements}</{tag}>" for elements in inner])


def _xml_document(page: Page, rows: list[str]) -> str:
    root, last = page.pick("history", "account", "client"), page.pick("analysis", "summary")
    return "\n".join((f"<{root}>", *rows, f"<{last}>{escape(page.told())}</{last}>", f"</{root}>"))


def yaml_rows(page: Page) -> str:
    """Field names once, then one flow sequence an event."""
    head = f"{page.pick('fields', 'columns')}: [{', '.join(_yaml(name) for name in page.names)}]"
    rows = ["- [" + ", ".join(_yaml(value) for value in event) + "]" for event in page.source.events]
    return _yaml_document(page, rows, head)


def yaml_maps(page: Page) -> str:
    """A flow map an event."""
    maps = (page.pairs(event) for event in page.source.events)
    rows = ["- {" + ", ".join(f"{_yaml(name)}: {_yaml(value)}" for name, value in row) + "}" for row in maps]
    return _yaml_document(page, rows)


def _yaml_document(page: Page, rows: list[str], *head: str) -> str:
    last = (f"{page.pick('analysis', 'summary')}:", *(f"- {_json(sentence)}" for sentence in page.analysis))
    return "\n".join((*head, f"{page.pick('events', 'transactions')}:", *rows, *last))


def _yaml(text: str) -> str:
    if text == ABSENT:
        return "null"
    plain = _JSON_NUMBER.fullmatch(text) or (_YAML_PLAIN.fullmatch(text) and text.casefold() not in _YAML_WORDS)
    return text if plain else _json(text)


def table_delimited(page: Page) -> str:
    """Names and values between commas, semicolons or tabs."""
    mark = page.pick(",", ";", "\t")
    lines = (tuple(page.names), *page.source.events)
    rows = (mark.join(_csv(value, mark) for value in line) for line in lines)
    return "\n".join((*rows, "", *page.analysis))


def _csv(value: str, mark: str) -> str:
    return '"' + value.replace('"', '""') + '"' if mark in value or '"' in value else value


def table_aligned(page: Page) -> str:
    """Columns padded with blanks to one width."""
    lines = (tuple(page.names), *page.source.events)
    widths = [max(len(value) for value in column) for column in zip(*lines, strict=True)]
    padded = ("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join((*(line.rstrip() for line in padded), page.pick("", "-" * 8), *page.analysis))


def narrative_lines(page: Page) -> str:
    """A line an event, times first, and the analysis as the last lines."""
    opening = page.pick("What this client did.", "The history of one account, oldest first.", "Events in order.")
    tell, times = _teller(page), page.source.places(*_TIMES)
    lines = (f"{_joined(event, times)}: {tell(event)}." for event in page.source.events)
    return "\n".join((opening, *lines, *page.analysis))


def narrative_prose(page: Page) -> str:
    """One paragraph with linking words, and the analysis as another."""
    tell, times = _teller(page), page.source.places(*_TIMES)
    links = page.rng.choice((("Then", "Next", "Later"), ("After that", "Then"), ("Next",)))
    sentences = []
    for number, event in enumerate(page.source.events):
        parts = (links[number % len(links)] if number else "First", _joined(event, times), "came", tell(event))
        sentences.append(" ".join(part for part in parts if part))
    return ". ".join(sentences) + f".\n\n{page.told()}"


def _teller(page: Page) -> Callable[[Event], str]:
    """How one text says what an event was: amount and other values, in one order and wording."""
    amounts, others = page.source.places(Kind.AMOUNT), page.source.places(Kind.CATEGORY, Kind.NUMBER)
    word, amount_first = page.pick("for", "at", "under"), page.rng.random() < 0.5

    def tell(event: Event) -> str:
        amount, rest = _joined(event, amounts), _joined(event, others, ", ")
        parts = (amount, word if amount and rest else "", rest) if amount_first else (rest, amount)
        return " ".join(part for part in parts if part)

    return tell


def _joined(event: Event, places: Iterable[int], joint: str = " ") -> str:
    return joint.join(event[place] for place in places if event[place] != ABSENT)


def by_day(page: Page) -> str:
    """A heading a day, its events below; by category where the source does not say the day."""
    source = page.source
    if not source.places(Kind.GAP, Kind.DATE):
        return by_category(page)
    keys, dates = source.places(Kind.GAP, Kind.DATE, Kind.WEEKDAY), source.places(Kind.DATE)
    rest = [place for place in range(len(page.names)) if place not in keys]
    mark, joint = page.pick("## ", "* ", ""), page.pick(", ", " | ", "; ")
    lines: list[str] = []
    day: Event = ()
    for event in source.events:
        here = tuple(event[place][:10] if place in dates else event[place] for place in keys)
        if not day or not _same_day(source, keys, day, here):
            lines.append(f"{mark}{' '.join(value for value in here if value != ABSENT)}:")
        clock = [event[place][11:] for place in dates if len(event[place]) > 10]
        lines.append("- " + joint.join(clock + page.values(event, rest)))
        day = here
    return "\n".join((*lines, page.pick("", "Summary."), *page.analysis))


def _same_day(source: SourceDocument, keys: Sequence[int], day: Event, here: Event) -> bool:
    return all(
        value == "+0d" if source.fields[place].kind is Kind.GAP else value == before
        for place, before, value in zip(keys, day, here, strict=True)
    )


def by_category(page: Page) -> str:
    """A heading a value of one category, most frequent first, its events below in order of time."""
    key = grouping(page.source, page.rng)
    if key is None:
        return table_delimited(page)
    rest = [place for place in range(len(page.names)) if place != key]
    mark, joint = page.pick("### ", "* ", "= "), page.pick(", ", " | ", "; ")
    groups: dict[str, list[str]] = {}
    for event in page.source.events:
        groups.setdefault(event[key], []).append("- " + joint.join(page.values(event, rest)))
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    lines = (line for value, events in ordered for line in (f"{mark}{value}", *events))
    return "\n".join((*lines, page.pick("", "Summary."), *page.analysis))


COMPACT: dict[str, tuple[Layout, ...]] = {
    "json": (json_rows,),
    "markdown": (markdown_table, markdown_list),
    "html": (html_list,),
    "xml": (xml_attributes,),
    "yaml": (yaml_rows,),
    "table": (table_delimited,),
    "narrative": (narrative_lines,),
    "grouped": (by_day, by_category),
}
"""Layouts of few tokens an event, by format."""

AMPLE: dict[str, tuple[Layout, ...]] = {
    "json": (json_objects,),
    "html": (html_table,),
    "xml": (xml_elements,),
    "yaml": (yaml_maps,),
    "table": (table_aligned,),
    "narrative": (narrative_prose,),
}
"""Layouts of more tokens an event, by format."""
