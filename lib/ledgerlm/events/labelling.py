"""Labels made from events by rules: the next merchant category (with the truth where it is known), the next goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from pydantic import Field, model_validator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.events.goals import GoalsConf, count_goals, goal_labels, task_name
from ledgerlm.events.next_category import NextCategoryConf, find_next_category
from ledgerlm.events.simulator import SimulatorConf
from ledgerlm.events.simulator.upcoming import knows_classes, true_next_category
from ledgerlm.events.spec_times import UTC_TIME, TimeSpec
from ledgerlm.lake.made import Made, Rows


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


def label_events(
    events: DataFrame,
    clients: DataFrame,
    conf: LabelConf,
    *,
    dictionaries: DataFrame | None = None,
    banks: Sequence[SimulatorConf] = (),
    time: TimeSpec = UTC_TIME,
    seed: int,
    keep: Keep,
) -> Made:
    """Makes the labels of each task.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        conf: the rules.
        dictionaries: the `dictionaries` table, if there is one.
        banks: where the events are simulated, how.
        time: the data set's, for the zone of cuts and the end of its data.
        seed: of all samples.
        keep: examples are counted and written.

    Returns:
        `labels` (client_id, task, as_of, label, label_text) and, for the next category of simulated banks, `bayes`
        (client_id, task, as_of, probabilities); rows in are candidates. Facts: `tasks`, of each its counts, and how
        many candidates were `left_out`.

    Raises:
        DataError: a rule that finds nothing.
    """
    labels: list[DataFrame] = []
    truths: list[DataFrame] = []
    tasks: dict[str, Mapping[str, Any]] = {}
    for task, rules in conf.next_category.items():
        found = find_next_category(events, clients, rules, dictionaries=dictionaries, seed=seed, keep=keep)
        tasks[task] = found.counts
        labels.append(_of_task(found.examples, task, "label", "label_text"))
        told = [bank for bank in banks if rules.field == "mcc" and knows_classes(found.classes, bank)]
        truth = [true_next_category(found.examples, events, found.classes, bank) for bank in told]
        truths += [_of_task(one, task, "probabilities") for one in truth]
    if conf.goals is not None:
        goals = settled(goal_labels(events, clients, conf.goals, dictionaries, time=time), keep)
        tasks |= count_goals(goals, clients)
        labels.append(goals)
    candidates, kept = (sum(one[name] for one in tasks.values()) for name in ("candidates", "kept"))
    return Made(
        rows_in=candidates,
        rows_out=kept,
        tables={name: _rows(frames, conf) for name, frames in (("labels", labels), ("bayes", truths)) if frames},
        facts={"tasks": tasks, "left_out": candidates - kept},
    )


def _rows(frames: Sequence[DataFrame], conf: LabelConf) -> Rows:
    return Rows(frame=reduce(DataFrame.unionByName, frames), slice={"task": conf.tasks})


def _of_task(rows: DataFrame, task: str, *values: str) -> DataFrame:
    return rows.select("client_id", F.lit(task).alias("task"), "as_of", *values)
