"""What an event counts as for a task, as its label stage has it; without Spark."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.events.goals import CutsConf, GoalRule, GoalsConf
from ledgerlm.events.labelling import LabelConf
from ledgerlm.events.next_category import NextCategoryConf
from ledgerlm.events.splits import SplitConf
from ledgerlm.events.symbols import symbols_of

TRAVEL = GoalRule(name="travel", fields={"mcc": ("Hotels",)})
GOALS = GoalsConf(task="goal", rules=(TRAVEL,), horizons=(30, 90), cuts=CutsConf(dates=(date(2024, 6, 1),)))
STAGES: dict[str, Conf] = {
    "split": SplitConf(),
    "label": LabelConf(next_category={"next": NextCategoryConf(field="mcc")}, goals=GOALS),
    "again": LabelConf(next_category={"next": NextCategoryConf(field="department")}),
}
CLASSES = {"label": {"food": ["Food"]}, "again": {"fuel": ["Fuel", "Coal"]}}


def facts(stage: str) -> Mapping[str, Any]:
    return {"tasks": {"next": {"classes": CLASSES[stage]}}}


def test_the_newest_stage_of_the_task_says_what_an_event_counts_as() -> None:
    assert symbols_of("next", STAGES, facts, None) == (GoalRule(name="fuel", fields={"department": ("Fuel", "Coal")}),)
    earlier = {"label": STAGES["label"]}
    assert symbols_of("next", earlier, facts, None) == (GoalRule(name="food", fields={"mcc": ("Food",)}),)
    assert symbols_of("goal_90d", STAGES, facts, None) == (TRAVEL,)


def test_a_task_that_no_stage_makes_is_told() -> None:
    with pytest.raises(ConfigError, match="no label stage makes task 'churn'"):
        symbols_of("churn", STAGES, facts, None)
