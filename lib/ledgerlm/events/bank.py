"""The tables of a bank, whoever makes them: read from files, or simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.lake.made import Rows
from ledgerlm.lake.slices import WHOLE, Slice

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class BankTables:
    """The tables of a bank; columns as in `ledgerlm.lake.schemas`.

    Attributes:
        events: every event.
        dictionaries: what codes mean; None where no field has a dictionary.
        clients: who has events, with attributes and split.
        labels: of the tasks that the data set declares; None where it declares none.
        bayes: the probabilities that simulated labels were drawn from.
    """

    events: DataFrame
    clients: DataFrame
    dictionaries: DataFrame | None = None
    labels: DataFrame | None = None
    bayes: DataFrame | None = None

    def tables(self, spec: DataSetSpec) -> dict[str, Rows]:
        """The tables in the order in which they are to be written.

        Events are last: whoever sees new events finds the clients, labels and dictionaries that belong to them.
        """
        frames = {
            "dictionaries": self.dictionaries,
            "clients": self.clients,
            "labels": self.labels,
            "bayes": self.bayes,
            "events": self.events,
        }
        slices = bank_slices(spec, truth=self.bayes is not None)
        return {name: Rows(frame=frame, slice=slices[name]) for name, frame in frames.items() if frame is not None}


def bank_slices(spec: DataSetSpec, *, truth: bool = False) -> dict[str, Slice]:
    """What is replaced of each table when a bank is written.

    Of labels, those of the spec's tasks: other stages own the tasks that they make. A spec without tasks touches none.

    Args:
        spec: the data set.
        truth: whether the probabilities behind the labels are known.
    """
    tasks: Slice = {"task": tuple(task.name for task in spec.labels)}
    labels = {"labels": tasks, **({"bayes": tasks} if truth else {})} if spec.labels else {}
    return {"dictionaries": WHOLE, "clients": WHOLE, **labels, "events": WHOLE}


def count_labels(labels: DataFrame, spec: DataSetSpec) -> dict[str, dict[str, int]]:
    """Labels by task and class; of a regression how many `values` there are.

    Args:
        labels: rows of the spec's tasks.
        spec: the data set; its tasks are in the result even where they have no label.
    """
    named = [task.name for task in spec.labels if task.class_names]
    name = F.when(F.col("task").isin(*named), F.col("label_text")).otherwise("values")
    rows = labels.groupBy("task", name.alias("class")).count().collect()
    found: dict[str, dict[str, int]] = {task.name: {} for task in spec.labels}
    for row in sorted(rows, key=lambda row: (row["task"], row["class"])):
        found[row["task"]][row["class"]] = row["count"]
    return found
