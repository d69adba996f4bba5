"""Sections of the report on what was chosen for clients: offers, campaign lists, products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledgerlm.applications.backtest import METHODS
from ledgerlm.applications.pricing import ChosenOffers

_BACKTEST = ["ranked by", "contacts", "goal came", "share", "earned", "for each client", "gain of the scores over it"]


def offers_section(stage: str, title: str, heading: str, chosen: ChosenOffers) -> dict[str, Any]:
    """What was chosen, examples with their reasons, what forbade the rest, and what the choice would have earned.

    Args:
        stage: who chose.
        title: of the section.
        heading: of the catalogue's table.
        chosen: from `recommend`, `target` or `cross_sell`.
    """
    columns = list(chosen.totals[0]) if chosen.totals else []
    blocks = [
        _table(heading, columns, [list(row.values()) for row in chosen.totals]),
        _table("Examples", ["client", "expected_value", "reason"], [list(row) for row in chosen.examples]),
        _table("Not chosen", ["why", "candidates"], [[why, count] for why, count in chosen.blocked.items()]),
        backtest_block(chosen.tried, "Backtest"),
    ]
    note = f"Table {chosen.table}: {chosen.count:,} rows, each with its reason."
    return {"title": f"{title} ({stage})", "note": note, "blocks": blocks}


def backtest_block(found: Mapping[str, Any], heading: str) -> dict[str, Any]:
    """The backtest as a table of the report.

    Args:
        found: from `applications.backtest.backtest`.
        heading: of the table.
    """
    rows = [
        [
            method,
            one["contacts"],
            one["hits"],
            None if one["hit_rate"] is None else round(one["hit_rate"], 4),
            round(one["value"], 2),
            round(one["value_per_client"], 3),
            "" if "gain" not in one else f"{one['gain']:+.3f} [{one['gain_low']:+.3f}, {one['gain_high']:+.3f}]",
        ]
        for method, one in ((method, found[method]) for method in METHODS if method in found)
    ]
    note = (
        f"{found['clients']:,} clients whose outcome is known and that no head has seen. The rivals may make as many "
        "contacts; the gain is for each client, with its 95 % interval."
    )
    return _table(heading, _BACKTEST, rows) | {"note": note}


def _table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"kind": "table", "heading": heading, "columns": list(columns), "rows": list(rows)}
