"""The section of the report on the training of a head that reads events, as JSON blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def learning_section(stage: str, network: str, task: str, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Losses by epoch.

    Args:
        stage: its name.
        network: kind of network.
        task: what is predicted.
        curve: the fact `curve` of `ledgerlm.heads.recurrent.learning.learn`.
    """
    epochs = [line["epoch"] for line in curve]
    losses = {name: [epochs, [line[name] for line in curve]] for name in ("loss", "held_out_loss")}
    drawing = {"kind": "lines", "x": "epoch", "y": "cross-entropy", "series": losses}
    return {
        "title": f"Training of {stage}",
        "note": f"{network} for {task}; stopped by the loss of training clients that were held out.",
        "blocks": [{"kind": "figures", "figures": [drawing]}],
    }
