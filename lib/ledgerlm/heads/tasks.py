"""What is predicted: the tasks found in `labels`, their kind and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.events.spec import DataSetSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["binary", "multiclass", "regression"]

# More different labels than this, or labels between whole numbers, are a quantity and not a class.
_MOST_CLASSES = 50


class Task(Conf):
    """One thing that is predicted."""

    name: str = Field(description="name in `labels`")
    kind: Kind = Field(description="binary, multiclass or regression")
    classes: tuple[float, ...] = Field((), description="label of each class, ascending; none for a regression")
    class_names: tuple[str, ...] = Field((), description="text of each class")

    @property
    def outputs(self) -> int:
        """Numbers that a head gives for a client: one for each class, or the value of a regression."""
        return len(self.classes) or 1

    def encode(self, labels: Floats) -> Floats:
        """Class index of each label; the label itself for a regression.

        Raises:
            DataError: for a label that is no class of this task.
        """
        if self.kind == "regression":
            return labels
        classes = np.asarray(self.classes)
        places = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        strange = np.unique(labels[classes[places] != labels])
        if len(strange):
            raise DataError(f"task {self.name}: label {strange[0]:g} is none of its classes {list(self.classes)}")
        return places.astype(np.float64)


def counts_by_class(task: Task, y: Floats) -> Ints:
    """Rows of each class, from labels as `Task.encode` has them."""
    return np.bincount(y.astype(np.int64), minlength=task.outputs)


def refuse_one_class(task: Task, counts: Ints) -> None:
    """Raises where the rows that a head would learn from are all of one class: it would say so of everybody.

    Args:
        task: what is predicted; nothing is asked of a regression.
        counts: rows of each class.

    Raises:
        DataError: with the task's name.
    """
    if task.kind != "regression" and np.count_nonzero(counts) < 2:
        raise DataError(
            f"task {task.name}: all {int(counts.sum()):,} rows to learn from are of class "
            f"'{task.class_names[int(counts.argmax())]}'; a head needs at least two classes: look at the condition "
            "that chooses the rows, at the split and at the labels"
        )


def class_index(task: Task) -> Column:
    """Column `label` as `Task.encode` has it: the class index as double, or the value of a regression."""
    from pyspark.sql import functions as F

    if task.kind == "regression":
        return F.col("label")
    place = F.array_position(F.array(*(F.lit(label) for label in task.classes)), F.col("label"))
    return (place - 1).cast("double")


def declared_tasks(spec: DataSetSpec) -> dict[str, Task]:
    """The tasks that a data set spec declares, by name; their labels are class numbers from 0."""
    return {
        label.name: Task(
            name=label.name,
            kind=label.kind,
            classes=tuple(float(place) for place in range(len(label.class_names))),
            class_names=label.class_names,
        )
        for label in spec.labels
    }


def find_tasks(labels: DataFrame, names: Sequence[str] | None, declared: Mapping[str, Task]) -> list[Task]:
    """The tasks of `labels`, each with its kind and classes.

    What the spec does not declare is told by its labels: two different whole numbers make a binary task, up to fifty
    a multiclass one, anything else a regression.

    Args:
        labels: columns task, label, label_text.
        names: tasks wanted; None for all.
        declared: from `declared_tasks`.

    Returns:
        The tasks, by name.

    Raises:
        DataError: for a task that has no labels, or only one class.
    """
    from pyspark.sql import functions as F

    shape = labels.groupBy("task").agg(
        F.approx_count_distinct("label").alias("different"),
        F.bool_and(F.col("label") == F.floor("label")).alias("whole"),
    )
    shapes = {row["task"]: bool(row["whole"] and row["different"] <= _MOST_CLASSES) for row in shape.toLocalIterator()}
    for name in names or ():
        if name not in shapes:
            raise DataError(f"no labels of task '{name}': {nearest(name, shapes)}")
    open_tasks = [name for name in names or shapes if name not in declared]
    classes: dict[str, dict[float, str]] = {name: {} for name in open_tasks}
    texts = labels.where(F.col("task").isin([name for name in open_tasks if shapes[name]]))
    texts = texts.groupBy("task", "label").agg(F.min("label_text").alias("label_text")).orderBy("task", "label")
    for row in texts.toLocalIterator() if open_tasks else ():
        classes[row["task"]][row["label"]] = row["label_text"] or f"{row['label']:g}"
    found = {name: _task(name, texts) for name, texts in classes.items()}
    return [found.get(name) or declared[name] for name in sorted(names or shapes)]


def _task(name: str, classes: Mapping[float, str]) -> Task:
    if not classes:
        return Task(name=name, kind="regression")
    if len(classes) < 2:
        raise DataError(f"task {name}: every label is {next(iter(classes)):g}; a head needs at least two classes")
    kind: Kind = "binary" if len(classes) == 2 else "multiclass"
    return Task(name=name, kind=kind, classes=tuple(classes), class_names=tuple(classes.values()))
