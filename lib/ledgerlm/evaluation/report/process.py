"""Sections on how the results came about: stages, a history in its forms, training, embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledgerlm.evaluation.report.blocks import Block, Drawing, Extract, Section, figures, table, texts
from ledgerlm.evaluation.report.figures import lines

Facts = Mapping[str, Any]


def sections(facts: Facts) -> list[Section]:
    """Sections in the order of the work; those that a pipeline has no stage for are empty."""
    return [_stages(facts), _history(facts), _training(facts), _embedding(facts), _quarantine(facts)]


def of_job(facts: Facts, job: str) -> list[Mapping[str, Any]]:
    """Facts of the stages of a job."""
    return [facts["details"][stage["name"]] for stage in facts["stages"] if stage["job"] == job]


def _stages(facts: Facts) -> Section:
    rows = [
        [
            stage["name"],
            stage["engine"],
            stage["rows_in"],
            stage["rows_out"],
            stage["quarantined"],
            stage["duplicates"],
            f"{stage['seconds']:.1f}",
            "finished before" if stage["skipped"] else "run",
        ]
        for stage in facts["stages"]
    ]
    columns = ["stage", "engine", "rows in", "rows out", "quarantined", "duplicates", "seconds", ""]
    return Section(title="Stages", note="What each stage read, wrote and set aside.", blocks=[table(columns, rows)])


def _history(facts: Facts) -> Section:
    shown: list[Extract] = []
    for stage in of_job(facts, "serialize"):
        if example := stage.get("example"):
            shown.append(Extract(text=_text(example), caption=f"document ({stage.get('format', 'text')})"))
    for stage in of_job(facts, "enrich"):
        example = stage.get("example") or {}
        for rewrite in example.get("rewrites", [])[:2]:
            shown.append(Extract(text=rewrite["text"], caption=f"enriched document ({rewrite['format']})"))
    note = "One client's history as the backbone reads it, and rewritten by the enrichment engine. "
    engines = [f"{stage['engine']} kept {stage['kept_share']:.1%} of its rewrites" for stage in of_job(facts, "enrich")]
    blocks = [texts(shown)] if shown else []
    return Section(title="A history as text", note=note + "; ".join(engines), blocks=blocks)


def _text(example: Any) -> str:
    return example["text"] if isinstance(example, Mapping) else str(example)


def _training(facts: Facts) -> Section:
    blocks: list[Block] = []
    for stage in of_job(facts, "finetune"):
        curve = stage.get("curve", {})
        series = {}
        if curve.get("tokens"):
            series["training"] = (curve["tokens"], curve["loss"])
        if curve.get("held_out_tokens"):
            series["held out"] = (curve["held_out_tokens"], curve["held_out_loss"])
        if series:
            drawing = Drawing(svg=lines(series, "tokens seen", "loss, nats a token"), caption="Next-token loss")
            blocks.append(figures([drawing]))
        plain = {key: value for key, value in stage.items() if isinstance(value, int | float | str)}
        blocks.append(table(["fact", "value"], [[_words(key), _value(value)] for key, value in plain.items()]))
    return Section(title="Training the backbone", blocks=blocks)


def _embedding(facts: Facts) -> Section:
    rows = []
    for stage in of_job(facts, "embed"):
        plain = {key: value for key, value in stage.items() if isinstance(value, int | float | str)}
        rows += [[_words(key), _value(value)] for key, value in plain.items()]
        rows += [[f"numbers in part {part}", str(width)] for part, width in stage.get("widths", {}).items()]
    return Section(title="Embeddings", blocks=[table(["fact", "value"], rows)] if rows else [])


def _quarantine(facts: Facts) -> Section:
    rows = [
        [name, reason, count]
        for name, stage in facts["details"].items()
        for reason, count in {**stage.get("quarantined", {}), **stage.get("refused", {})}.items()
    ]
    note = "Rows set aside with their reason; they lie in the quarantine table with what was read."
    return Section(title="Quarantine", note=note, blocks=[table(["stage", "reason", "rows"], rows)] if rows else [])


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
