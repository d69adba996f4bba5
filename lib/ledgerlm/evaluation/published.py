"""Figures that others reached on a data set: reference rows beside ours, never mixed with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ledgerlm.config import Conf, load_yaml, parse, shipped


class Figure(Conf):
    """One method's figure."""

    method: str = Field(description="name as published")
    mean: float = Field(description="the figure")
    std: float | None = Field(None, description="deviation over folds, where one was given")


class PublishedTask(Conf):
    """Figures of one task."""

    metric: str = Field(description="metric by our name, whatever the source calls it")
    rows: tuple[Figure, ...] = Field(min_length=1, description="one a method")


class Published(Conf):
    """`conf/published/NAME.yaml`: what was reached elsewhere on the data set NAME."""

    source: str = Field(description="who says so")
    origin: Literal["published", "measured"] = Field(
        "published", description="measured: by this project with another library, on the same folds"
    )
    split: Literal["test", "cross_validation"] = Field(description="which of our splits it compares with")
    tasks: dict[str, PublishedTask] = Field(description="task -> figures")
    caveats: tuple[str, ...] = Field((), description="what to know before comparing")

    def rows(self) -> list[dict[str, Any]]:
        """Rows with task, method, metric, split, mean, std, source and origin."""
        return [
            {
                "task": name,
                "method": figure.method,
                "metric": task.metric,
                "split": self.split,
                "mean": figure.mean,
                "std": figure.std,
                "source": self.source,
                "origin": self.origin,
            }
            for name, task in self.tasks.items()
            for figure in task.rows
        ]


def published(data_set: str) -> Published | None:
    """The figures for a data set, None where none are known."""
    file = shipped(f"published/{data_set}.yaml")
    return parse(Published, load_yaml(file), source=str(file)) if file.exists() else None
