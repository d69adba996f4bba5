"""The page: sections built from the run's facts, rendered by one template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ledgerlm.evaluation.report import judgement, process
from ledgerlm.evaluation.report.blocks import Block, Card, Drawing, Section, figures, folded, table, texts
from ledgerlm.evaluation.report.blocks import Extract as Text
from ledgerlm.evaluation.report.figures import bars, calibration, heatmap, lines

Facts = Mapping[str, Any]


def render(facts: Facts) -> str:
    """The report as one self-contained HTML page."""
    sections = [
        *judgement.sections(facts),
        *_of_jobs(facts),
        *process.sections(facts),
        _lake(facts),
        _made_with(facts),
    ]
    commit = f" · commit {facts['commit']}" if facts["commit"] else ""
    subtitle = f"Pipeline {facts['pipeline']} · run {facts['run_id']} · {facts['finished_at']}{commit}"
    return page(facts["title"], subtitle, sections, _cards(facts))


def page(title: str, subtitle: str, sections: Sequence[Section], cards: Sequence[Card] = ()) -> str:
    """A page of sections: no script, no request, fonts of the reader's system."""
    environment = Environment(
        loader=PackageLoader("ledgerlm.evaluation.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    named = [replace(section, anchor=_anchor(section.title)) for section in sections if section.blocks]
    template = environment.get_template("report.html.j2")
    return template.render(title=title, subtitle=subtitle, sections=named, cards=cards)


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _cards(facts: Facts) -> list[Card]:
    tables = facts["tables"]
    cards = [Card(value=f"{tables[name]['rows']:,}", label=name) for name in ("events", "clients") if name in tables]
    parameters = facts["backbone"].get("parameters")
    if parameters:
        cards.append(Card(value=_short(parameters), label="parameters of the backbone"))
        cards.append(Card(value=_short(facts["backbone"].get("tokens_trained", 0)), label="tokens trained on"))
    seconds = sum(stage["seconds"] for stage in facts["stages"])
    cards.append(Card(value=f"{seconds / 60:.1f} min", label="work of all stages"))
    return [*cards, *judgement.cards(facts)]


def _short(number: float) -> str:
    for bound, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.1f} {unit}"
    return f"{number:,}"


def _of_jobs(facts: Facts) -> list[Section]:
    """Sections that jobs bring themselves: `report` in their facts, a list of sections of tables and figures.

    What the run found comes before how it went.
    """
    finds = {stage["name"] for stage in facts["stages"] if stage["finds"]}
    stages = sorted(facts["details"].items(), key=lambda item: item[0] not in finds)
    return [
        Section(title=part["title"], note=part.get("note", ""), blocks=[_block(block) for block in part["blocks"]])
        for _, details in stages
        for part in details.get("report", [])
    ]


def _block(block: Mapping[str, Any]) -> Block:
    """A block from JSON: `table`, `text`, or figures of `lines`, `calibration`, `bars` or `heatmap`."""
    heading, note, kind = block.get("heading", ""), block.get("note", ""), block["kind"]
    if kind == "table":
        return table(block["columns"], block["rows"], heading=heading, note=note, best=block.get("best", ()))
    if kind == "text":
        return texts([Text(text=block["text"])], heading=heading, note=note)
    drawings = [_drawing(one) for one in block["figures"]]
    return figures(drawings, heading=heading, note=note, small=block.get("small", False))


def _drawing(figure: Mapping[str, Any]) -> Drawing:
    draw = {
        "lines": lambda: lines(
            {name: (xy[0], xy[1]) for name, xy in figure["series"].items()},
            figure["x"],
            figure["y"],
            dots=True,
            logarithmic=figure.get("logarithmic", False),
        ),
        "calibration": lambda: calibration(figure["bins"], figure["said"], small=True),
        "bars": lambda: bars(figure["values"], figure["x"]),
        "heatmap": lambda: heatmap(figure["rows"], figure["columns"], figure["values"]),
    }
    return Drawing(svg=draw[figure["kind"]](), caption=figure.get("caption", ""))


def _lake(facts: Facts) -> Section:
    rows = [[name, entry["rows"], entry["version"], entry["path"]] for name, entry in facts["tables"].items()]
    return Section(
        title="Tables",
        note="Delta tables; any Delta reader opens them at these versions.",
        blocks=[table(["table", "rows", "version", "path"], rows)] if rows else [],
    )


def _made_with(facts: Facts) -> Section:
    versions: Sequence[list[str]] = [[name, version] for name, version in facts["versions"].items()]
    configuration = json.dumps(facts["configuration"], indent=2, ensure_ascii=False, default=str)
    return Section(
        title="Made with",
        blocks=[table(["package", "version"], versions), folded("Configuration as it was understood", configuration)],
    )
