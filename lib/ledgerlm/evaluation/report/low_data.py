"""The section of the report on few labels, as JSON blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerlm.evaluation.leaderboard import LowDataEntry


def low_data_section(found: Sequence[LowDataEntry]) -> dict[str, Any]:
    """Curves and a table for the report."""
    tasks = list(dict.fromkeys(one.task for one in found))
    methods = list(dict.fromkeys(one.method for one in found))
    sizes = sorted({one.labelled for one in found})
    figures, tables = [], []
    for task in tasks:
        own = {(one.method, one.labelled): one for one in found if one.task == task}
        metric = next(iter(own.values())).metric
        series = {method: [sizes, [own[method, size].mean for size in sizes]] for method in methods}
        figures.append(
            {"kind": "lines", "series": series, "x": "labelled clients", "y": metric, "caption": task}
            | {"logarithmic": True}
        )
        cells = [
            [method, *(f"{own[method, size].mean:.3f} ± {own[method, size].std:.3f}" for size in sizes)]
            for method in methods
        ]
        tables.append(
            {"kind": "table", "heading": task, "columns": ["method", *map(str, sizes)], "rows": cells, "note": metric}
        )
    note = (
        "A linear head on few labelled clients; mean and deviation over draws, the same draws for all methods. A draw "
        "has at least one client of each class."
    )
    return {"title": "Few labels", "note": note, "blocks": [{"kind": "figures", "figures": figures}, *tables]}
