"""The report's section on what can be reached: how near its fits are to their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def reach_section(fits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One table: log loss against the true probabilities, by bank and task.

    Args:
        fits: the fact of the reach job.
    """
    counts = [one["clients"] for one in fits[0]["fits"]]
    rows = [
        [one["bank"], one["task"], *(round(value, 4) for value in (one["prior"], *_losses(one), one["bayes"]))]
        for one in fits
    ]
    return {
        "title": "What can be reached",
        "note": "The row reachable says the true probability as far as a client's events and attributes tell it: a fit "
        "on other simulated clients to their true probabilities. Log loss of clients that nothing was fitted on, "
        "expected over labels drawn with the truth. What the last doubling of the clients still gained is about what "
        "more clients would; a fit on better statistics may gain more.",
        "blocks": [
            {
                "kind": "table",
                "columns": ["bank", "task", "class shares", *(f"fit on {count:,}" for count in counts), "bayes"],
                "rows": rows,
            }
        ],
    }


def _losses(fit: Mapping[str, Any]) -> list[float]:
    return [one["log_loss"] for one in fit["fits"]]
