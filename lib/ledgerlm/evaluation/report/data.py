"""Sections of the report on what was made of the events, as JSON blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def labels_section(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Labels that rules made of events: of each class how many, and why others were left out.

    Args:
        tasks: fact `tasks` of `ledgerlm.events.labelling.label_events`.
    """
    classes = [
        [task, name, count["train"], count["test"]]
        for task, one in tasks.items()
        for name, count in one["labels"].items()
    ]
    dropped = [[task, reason, rows] for task, one in tasks.items() for reason, rows in one["dropped"].items()]
    tables = [
        {"heading": "Examples", "columns": ["task", "class", "training clients", "test clients"], "rows": classes},
        {"heading": "Left out", "columns": ["task", "why", "events"], "rows": dropped},
    ]
    return {
        "title": "Labels from events",
        "note": "An example's history ends strictly before the event that it predicts.",
        "blocks": [{"kind": "table", **one} for one in tables],
    }


def sentences_section(domains: Mapping[str, int], example: str) -> dict[str, Any]:
    """What is said of clients: sentences by domain, and one client's.

    Args:
        domains: domain -> sentences.
        example: a document of notes.
    """
    blocks = [
        {"kind": "table", "columns": ["domain", "sentences"], "rows": [list(row) for row in domains.items()]},
        {"kind": "text", "heading": "One client", "text": example},
    ]
    return {"title": "What is said of clients", "note": "Sentences before as_of, oldest first.", "blocks": blocks}
