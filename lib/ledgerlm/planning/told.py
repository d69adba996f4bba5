"""A plan for people and programs: text for a terminal, Markdown, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ledgerlm.planning.conf import HardwareConf
from ledgerlm.planning.estimate import QUANTITIES, Plan, StageCost, Walk, duration
from ledgerlm.planning.figures import Figure
from ledgerlm.planning.inputs import Inputs

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headings, and rows of as many texts."""
_SUMS = ("tokens", "accelerator_hours", "executor_hours", "stored_bytes", "wall_seconds", "cost")
_WORDS = {
    "tokens": "tokens",
    "flops": "FLOPs",
    "accelerator_hours": "accelerator-hours",
    "executor_hours": "executor-hours",
    "stored_bytes": "stored",
    "shuffled_bytes": "shuffled",
    "wall_seconds": "wall time",
    "cost": "cost",
}


def as_json(plans: Sequence[Plan], inputs: Inputs, hardware: HardwareConf) -> dict[str, Any]:
    """Everything as JSON values; each figure as its value and its formula."""
    return {
        "inputs": [asdict(one) for one in inputs.told],
        "hardware": hardware.model_dump(mode="json"),
        "plans": [
            {
                "clients": plan.clients,
                "backbone": plan.backbone,
                "first": _walk(plan.first),
                "night": _walk(plan.night),
                "stored_month": _figure(plan.stored_month),
                "notes": list(plan.notes),
            }
            for plan in plans
        ],
    }


def as_markdown(plans: Sequence[Plan], known: Inputs, hardware: HardwareConf) -> str:
    """A page of it: all cases, and where there is one alone its stages with their formulas."""
    parts = [markdown(overview(plans, hardware))]
    for word, walk in _details(plans):
        parts += [f"{word}: {walk.bottleneck.text}.", markdown(stages(walk, hardware))]
        parts.append("\n".join(f"* {line}" for line in formulas(walk)))
    return "\n\n".join([*parts, *_notes(plans), markdown(inputs(known))])


def as_text(plans: Sequence[Plan], known: Inputs, hardware: HardwareConf) -> str:
    """The same for a terminal."""
    lines = aligned(overview(plans, hardware))
    for word, walk in _details(plans):
        lines += ["", f"{word}: {walk.bottleneck.text}", *aligned(stages(walk, hardware))]
        lines += [f"  {line}" for line in formulas(walk)]
    return "\n".join([*lines, "", *_notes(plans), *aligned(inputs(known))])


def _details(plans: Sequence[Plan]) -> list[tuple[str, Walk]]:
    """What is told stage by stage: of one case alone, or nobody would read it."""
    return [("First run", plans[0].first), ("A night", plans[0].night)] if len(plans) == 1 else []


def _notes(plans: Sequence[Plan]) -> list[str]:
    return list(dict.fromkeys(note for plan in plans for note in plan.notes))


def _walk(walk: Walk) -> dict[str, Any]:
    return {
        "stages": [
            {"stage": one.stage, **{name: _figure(getattr(one, name)) for name in QUANTITIES}} for one in walk.stages
        ],
        "total": {name: walk.sum_of(name) for name in QUANTITIES},
        "bottleneck": asdict(walk.bottleneck),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "formula": figure.formula}


def overview(plans: Sequence[Plan], hardware: HardwareConf) -> Table:
    """A row for the first run and one for a night of each case."""
    headings = ["clients", "backbone", "run", *(_heading(name, hardware) for name in _SUMS), "bottleneck"]
    rows = [
        [
            people(plan.clients),
            plan.backbone,
            word,
            *(_value(name, walk.sum_of(name)) for name in _SUMS),
            walk.bottleneck.word,
        ]
        for plan in plans
        for word, walk in (("first", plan.first), ("night", plan.night))
    ]
    return headings, rows


def stages(walk: Walk, hardware: HardwareConf) -> Table:
    """A row for each stage, and their sum."""
    rows = [[one.stage, *(_value(name, getattr(one, name).value) for name in QUANTITIES)] for one in walk.stages]
    rows.append(["together", *(_value(name, walk.sum_of(name)) for name in QUANTITIES)])
    return ["stage", *(_heading(name, hardware) for name in QUANTITIES)], rows


def formulas(walk: Walk) -> list[str]:
    """Each number of each stage that is not nothing, with its formula."""
    return [line for one in walk.stages for line in _formulas(one)]


def _formulas(one: StageCost) -> list[str]:
    figures = ((name, getattr(one, name)) for name in QUANTITIES)
    return [
        f"{one.stage}, {_WORDS[name]}: {_value(name, figure.value)} = {figure.formula}"
        for name, figure in figures
        if figure.value
    ]


def inputs(known: Inputs) -> Table:
    """What a plan is computed from, and where each number comes from."""
    rows = [[one.key, _number(one.value), one.origin, one.how] for one in known.told]
    return ["number", "value", "from", ""], rows


def markdown(table: Table) -> str:
    """A table in Markdown."""
    headings, rows = table
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(table: Table) -> list[str]:
    """A table as lines of one width a column, for a terminal."""
    headings, rows = table
    widths = [max(len(line[place]) for line in (headings, *rows)) for place in range(len(headings))]
    lines = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in (headings, *rows)]
    return ["  ".join(line).rstrip() for line in lines]


def people(value: float) -> str:
    """A count for people: `800`, `12.5 k`, `10 M`, `3.2 B`, `1.1 T`; of FLOPs `4.2 P` and `1.3 E`."""
    for step, sign in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if value >= step:
            return f"{value / (1e3 if sign == ' k' else step):.3g}{sign}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes for people: `12 MB`, `3.4 TB`."""
    for step, sign in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= step:
            return f"{value / step:.3g} {sign}"
    return f"{value:.0f} B"


def _heading(name: str, hardware: HardwareConf) -> str:
    return f"{_WORDS[name]}, {hardware.currency}" if name == "cost" and hardware.currency else _WORDS[name]


def _value(name: str, value: float) -> str:
    if not value:
        return "–"
    if name.endswith("bytes"):
        return size(value)
    if name == "wall_seconds":
        return duration(value)
    return people(value) if name in ("tokens", "flops") else f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else people(value)
