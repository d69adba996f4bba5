"""The adapt job and its shares: counted by population and day, strictly before as_of, and Bayes' rule by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError
from ledgerlm.events.goals import GoalRule
from ledgerlm.heads.populations import PopulationConf, adapted, class_counts, with_ratios
from ledgerlm.heads.tasks import Task
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import CLIENTS, EVENTS, LABELS, fill, write_pipeline

DAY = datetime(2025, 3, 10, tzinfo=UTC)
SYMBOLS = tuple(GoalRule(name=name, fields={"category": (name,)}) for name in ("fuel", "food", "toys"))
TASK = Task(name="next", kind="multiclass", classes=(0.0, 1.0), class_names=("food", "fuel"))


def bought(client: str, days: float, categories: str) -> list[tuple[Any, ...]]:
    """Events of a client so many days from the day of DAY; `o` is food, `u` is fuel, `t` is toys."""
    named = {"o": "food", "u": "fuel", "t": "toys"}
    return [
        (client, f"{client}{days}{n}", DAY + timedelta(days=days), n, Decimal(-1), named[letter])
        for n, letter in enumerate(categories)
    ]


def counted(spark: SparkSession, conf: PopulationConf, task: Task = TASK) -> dict[tuple[str, datetime], Any]:
    """Counts for clients of banks A and B, at noon of DAY and the day after."""
    events = [
        *bought("a1", -9, "ooou"),
        *bought("a2", -1, "ott"),
        *bought("b1", -2, "uuo"),
        *bought("b2", 0.4, "uuuuu"),  # on the day of as_of, before its hour: another client's, so not yet known
        *bought("b1", 3, "ooooooo"),
        *bought("nobody", -2, "oooo"),
    ]
    clients = spark.createDataFrame(
        [("a1", "A"), ("a2", "A"), ("b1", "B"), ("b2", "B"), ("c1", None)], "client_id string, bank string"
    )
    rows = [(name, DAY + timedelta(days=0.5)) for name in ("a1", "b1", "b2", "c1", "stranger")]
    rows += [("b1", DAY + timedelta(days=1))]
    asked = spark.createDataFrame(rows, "client_id string, as_of timestamp")
    found = class_counts(spark.createDataFrame(events, EVENTS), clients, asked, task, conf, dictionaries=None)
    return {(row["client_id"], row["as_of"].replace(tzinfo=UTC)): row for row in found.collect()}


def test_a_population_is_counted_up_to_the_day_before(spark: SparkSession) -> None:
    noon, later = DAY + timedelta(days=0.5), DAY + timedelta(days=1)
    found = counted(spark, PopulationConf(symbols=SYMBOLS, by=("bank",)))
    assert {key: row["counts"] for key, row in found.items()} == {
        ("a1", noon): [4.0, 1.0],
        ("b1", noon): [1.0, 2.0],
        ("b2", noon): [1.0, 2.0],
        ("b1", later): [1.0, 7.0],
        ("c1", noon): [0.0, 0.0],
    }
    assert found["b1", noon]["population"] == '{"bank":"B"}'
    assert found["c1", noon]["population"] == "{}"
    recent = counted(spark, PopulationConf(symbols=SYMBOLS, by=("bank",), days=2))
    assert recent["a1", noon]["counts"] == [1.0, 0.0]
    assert recent["b1", later]["counts"] == [0.0, 5.0]
    everyone = counted(spark, PopulationConf(symbols=SYMBOLS))
    assert everyone["a1", noon]["counts"] == everyone["c1", noon]["counts"] == [5.0, 3.0]


def test_what_cannot_be_counted_is_told(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"clients have no 'bnak'.*bank"):
        counted(spark, PopulationConf(symbols=SYMBOLS, by=("bnak",)))
    unknown = Task(name="next", kind="binary", classes=(0.0, 1.0), class_names=("food", "none"))
    with pytest.raises(ConfigError, match="how often none comes up"):
        counted(spark, PopulationConf(symbols=SYMBOLS), unknown)


def test_probabilities_follow_bayes_rule(spark: SparkSession) -> None:
    told = [("a", [60.0, 20.0]), ("a2", [60.0, 20.0]), ("b", [10.0, 90.0]), ("new", [0.0, 0.0])]
    counts = spark.createDataFrame(
        [(c, DAY, n) for c, n in told], "client_id string, as_of timestamp, counts array<double>"
    )
    learnt = spark.createDataFrame([("a", DAY), ("a2", DAY)], "client_id string, as_of timestamp")
    ratios = with_ratios(counts, learnt, TASK, weight=4.0)
    said = spark.createDataFrame(
        [(c, DAY, [0.5, 0.5]) for c, _ in told], "client_id string, as_of timestamp, probabilities array<float>"
    )
    found = {row["client_id"]: row for row in adapted(said, ratios, TASK).collect()}
    base = np.array([121, 41]) / 162
    shares = {c: (np.array(n) + 4 * base) / (sum(n) + 4) for c, n in told}
    for client in ("a", "b", "new"):
        wanted = shares[client] / shares["a"]
        np.testing.assert_allclose(found[client]["probabilities"], wanted / wanted.sum(), rtol=1e-5)
    # Where it was learnt nothing changes; nor, but for the smoothing, where nothing is known.
    np.testing.assert_allclose(found["a"]["probabilities"], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found["new"]["probabilities"], [0.5, 0.5], atol=5e-3)
    assert found["b"]["prediction"] == 1.0


def test_the_job_moves_each_method_and_keeps_its_own_scores(spark: SparkSession, tmp_path: Path) -> None:
    people = [(f"{bank}{n}", bank) for bank in "AB" for n in range(20)]
    events = [event for c, bank in people for event in bought(c, -30, "oooou" if bank == "A" else "ouuuu")]
    labels = [(c, "next", DAY, float(n % 2), ("food", "fuel")[n % 2]) for n, (c, _) in enumerate(people)]
    split = [(c, "test" if bank == "B" else "train", bank) for c, bank in people]
    tables = {
        "events": spark.createDataFrame(events, EVENTS),
        "clients": spark.createDataFrame(split, CLIENTS + ", bank string"),
        "labels": spark.createDataFrame(labels, LABELS),
    }
    lake = fill(spark, tmp_path, tables)
    symbols = [rule.model_dump() for rule in SYMBOLS]
    stages: dict[str, dict[str, Any]] = {
        "guess": {"task": "next", "symbols": symbols, "orders": [1]},
        "adapt": {
            "task": "next",
            "methods": {"moved": "guess:frequency", "chain": "guess:markov1"},
            "by": ["bank"],
            "symbols": symbols,
        },
    }
    file = write_pipeline(tmp_path, stages)
    record = Runner(load_pipeline(file), Progress()).run().stages[-1].record
    assert (record.rows_in, record.rows_out) == (80, 80)
    assert record.facts["populations"][1]["ratios"]["fuel"] == pytest.approx(3.0, rel=1e-2)  # (80 + 10) / 150 to .2
    heads = lake.read("scores").groupBy("head_id").count().collect()
    assert {row["head_id"]: row["count"] for row in heads} == dict.fromkeys(
        ("guess/frequency", "guess/own_frequency", "guess/markov1", "adapt/moved", "adapt/chain"), 40
    )
    moved = lake.read("scores").where("head_id = 'adapt/moved'").collect()
    likely = {row["client_id"][0]: row["probabilities"] for row in moved}
    assert likely["A"] == pytest.approx([0.5, 0.5], abs=1e-6), "where it was learnt nothing changes"
    assert likely["B"][1] == pytest.approx(6 / 7, abs=0.01)  # food (20 + 40) / 150 to .8
    again = Runner(load_pipeline(file), Progress()).run()
    assert all(stage.skipped for stage in again.stages)
    stages["adapt"]["methods"] = {"moved": "guess"}
    with pytest.raises(ConfigError, match="has 3 heads; name one"):
        Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run()
