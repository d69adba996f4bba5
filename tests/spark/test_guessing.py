"""Frequency and Markov heads against counts by hand, and on walks whose next step is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.events.goals import GoalRule
from ledgerlm.heads.guessing import GuessingConf, guesses, symbol_rows
from ledgerlm.heads.tasks import Task

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
TASK = Task(name="next", kind="multiclass", classes=(0.0, 1.0, 2.0), class_names=("a", "b", "c"))
CONF = GuessingConf(symbols=tuple(GoalRule(name=name, fields={"mcc": (name,)}) for name in "abc"), weight=2.0)
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), mcc string"


def frames(spark: SparkSession, histories: dict[str, str], labels: dict[str, str]) -> tuple[DataFrame, DataFrame]:
    """Events, one a day up to the day before as_of, and labels; what follows `|` comes after as_of."""
    events = []
    for client, codes in histories.items():
        before, _, after = codes.partition("|")
        days = [*range(-len(before), 0), *range(len(after))]
        events += [
            (client, f"{client}{day}", AS_OF + timedelta(days=day), 0, Decimal(-1), code)
            for day, code in zip(days, before + after, strict=True)
        ]
    told = [(client, AS_OF, float("abc".index(label))) for client, label in labels.items()]
    return spark.createDataFrame(events, EVENTS), spark.createDataFrame(
        told, "client_id string, as_of timestamp, label double"
    )


def test_counts_are_smoothed_by_the_shorter_memory(spark: SparkSession) -> None:
    histories = {"t1": "ab", "t2": "bb", "t3": "ca", "t4": "ab", "x": "aab|ccc", "y": "zz"}
    events, labels = frames(spark, histories, {"t1": "c", "t2": "b", "t3": "a", "t4": "c"})
    asked = spark.createDataFrame([(client, AS_OF) for client in histories], "client_id string, as_of timestamp")
    read = symbol_rows(events, asked, CONF, None)
    told = {row["client_id"]: row for row in read.collect()}
    assert told["x"]["recent"] == ["b", "a", "a"]
    assert told["x"]["counts"] == {"a": 2, "b": 1}
    assert (told["y"]["recent"], told["y"]["counts"]) == ([], {})
    found = {
        name: {row["client_id"]: row for row in rows.collect()}
        for name, rows in guesses(read, labels, TASK, CONF).items()
    }
    assert set(found) == set(CONF.methods)
    p0 = (np.array([1, 1, 2]) + 1 / 3) / 5
    np.testing.assert_allclose(found["frequency"]["x"]["probabilities"], p0, rtol=1e-5)
    p1 = (np.array([0, 1, 2]) + 2 * p0) / 5  # after b: t1, t2 and t4
    np.testing.assert_allclose(found["markov1"]["x"]["probabilities"], p1, rtol=1e-5)
    p2 = (np.array([0, 0, 2]) + 2 * p1) / 4  # after a, b: t1 and t4
    np.testing.assert_allclose(found["markov2"]["x"]["probabilities"], p2, rtol=1e-5)
    # Nobody in training had three symbols: order 3 says what order 2 says.
    np.testing.assert_allclose(found["markov3"]["x"]["probabilities"], p2, rtol=1e-5)
    assert found["markov2"]["x"]["prediction"] == 2.0
    np.testing.assert_allclose(found["markov3"]["y"]["probabilities"], p0, rtol=1e-5)
    share = (np.array([3, 4, 1]) + 1) / 11
    np.testing.assert_allclose(
        found["own_frequency"]["x"]["probabilities"], (np.array([2, 1, 0]) + 2 * share) / 5, rtol=1e-5
    )


@pytest.mark.parametrize("step", [1, 2])
def test_a_walk_is_foretold_by_markov_and_not_by_frequency(spark: SparkSession, step: int) -> None:
    random = np.random.default_rng(step)
    histories, labels = {}, {}
    for n in range(120):
        start, length = int(random.integers(3)), int(random.integers(2, 9))
        walk = ["abc"[(start + step * place) % 3] for place in range(length + 1)]
        histories[f"c{n:03d}"], labels[f"c{n:03d}"] = "".join(walk[:-1]) + "|" + walk[-1], walk[-1]
    events, told = frames(spark, histories, labels)
    scored = guesses(symbol_rows(events, told, CONF, None), told, TASK, CONF)
    right = {}
    for name in ("frequency", "markov1"):
        rows = scored[name].toPandas()
        right[name] = float(
            np.mean([labels[c] == "abc"[int(k)] for c, k in zip(rows["client_id"], rows["prediction"], strict=True)])
        )
    assert right["markov1"] == 1.0
    assert right["frequency"] < 0.5
