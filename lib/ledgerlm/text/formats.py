"""The formats of a document: what stands before, between and after values, events and the whole.

A format is data. `ledgerlm.text.serialize` puts the values in by native Spark expressions.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

FieldKind = Literal["gap", "time", "number", "word", "text"]
FormatName = Literal["compact", "lines", "table", "markdown", "html", "xml", "json", "yaml", "published"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One thing that every event shows.

    Attributes:
        name: of a field of the data set, or `days`, `pause`, `weekday`, `hour`, `time`, `amount`, `currency`.
        title: for people.
        kind: `gap` since the event before, another `time` of the event, `number`, `word` (a category) or free `text`.
        short: prefix of its values in compact text.
    """

    name: str
    title: str
    kind: FieldKind
    short: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What stands around one value, and what stands in place of an absent one."""

    before: str = ""
    after: str = ""
    absent: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a history becomes text.

    Attributes:
        name: the format's name.
        version: counted up when its texts change; part of `serializer` and `input_hash`.
        head: text before the first event.
        cell: what stands around one value.
        opening, between, closing: before the first value of an event, between two, after the last.
        joiner: between two events; holds the line break.
        foot: text after the last event.
        escapes: what is replaced in values, and by what, in the order to apply.
        exact: amounts, numbers and times as they are; else rounded and relative.
    """

    name: FormatName
    version: int = 1
    head: Callable[[Sequence[Shown]], str] = lambda _: ""
    cell: Callable[[Shown], Cell]
    opening: str = ""
    between: str = ""
    closing: str = ""
    joiner: str = "\n"
    foot: str = ""
    escapes: tuple[tuple[str, str], ...] = ()
    exact: bool = True

    @property
    def serializer(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def line_by_line(self) -> bool:
        """Whether a text is one line that names the fields and then one line an event, and nothing else."""
        own = self.head(()).count("\n") == 1 and not self.foot
        return (
            own and self.joiner == "\n" and not any("\n" in one for one in (self.opening, self.between, self.closing))
        )


_MARKUP = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;"))
_QUOTED = (("\\", "\\\\"), ('"', '\\"'))
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _title(shown: Shown) -> str:
    return " ".join(shown.title.replace("|", " ").split())


def _titles(separator: str) -> Callable[[Sequence[Shown]], str]:
    return lambda fields: separator.join(_title(shown) for shown in fields) + "\n"


def _markdown_head(fields: Sequence[Shown]) -> str:
    titles = " | ".join(_title(shown).replace("\\", "\\\\") for shown in fields)
    return f"| {titles} |\n|{' --- |' * len(fields)}\n"


def _html_head(fields: Sequence[Shown]) -> str:
    cells = "".join(f"<th>{html.escape(_title(shown))}</th>" for shown in fields)
    return f"<table>\n<tr>{cells}</tr>\n"


def _json_cell(shown: Shown) -> Cell:
    quote = "" if shown.kind == "number" else '"'
    return Cell(before=f'"{shown.name}": {quote}', after=quote, absent=f'"{shown.name}": null')


def _yaml_cell(shown: Shown) -> Cell:
    quote = "" if shown.kind == "number" else '"'
    key = f'"{shown.name}"' if shown.name.lower() in _YAML_WORDS else shown.name
    return Cell(before=f"{key}: {quote}", after=quote, absent=f"{key}: null")


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        # Few tokens an event: see "The compact document" in docs/architecture.md.
        Format(
            name="compact",
            version=2,  # whole numbers up to twelve are exact
            head=lambda fields: "|".join(shown.name for shown in fields) + "\n",
            cell=lambda shown: Cell(before=shown.short, absent="-"),
            between="|",
            exact=False,
        ),
        # LLM4ES (arXiv 2508.05688): titles joined by `|`, values joined by a comma and a blank. Published lines cannot
        # be taken apart when a description holds a comma, ours can.
        Format(
            name="lines",
            head=_titles("|"),
            cell=lambda _: Cell(absent="-"),
            between=", ",
            escapes=((", ", "; "),),
        ),
        # Tabs between columns: no value can hold one.
        Format(name="table", head=_titles("\t"), cell=lambda _: Cell(), between="\t"),
        Format(
            name="markdown",
            head=_markdown_head,
            cell=lambda _: Cell(),
            opening="| ",
            between=" | ",
            closing=" |",
            escapes=(("\\", "\\\\"),),  # pipes are gone by then
        ),
        Format(
            name="html",
            head=_html_head,
            cell=lambda _: Cell(before="<td>", after="</td>", absent="<td></td>"),
            opening="<tr>",
            closing="</tr>",
            foot="\n</table>",
            escapes=_MARKUP,
        ),
        Format(
            name="xml",
            head=lambda _: "<history>\n",
            cell=lambda shown: Cell(before=f"<{shown.name}>", after=f"</{shown.name}>"),
            opening="<event>",
            closing="</event>",
            foot="\n</history>",
            escapes=_MARKUP,
        ),
        Format(
            name="json",
            head=lambda _: "[\n",
            cell=_json_cell,
            opening="{",
            between=", ",
            closing="}",
            joiner=",\n",
            foot="\n]",
            escapes=_QUOTED,
        ),
        # One flow mapping an event would be JSON again; block style, so an event spans as many lines as it has fields.
        Format(name="yaml", cell=_yaml_cell, opening="- ", between="\n  ", joiner="\n", escapes=_QUOTED),
        # As LLM4ES's public code wrote it, commas within descriptions included; its columns: `ledgerlm.text.published`.
        Format(name="published", head=_titles("|"), cell=lambda _: Cell(absent="-"), between=", "),
    )
}
