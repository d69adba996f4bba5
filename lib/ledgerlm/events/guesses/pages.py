"""Writes a draft as YAML with its reasons beside it, and the pipeline that runs it."""

from __future__ import annotations

import datetime as dt
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ledgerlm.engines.extras import install, lacking
from ledgerlm.events.guesses.columns import Guess
from ledgerlm.events.guesses.draft import Draft
from ledgerlm.events.guesses.roles import CHOICE

_WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_./][\w./*+-]*(?: [\w./*+-]+)*")
_MARKS = {"sure": "", "unsure": "UNSURE: ", "open": "CHOOSE: "}


def spec_page(draft: Draft, title: str) -> str:
    """The data set spec.

    Args:
        draft: what is said.
        title: what the files are, for the first line.
    """
    notes: dict[str, list[str]] = {}
    for guess in draft.guesses:
        if guess.key == "labels":
            continue  # the end of the page tells it
        place = _place(guess.key, draft)
        called = "" if place == guess.key else f"{guess.key.rpartition('.')[2]}: "
        notes.setdefault(place, []).append(called + comment_of(guess))
    beside = {f"fields.{place}": draft.notes[one["name"]] for place, one in enumerate(draft.content["fields"])}
    page = [
        f"# {_line(title)}: drafted by `ledgerlm init`.",
        "# A line with UNSURE is a guess that the data do not decide; ??? is a choice without which nothing runs.",
        "# What every key means: docs/spec.md of ledgerlm, or its page on the keys of a data set spec.",
        *_block(draft.content, notes, beside, (), 0),
    ]
    if draft.left:
        page += [
            "# Columns that are not used:",
            *(f"#   {_line(name)} {_line(why)}" for name, why in draft.left.items()),
        ]
    if draft.passed:
        page += [
            "# Files that are not used:",
            *(f"#   {_line(name)}: {_line(why)}" for name, why in draft.passed.items()),
        ]
    if not draft.tasks:
        page += _label_to_take(draft.first)
    return "\n".join(page) + "\n"


def comment_of(guess: Guess) -> str:
    """What a page says of a guess; what may name somebody stays out of it."""
    chosen = f"{_line(guess.value)}: " if guess.sure == "open" else ""
    return f"{_MARKS[guess.sure]}{chosen}{_line(guess.why)}"


def pipeline_page(draft: Draft, name: str, *, file: str, embed: bool) -> str:
    """The pipeline.

    Args:
        draft: what the spec says.
        name: of the pipeline.
        file: how its user will call it.
        embed: whether a language model is trained and read, too.
    """
    share = draft.bearable
    ingest = f"{{max_quarantined_share: {share:g}}}" if share else "{}"
    lines = [
        f"# ledgerlm run {file}",
        "# From the files of spec.yaml to texts" + (", aggregates and scores." if draft.tasks else " and aggregates."),
        f"pipeline: {name}",
        "data: spec.yaml",
        f"out: build/{name}   # tables, models and report, below the folder where it is run",
        "stages:",
        f"  ingest: {ingest}" + (f"   # {draft.bad:.0%} of the rows lack a client, a time or a label" if share else ""),
        "  serialize: {format: compact}",
        "  aggregate: {}",
        *_model_stages(embed=embed),
    ]
    if draft.tasks:
        lines += _head_stages(draft, embed=embed)
    else:
        lines += [
            "  # With a label in spec.yaml (its last lines hold one to take):",
            *(f"  # {line.removeprefix('  ')}" for line in _head_stages(draft, embed=embed)),
        ]
    return "\n".join(lines) + "\n"


def _model_stages(*, embed: bool) -> list[str]:
    stages = [
        "finetune: {max_tokens: 2_400_000}   # a small language model, from scratch; some minutes on a laptop",
        "embed: {definition: {parts: [mean, std, surprise], dtype: fp32}}",
    ]
    if embed:
        return [f"  {stage}" for stage in stages]
    needs = f"; {install(['train'])}" if lacking(["train"]) else ""
    return [
        f"  # What a language model reads in the texts (or: ledgerlm init --embed{needs}):",
        *(f"  # {one}" for one in stages),
    ]


def _head_stages(draft: Draft, *, embed: bool) -> list[str]:
    """Heads and their figures; without Ray the heads are MLlib's, and figures are left out."""
    vectors = "{table: embeddings, parts: [mean, std, surprise]}"
    both = [f"      - {vectors}", "      - {table: features}"] if embed else ["      - {table: features}"]
    named = "llm4es+agg" if embed else "agg"
    fit = [f"  fit:\n    representation: {named}", "    sources:", *both]
    ray = not lacking(["ray"])
    if not ray:
        classes = [task for task, kind in draft.tasks.items() if kind != "regression"]
        fit += ["    kind: logistic_regression   # LightGBM needs Ray: " + install(["ray"])]
        fit += [f"    tasks: [{', '.join(classes)}]"] if len(classes) < len(draft.tasks) else []
    judged = [
        "  evaluate:",
        "    representations:",
        "      agg: [{table: features}]",
        *([f"      llm4es: [{vectors}]", "      llm4es+agg:", *(f"  {one}" for one in both)] if embed else []),
    ]
    judged = judged if ray else [f"  # Figures of every method on the same folds: {install(['ray'])}",
                                 *(f"  # {one.removeprefix('  ')}" for one in judged)]  # fmt: skip
    return [line for part in [*fit, "  score: {}", *judged] for line in part.split("\n")]


def _label_to_take(first: dt.date | None) -> list[str]:
    """A label that is computed from events, as a comment."""
    day = (first or dt.date(2024, 1, 1)).replace(day=1) + dt.timedelta(days=40)
    return [
        "# No label was found. This one asks who comes again within 30 days of the first of a month; it needs no file:",
        "# labels:",
        "#   - name: active",
        "#     kind: binary",
        "#     future: {value: events, days: 30}",
        "#     thresholds: [1]",
        f"#     as_of: {{every: month, from: {day.replace(day=1)}}}   # the first month with some history before it",
    ]


def _place(key: str, draft: Draft) -> str:
    """The key at which a comment is written: the nearest above that the spec has."""
    if key.startswith("fields."):
        name = key.removeprefix("fields.")
        fields = draft.content["fields"]
        return next(
            (f"fields.{at}" for at, one in enumerate(fields) if one.get("column", one["name"]) == name), "fields"
        )
    content: Any = draft.content
    kept: list[str] = []
    for part in key.split("."):
        content = content[int(part)] if isinstance(content, list) else content.get(part, ...)
        if content is ...:
            break
        kept.append(part)
        if not isinstance(content, Mapping | list):
            break
    return ".".join(kept) or "fields"


def _block(
    content: Mapping[str, Any],
    notes: Mapping[str, Sequence[str]],
    beside: Mapping[str, str],
    path: tuple[str, ...],
    indent: int,
) -> list[str]:
    """The lines of a mapping."""
    lines: list[str] = []
    for key, value in content.items():
        at = (*path, str(key))
        lines += _comments(notes.get(".".join(at), ()), indent)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{' ' * indent}{_word(key)}:")
            for place, one in enumerate(value):
                lines += _item(one, notes, beside, (*at, str(place)), indent + 2)
        elif isinstance(value, Mapping) and (len(_flow(value)) > 80 or _noted(notes, at)):
            lines += [f"{' ' * indent}{_word(key)}:", *_block(value, notes, beside, at, indent + 2)]
        else:
            # Inside of braces YAML wants it quoted.
            lines.append(f"{' ' * indent}{_word(key)}: {CHOICE if value == CHOICE else _flow(value)}")
    return lines


def _item(
    one: Mapping[str, Any],
    notes: Mapping[str, Sequence[str]],
    beside: Mapping[str, str],
    path: tuple[str, ...],
    indent: int,
) -> list[str]:
    """The lines of a mapping in a list."""
    told = _comments(notes.get(".".join(path), ()), indent)
    flow = f"{' ' * indent}- {_flow(one)}"
    if len(flow) <= _WIDTH and not _noted(notes, path):
        note = beside.get(".".join(path), "")
        short = f"{flow}   # {_line(note)}"
        return [*told, short if note and len(short) <= _WIDTH else flow]
    inner = _block(one, notes, beside, path, indent + 2)
    first = next(place for place, line in enumerate(inner) if not line.lstrip().startswith("#"))
    above = [f"{' ' * indent}{line.lstrip()}" for line in inner[:first]]
    return [*told, *above, f"{' ' * indent}- {inner[first].lstrip()}", *inner[first + 1 :]]


def _noted(notes: Mapping[str, Sequence[str]], path: Sequence[str]) -> bool:
    """Whether something below a key has a comment."""
    return any(key.startswith(".".join(path) + ".") for key in notes)


def _comments(texts: Sequence[str], indent: int) -> list[str]:
    lines: list[str] = []
    for text in texts:
        first, *rest = textwrap.wrap(text, _WIDTH - indent - 4, break_on_hyphens=False, break_long_words=False) or [""]
        lines += [f"{' ' * indent}# {first}", *(f"{' ' * indent}#   {line}" for line in rest)]
    return lines


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_word(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | dt.date):
        return str(value)
    return _word(str(value))


def _word(text: str) -> str:
    """A text as YAML reads it back: plain where nothing else could be meant."""
    text = str(text).replace("${", "\\${")  # OmegaConf takes it for a reference
    named = _PLAIN.fullmatch(text) and any(sign.isalnum() for sign in text)
    if named and yaml.safe_load(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)


def _line(text: str) -> str:
    """A text on one line, without signs that are not shown."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
