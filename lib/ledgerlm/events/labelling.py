"""Labels made from events by rules: the settings of the label job, and what they name."""

from __future__ import annotations

from pydantic import Field, model_validator

from ledgerlm.config import Conf
from ledgerlm.events.goals import GoalsConf, task_name
from ledgerlm.events.next_category import NextCategoryConf


class LabelConf(Conf):
    """Rules of the label job; each task's labels replace its earlier ones."""

    next_category: dict[str, NextCategoryConf] = Field(
        default_factory=dict, description="task name -> which category of a set comes next"
    )

    goals: GoalsConf | None = Field(None, description="what a client does first after a cut: tasks TASK_30d ...")

    @model_validator(mode="after")
    def _something(self) -> LabelConf:
        if not self.next_category and self.goals is None:
            raise ValueError("no rule: give next_category, goals, or both")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose labels are replaced."""
        goals = [task_name(self.goals, days) for days in self.goals.horizons] if self.goals else []
        return (*self.next_category, *goals)
