"""Makes labels from events by rules: the next merchant category (with the truth where known), the next goal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.goals import GoalsConf, goal_labels
from ledgerlm.events.labelling import LabelConf
from ledgerlm.events.next_category import (
    NextCategoryConf,
    find_classes,
    next_category_examples,
    with_category,
)
from ledgerlm.events.simulator import SimulatorConf
from ledgerlm.events.simulator.upcoming import knows_classes, true_next_category
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def run(ctx: Context, conf: LabelConf) -> StageResult:
    """Writes the labels of each task, and `bayes` where the events were simulated."""
    frames, truths, facts = [], [], {}
    for task, rules in conf.next_category.items():
        examples, facts[task] = _next_category(ctx, rules)
        frames.append(_of_task(examples, task))
        truths += [_of_task(truth, task) for truth in _truth(ctx, examples, facts[task]["classes"], rules)]
    if conf.goals is not None:
        labels, reached = _goals(ctx, conf.goals)
        frames.append(labels)
        facts |= reached
    written = ctx.write("labels", reduce(_union, frames), {"task": tuple(conf.tasks)})
    kept = sum(one["kept"] for one in facts.values())
    if written.rows != kept:
        raise DataError(f"{kept} examples were found, but {written.rows} labels written; run the stage again")
    if truths:
        ctx.write("bayes", reduce(_union, truths), {"task": tuple(conf.tasks)})
    candidates = sum(one["candidates"] for one in facts.values())
    return StageResult(
        rows_in=candidates,
        rows_out=kept,
        facts={"tasks": facts, "left_out": candidates - kept, "report": [_section(facts)]},
    )


def _next_category(ctx: Context, rules: NextCategoryConf) -> tuple[DataFrame, dict[str, Any]]:
    """The examples of one task, and what was counted on the way."""
    dictionaries = ctx.maybe("dictionaries")
    clients = ctx.read("clients")
    categorised = with_category(ctx.read("events"), dictionaries, rules.field)
    classes = find_classes(categorised, clients, rules)
    judged = next_category_examples(categorised, clients, classes, rules, seed=ctx.seed)
    judged = ctx.keep(judged)  # counted and written: too dear to make twice
    dropped = {
        row["reason"]: row["count"]
        for row in judged.where("reason IS NOT NULL").groupBy("reason").count().orderBy("reason").collect()
    }
    examples = judged.where("reason IS NULL")
    split = clients.select("client_id", "split")
    by_class = examples.join(split, "client_id").groupBy("label_text").pivot("split", ["train", "test"]).count()
    counts = {row["label_text"]: {"train": row["train"] or 0, "test": row["test"] or 0} for row in by_class.collect()}
    if missing := sorted(set(classes) - {name for name, count in counts.items() if count["train"]}):
        raise DataError(f"next_category: no example of {', '.join(missing)} among training clients; lower min_history")
    facts = {
        "classes": {name: list(texts) for name, texts in classes.items()},
        "candidates": judged.count(),
        "kept": examples.count(),
        "clients": examples.select("client_id").distinct().count(),
        "dropped": dropped,
        "labels": dict(sorted(counts.items())),
    }
    if facts["candidates"] != facts["kept"] + sum(dropped.values()):
        raise DataError(f"examples kept and left out do not add up to the candidates: {facts}")
    return examples, facts


def _goals(ctx: Context, rules: GoalsConf) -> tuple[DataFrame, dict[str, dict[str, Any]]]:
    """Labels of all horizons, and how many there are of each class."""
    dictionaries = ctx.maybe("dictionaries")
    clients = ctx.read("clients")
    found = ctx.keep(goal_labels(ctx.read("events"), clients, rules, dictionaries))
    split = clients.select("client_id", "split")
    counted = found.join(split, "client_id").groupBy("task", "label_text").pivot("split", ["train", "test"]).count()
    facts: dict[str, dict[str, Any]] = {}
    for row in counted.orderBy("task", "label_text").collect():
        counts = {"train": row["train"] or 0, "test": row["test"] or 0}
        one = facts.setdefault(row["task"], {"candidates": 0, "kept": 0, "dropped": {}, "labels": {}})
        one["labels"][row["label_text"]] = counts
        one["candidates"] += sum(counts.values())
        one["kept"] += sum(counts.values())
    if not facts:
        raise DataError("goals: no client has enough events before a cut whose horizon the events cover; see cuts")
    return found, facts


def _truth(
    ctx: Context, examples: DataFrame, classes: Mapping[str, Sequence[str]], rules: NextCategoryConf
) -> list[DataFrame]:
    """The true probabilities, by bank, when a simulate stage made the events."""
    if rules.field != "mcc" or not ctx.given.planned("simulate"):
        return []
    banks = [SimulatorConf.model_validate(bank) for bank in ctx.facts("simulate")["banks"]]
    events = ctx.read("events")
    return [true_next_category(examples, events, classes, bank) for bank in banks if knows_classes(classes, bank)]


def _of_task(rows: DataFrame, task: str) -> DataFrame:
    wanted = ("client_id", "as_of", "label", "label_text", "probabilities")
    return rows.select(*(name for name in wanted if name in rows.columns)).withColumn("task", F.lit(task))


def _union(one: DataFrame, other: DataFrame) -> DataFrame:
    return one.unionByName(other)


def _section(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    classes = [
        [task, name, count["train"], count["test"]]
        for task, one in facts.items()
        for name, count in one["labels"].items()
    ]
    dropped = [[task, reason, rows] for task, one in facts.items() for reason, rows in one["dropped"].items()]
    tables = [
        {"heading": "Examples", "columns": ["task", "class", "training clients", "test clients"], "rows": classes},
        {"heading": "Left out", "columns": ["task", "why", "events"], "rows": dropped},
    ]
    return {
        "title": "Labels from events",
        "note": "An example's history ends strictly before the event that it predicts.",
        "blocks": [{"kind": "table", **one} for one in tables],
    }


JOB = Job(
    name="label",
    engine="spark",
    conf=LabelConf,
    run=run,
    reads=("events", "clients", "dictionaries?"),
    writes=lambda stage: {"labels": {"task": tuple(stage.conf.tasks)}, "bayes": {"task": tuple(stage.conf.tasks)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
