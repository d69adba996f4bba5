"""The log of a training: one JSON line for each pause, kept beside the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

Line = dict[str, float]


def read_metrics(log: Path) -> list[Line]:
    """Whole lines of a `metrics.jsonl`; a line that is being written is left out."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def curve(log: Sequence[Line], *, points: int) -> dict[str, list[float]]:
    """Loss against what was read, for a plot.

    Args:
        log: lines of the training.
        points: most points of the training's loss; each is a mean of its neighbours.

    Returns:
        `tokens` and `loss` of the training, `held_out_tokens` and `held_out_loss`, of equal length in pairs.
    """
    held_out = [line for line in log if "held_out_loss" in line]
    step = max(1, -(-len(log) // points))
    groups = [log[start : start + step] for start in range(0, len(log), step)]
    return {
        "tokens": [group[-1]["seen"] for group in groups],
        "loss": [round(sum(line["loss"] for line in group) / len(group), 5) for group in groups],
        "held_out_tokens": [line["seen"] for line in held_out],
        "held_out_loss": [round(line["held_out_loss"], 5) for line in held_out],
    }


def speed(log: Sequence[Line]) -> float:
    """What was read per second over all ranks, median over the training; 0 when nothing was logged."""
    rates = [line["per_second"] for line in log]
    return round(median(rates[1:] or rates), 1) if rates else 0.0
