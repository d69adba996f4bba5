"""Labels of the next merchant category: which category, of a configured set, the client's next purchase falls in.

The task of Ergul, Balcisoy and Bozkaya ("Instruction-Based Fine-tuning of Open-Source LLMs for Predicting Customer
Purchase Behaviors"). An example is an event whose category is in the set; its `as_of` is the instant
after the newest event before it, so events of the same instant (one basket) are in nobody's history. Categories
are told by their descriptions, so that banks with different codes agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from pydantic import Field, model_validator
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import DataError
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.goals import GoalRule

MOST_CLASSES = 50  # as many as `ledgerlm.heads.tasks` takes for classes
Classes = Mapping[str, Sequence[str]]


class NextCategoryConf(Conf):
    """Rules that turn events into labels of the next category."""

    field: str = Field("mcc", description="categorical field of the events that holds the category's code")
    categories: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="class name -> descriptions of its categories (codes, where the field has no dictionary); left "
        "out, each of the `most` most frequent categories of training clients is a class",
    )
    most: int = Field(20, ge=2, le=MOST_CLASSES, description="classes when `categories` is left out")
    min_history: int = Field(9, ge=1, description="fewest events strictly before the target")
    attributes: tuple[str, ...] = Field((), description="client attributes that must be known")
    per_client: int = Field(10, ge=1, description="most examples of a client, sampled by a hash of the event")

    @model_validator(mode="after")
    def _classes_differ(self) -> NextCategoryConf:
        if self.categories is None:
            return self
        if not 2 <= len(self.categories) <= MOST_CLASSES:
            raise ValueError(f"categories: {len(self.categories)} classes; 2 to {MOST_CLASSES} are needed")
        told = [text for texts in self.categories.values() for text in texts]
        if len(set(told)) < len(told):
            raise ValueError("categories: a description stands in two classes; each may be in one")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class NextCategory:
    """The examples of one task.

    Attributes:
        examples: from `next_category_examples`, without those left out.
        classes: from `find_classes`.
        counts: `classes`; `candidates`, of which `kept` (of `clients`) and `dropped` by reason; `labels`: of each class
            those of `train` and `test` clients.
    """

    examples: DataFrame
    classes: Classes
    counts: Mapping[str, Any]


def find_next_category(
    events: DataFrame,
    clients: DataFrame,
    conf: NextCategoryConf,
    *,
    dictionaries: DataFrame | None,
    seed: int,
    keep: Keep,
) -> NextCategory:
    """Finds the classes and the examples of a task, and counts them.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        conf: the rules.
        dictionaries: the `dictionaries` table, if there is one.
        seed: of the sample.
        keep: the examples are counted and written: too dear to make twice.

    Raises:
        DataError: no such field, fewer than two classes, or a class without an example of a training client.
    """
    categorised = with_category(events, dictionaries, conf.field)
    classes = find_classes(categorised, clients, conf)
    judged = settled(next_category_examples(categorised, clients, classes, conf, seed=seed), keep)
    of_split = judged.join(clients.select("client_id", "split"), on="client_id", how="inner")
    # At most reasons x classes x 2 rows.
    rows = of_split.groupBy("reason", "label_text", "split").count().collect()
    labels = {name: {"train": 0, "test": 0} for name in classes}
    dropped: dict[str, int] = {}
    for row in rows:
        if row["reason"] is None:
            labels[row["label_text"]][row["split"]] = row["count"]
        else:
            dropped[row["reason"]] = dropped.get(row["reason"], 0) + row["count"]
    if missing := [name for name, count in labels.items() if not count["train"]]:
        raise DataError(f"next_category: no example of {', '.join(missing)} among training clients; lower min_history")
    examples = judged.where("reason IS NULL")
    kept = sum(sum(count.values()) for count in labels.values())
    counts = {
        "classes": {name: list(texts) for name, texts in classes.items()},
        "candidates": kept + sum(dropped.values()),
        "kept": kept,
        "clients": examples.select("client_id").distinct().count(),
        "dropped": dict(sorted(dropped.items())),
        "labels": labels,
    }
    return NextCategory(examples=examples, classes=classes, counts=counts)


def with_category(events: DataFrame, dictionaries: DataFrame | None, field: str) -> DataFrame:
    """Adds `category`: the description of the code in `field`, or the code where the field has no description.

    Args:
        events: the events table.
        dictionaries: the dictionaries table, if there is one.
        field: categorical column of the events.

    Raises:
        DataError: the events have no such column.
    """
    if field not in events.columns:
        raise DataError(f"next_category: field: the events have no '{field}': {nearest(field, events.columns)}")
    return with_description(events, dictionaries, field, "category")


def symbol_rules(classes: Classes, field: str, dictionaries: DataFrame | None) -> tuple[GoalRule, ...]:
    """What an event counts as in a Markov chain: its class, or else its category by itself.

    Args:
        classes: from `find_classes`.
        field: column of the events.
        dictionaries: its descriptions, at most some hundreds, are read to the driver; without one there are the
            classes alone.
    """
    told = [text for texts in classes.values() for text in texts]
    rules = [GoalRule(name=name, fields={field: tuple(texts)}) for name, texts in classes.items()]
    if dictionaries is not None:
        others = dictionaries.where((F.col("field") == field) & ~F.col("description").isin(told))
        found = others.select("description").distinct().orderBy("description").collect()
        rules += [
            GoalRule(name=f"{field} {row['description']}", fields={field: (row["description"],)}) for row in found
        ]
    return tuple(rules)


def find_classes(categorised: DataFrame, clients: DataFrame, conf: NextCategoryConf) -> dict[str, tuple[str, ...]]:
    """The classes, by name: as configured, or the most frequent categories of training clients.

    Args:
        categorised: from `with_category`.
        clients: the clients table.
        conf: at most `most` names reach the driver.

    Returns:
        Class name to descriptions, in sorted order of the names, which is the order of labels and probabilities.

    Raises:
        DataError: there are fewer than two classes, or no event of a configured one.
    """
    train = clients.where("split = 'train'").select("client_id")
    seen = categorised.where("category IS NOT NULL").join(train, "client_id", how="left_semi")
    counts = seen.groupBy("category").count()
    if conf.categories is None:
        rows = counts.orderBy(F.desc("count"), "category").limit(conf.most).collect()
        found: dict[str, tuple[str, ...]] = {row["category"]: (row["category"],) for row in rows}
    else:
        wanted = [text for texts in conf.categories.values() for text in texts]
        known = {row["category"] for row in counts.where(F.col("category").isin(wanted)).collect()}
        found = dict(conf.categories)
        for name, texts in found.items():
            if not known.intersection(texts):
                raise DataError(
                    f"next_category: categories: no event of a training client is in '{name}' ({', '.join(texts)}); "
                    f"give descriptions as the dictionaries table has them for field '{conf.field}'"
                )
    if len(found) < 2:
        raise DataError(f"next_category: field '{conf.field}' has {len(found)} categories; two at least are needed")
    return dict(sorted(found.items()))


def class_of(category: Column, classes: Classes) -> Column:
    """Name of the class that a category belongs to; null outside the set."""
    pairs = [(text, name) for name, texts in classes.items() for text in texts]
    return F.try_element_at(F.create_map(*(F.lit(part) for pair in pairs for part in pair)), category)


def _with_past(categorised: DataFrame) -> DataFrame:
    """The events with their history (how many came before) and as_of, the instant after the newest of those."""
    # In microseconds, Spark's own resolution, so that "before" is a range.
    instants = Window.partitionBy("client_id").orderBy(F.unix_micros("event_time"))
    earlier = instants.rangeBetween(Window.unboundedPreceding, -1)
    newest = F.unix_micros(F.max("event_time").over(earlier))
    return categorised.select(
        "client_id",
        "event_id",
        "event_time",
        "category",
        F.count(F.lit(1)).over(earlier).alias("history"),
        F.coalesce(F.timestamp_micros(newest + 1), "event_time").alias("as_of"),
    )


def next_category_examples(
    categorised: DataFrame, clients: DataFrame, classes: Classes, conf: NextCategoryConf, *, seed: int
) -> DataFrame:
    """Every event that could be an example, and why those that are none were left out.

    Windows by client alone: one shuffle and two sorts, whatever the number of events. Sampling looks at hashes of
    event ids only, so neither later events nor the partitioning change what an example says.

    Args:
        categorised: from `with_category`; events of clients that `clients` lacks are left out.
        clients: the clients table.
        classes: from `find_classes`.
        conf: the rules.
        seed: of the sample.

    Returns:
        client_id, as_of (a microsecond after the newest event before the target: nobody knows when the client will buy
        next, and how long the pause was would tell whether a trip went on), event_id and category of the target, label
        (place of the class in sorted order, double), label_text (its name), history (events before the target), reason:
        null for the examples, else `incomplete attributes`, `short history`, `same instant` (another event of the set
        at that time was drawn) or `sampled out`. Unordered.
    """
    missing = [name for name in conf.attributes if name not in clients.columns]
    if missing:
        raise DataError(f"next_category: attributes: {', '.join(missing)}: {nearest(missing[0], clients.columns)}")
    absent = [F.coalesce(F.trim(F.col(name)), F.lit("")) == "" for name in conf.attributes]
    known = clients.select("client_id", reduce(or_, absent, F.lit(False)).alias("_incomplete"))
    of_client = Window.partitionBy("client_id")
    luck = F.xxhash64("client_id", "event_id", F.lit(seed))
    name = class_of(F.col("category"), classes)
    targets = _with_past(categorised).withColumns({"label_text": name, "_luck": luck}).where("label_text IS NOT NULL")
    targets = targets.join(known, on="client_id", how="inner")
    instant = Window.partitionBy("client_id", "event_time").orderBy("_luck", "event_id")
    first = (
        F.when(F.col("_incomplete"), "incomplete attributes")
        .when(F.col("history") < conf.min_history, "short history")
        .when(F.row_number().over(instant) > 1, "same instant")
    )
    judged = targets.withColumn("_first", first)
    # Those left out already stand behind the others, so the first rows are the sample.
    place = F.row_number().over(of_client.orderBy(F.col("_first").isNotNull(), "_luck", "event_id"))
    reason = F.coalesce("_first", F.when(place > conf.per_client, "sampled out"))
    names = F.array(*(F.lit(text) for text in sorted(classes)))
    return judged.select(
        "client_id",
        "as_of",
        "event_id",
        "category",
        (F.array_position(names, F.col("label_text")) - 1).cast("double").alias("label"),
        "label_text",
        F.col("history").cast("int").alias("history"),
        reason.alias("reason"),
    )
