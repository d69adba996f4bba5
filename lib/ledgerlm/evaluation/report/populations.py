"""The section of the report on adapted scores: how often each class comes up in each population, as JSON blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerlm.heads.tasks import Task


def population_section(stage: str, task: Task, populations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares and ratios of each population.

    Args:
        stage: names the section where a pipeline adapts more than once.
        task: what is predicted.
        populations: the fact `populations` of `ledgerlm.heads.populations.adapt`.
    """
    rows = [
        [
            one["population"],
            one["rows"],
            *(f"{one['shares'][k]:.3f} × {one['ratios'][k]:.2f}" for k in task.class_names),
        ]
        for one in populations
    ]
    return {
        "title": f"{'' if stage == 'adapt' else f'{stage}: '}{task.name} by population",
        "note": "Share of each class among the events of a population before as_of, and by how much its probability is "
        "multiplied, in the mean over rows.",
        "blocks": [{"kind": "table", "columns": ["population", "rows", *task.class_names], "rows": rows}],
    }
