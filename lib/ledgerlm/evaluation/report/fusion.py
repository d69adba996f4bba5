"""The section of the report on ALIMN's training, as JSON blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DRAWN = 6  # curves in one figure
_COLUMNS = ("network", "task", "parameters", "best epoch", "held-out loss", "seconds", "weights of the branches")


def training_section(stage: str, heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Networks of one stage with their curves.

    Args:
        stage: its name.
        heads: facts of the heads, from `ledgerlm.heads.alimn.head.FusedHead.described`.
    """
    rows = []
    for head in heads:
        alpha = " ".join(f"{weight:.2f}" for weight in head.get("alpha", []))
        known = [head.get(key) for key in ("parameters", "best_epoch", "held_out_loss", "seconds")]
        rows.append([head["name"], head["task"], *known, alpha])
    trained = [head for head in heads if "curve" in head][:_DRAWN]
    series = {
        head["name"]: (
            [line["epoch"] for line in head["curve"]],
            [line["held_out_loss"] for line in head["curve"]],
        )
        for head in trained
    }
    figure = {"kind": "lines", "series": series, "x": "epoch", "y": "held-out cross-entropy", "caption": "Training"}
    return {
        "title": f"Fusion networks: {stage}",
        "note": "Trained one after the other in one Ray Train run; the best epoch of each is kept.",
        "blocks": [
            {"kind": "table", "columns": list(_COLUMNS), "rows": rows},
            {"kind": "figures", "figures": [figure]},
        ],
    }
