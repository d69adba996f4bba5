"""The section of the report on a tuned language model: what each number of events is worth, and a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerlm.instruct.model import Tuning


def instruction_section(stage: str, tuning: Tuning) -> dict[str, Any]:
    """Figures at each length, their curves where there are several, and a prompt with its answer.

    Args:
        stage: names the section.
        tuning: from `ledgerlm.instruct.tuning.instruct`.
    """
    judged, told, names = tuning.judged, tuning.chosen.events, list(tuning.chosen.figures)
    table = {
        "kind": "table",
        "heading": "Events told",
        "columns": ["events", "examples", *names, "log loss before calibration"],
        "rows": [[one.events, one.rows, *one.figures.values(), one.log_loss_before] for one in judged],
    }
    events = [one.events for one in judged]
    drawn = [
        {
            "kind": "lines",
            "series": {name: [events, [one.figures[name] for one in judged]]},
            "x": "events told",
            "y": name.replace("_", " "),
        }
        for name in ("log_loss", "f1_weighted")
    ]
    text = {"kind": "text", "heading": "A prompt and its answer", "text": tuning.example}
    tuned = f"Tuned on {tuning.trained['examples']:,} examples. " if tuning.trained else "The untuned model. "
    return {
        "title": f"Instruction: {stage}",
        "note": f"{tuned}Held-out training clients; {told} events have the lowest log loss and are told.",
        "blocks": [table, *([{"kind": "figures", "figures": drawn}] if len(judged) > 1 else []), text],
    }
