"""What an event counts as, where events are counted: the classes and categories of a task, or its goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.events.labelling import LabelConf
from ledgerlm.events.next_category import symbol_rules

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.goals import GoalRule


def symbols_of(
    task: str,
    stages: Mapping[str, Conf],
    facts: Callable[[str], Mapping[str, Any]],
    dictionaries: DataFrame | None,
) -> tuple[GoalRule, ...]:
    """What an event counts as for a task: as the newest label stage that makes the task has it.

    Args:
        task: name in `labels`.
        stages: settings of stages by their name, in the stages' order; others than label stages are passed over.
        facts: gives the facts of a finished stage by its name; asked for the classes of a next category.
        dictionaries: the `dictionaries` table, if there is one.

    Raises:
        ConfigError: no stage makes the task.
    """
    makers = [(name, one) for name, one in stages.items() if isinstance(one, LabelConf) and task in one.tasks]
    if not makers:
        raise ConfigError(f"symbols: no label stage makes task '{task}', so give what an event counts as")
    stage, rules = makers[-1]
    if task in rules.next_category:
        classes = facts(stage)["tasks"][task]["classes"]
        return symbol_rules(classes, rules.next_category[task].field, dictionaries)
    return () if rules.goals is None else rules.goals.rules
