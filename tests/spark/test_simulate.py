"""The simulated bank: the same for a seed, linear in cost, and with a signal between chance and the Bayes limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ledgerlm.events.simulator import (
    SimulatorConf,
    load_world,
    simulate_clients,
    simulate_dictionaries,
    simulate_events,
    simulate_labels,
    true_probabilities,
)
from ledgerlm.events.simulator.categories import first_probabilities, following_probabilities, ring_place
from ledgerlm.events.simulator.labels import as_of_time
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

CONF = SimulatorConf(clients=1500, purchases=60, months=12)
TINY = SimulatorConf(clients=60, purchases=20, months=6, heavy_share=0.05)
PIPELINE = """
pipeline: bank
out: {out}
data: datasets/simulated_bank.yaml
seed: 5
stages:
  simulate:
    banks:
      - {{bank: A, clients: 30, purchases: 10, months: 3}}
      - {{bank: B, clients: 20, purchases: 10, months: 3}}
"""


@pytest.fixture(scope="module")
def bank(spark: SparkSession) -> Iterator[tuple[DataFrame, DataFrame]]:
    """Clients and events of one bank."""
    clients = simulate_clients(spark, CONF)
    events = simulate_events(clients, CONF).cache()
    yield clients, events
    events.unpersist()


def made(spark: SparkSession, **settings: object) -> DataFrame:
    conf = SimulatorConf.model_validate(TINY.model_dump() | settings)
    return simulate_events(simulate_clients(spark, conf), conf)


def fingerprint(frame: DataFrame) -> tuple[int, int]:
    """A hash of all rows, whatever their order."""
    row = (
        frame.select(F.xxhash64(*frame.columns).cast("decimal(38,0)").alias("h")).agg(F.sum("h"), F.count("h")).first()
    )
    assert row is not None
    return int(row[0]), int(row[1])


def test_a_seed_gives_the_same_rows_whatever_the_partitions(spark: SparkSession) -> None:
    conf = SimulatorConf.model_validate(TINY.model_dump() | {"rows_per_partition": 1000})
    few, many = (simulate_clients(spark, one) for one in (TINY, conf))
    assert many.rdd.getNumPartitions() > few.rdd.getNumPartitions()
    assert fingerprint(simulate_events(few, TINY)) == fingerprint(simulate_events(many, conf))
    other = SimulatorConf.model_validate(TINY.model_dump() | {"seed": 7})
    assert fingerprint(few.select("client_id", "key")) != fingerprint(
        simulate_clients(spark, other).select("client_id", "key")
    )


@pytest.mark.slow
def test_history_does_not_know_the_future(spark: SparkSession) -> None:
    both = made(spark, future_months=2)
    before = F.col("event_time") < as_of_time(TINY)
    assert fingerprint(both.where(before)) == fingerprint(made(spark))
    assert both.where(~before).limit(1).count() == 1


def test_events_need_no_shuffle_and_no_python(spark: SparkSession) -> None:
    plan = made(spark)._jdf.queryExecution().executedPlan().toString()
    assert "Exchange" not in plan
    assert "Python" not in plan


def test_a_heavy_client_is_made_in_pieces(spark: SparkSession) -> None:
    conf = SimulatorConf(clients=1, purchases=200_000, tail=0.0, heavy_share=0.0, months=12)
    events = simulate_events(simulate_clients(spark, conf), conf)
    assert 150_000 < events.count() < 250_000


def test_events_are_sound(bank: tuple[DataFrame, DataFrame]) -> None:
    _, events = bank
    found = events.agg(
        F.count("*").alias("rows"),
        F.count_distinct("client_id", "event_id").alias("ids"),
        F.count_distinct("client_id", "event_seq").alias("places"),
        F.max(F.col("event_time") >= as_of_time(CONF)).alias("late"),
        F.count_if(F.col("event_time").isNull() | F.col("type").isNull() | F.col("country").isNull()).alias("absent"),
        F.count_if(F.col("amount").isNull() != (F.col("type") == "CON")).alias("no_money"),
        F.count_if((F.col("type") == "POS") & F.col("mcc").isNull()).alias("no_category"),
        F.avg((F.col("type") == "POS").cast("double")).alias("purchases"),
        F.count_distinct("currency").alias("currencies"),
        F.count_distinct("merchant").alias("merchants"),
    ).first()
    assert found is not None
    assert found["rows"] == found["ids"] == found["places"]
    assert (found["late"], found["absent"], found["no_money"], found["no_category"]) == (False, 0, 0, 0)
    assert 0.25 < found["purchases"] < 0.55
    assert found["currencies"] > 3
    assert found["merchants"] > 1000


def test_lengths_are_long_tailed_about_the_mean(bank: tuple[DataFrame, DataFrame]) -> None:
    _, events = bank
    bought = events.where("type = 'POS'").groupBy("client_id").count().toPandas()["count"]
    assert bought.mean() == pytest.approx(CONF.purchases, rel=0.15)
    assert bought.max() > 5 * bought.median()
    assert bought.median() < bought.mean()


def test_months_and_weekends_show(bank: tuple[DataFrame, DataFrame]) -> None:
    _, events = bank
    day = events.where("type = 'POS'").select(F.month("event_time").alias("m"), F.weekday("event_time").alias("w"))
    months = day.groupBy("m").count().toPandas().set_index("m")["count"]
    weekdays = day.groupBy("w").count().toPandas().set_index("w")["count"]
    assert weekdays[5] > 1.3 * weekdays[2]
    assert months[12] > 1.1 * months[6]


@pytest.mark.slow
def test_banks_share_descriptions_only(spark: SparkSession, bank: tuple[DataFrame, DataFrame]) -> None:
    other = SimulatorConf.model_validate(TINY.model_dump() | {"bank": "B"})
    a, b = (simulate_dictionaries(spark, conf).toPandas() for conf in (TINY, other))
    assert set(a["description"]) == set(b["description"])
    assert not set(a["code"]) & set(b["code"])
    rows = [bank[1], made(spark, bank="B").cache()]
    ids, merchants = (
        [set(r.select(column).distinct().toPandas()[column]) for r in rows] for column in ("client_id", "merchant")
    )
    assert not ids[0] & ids[1]
    assert len(merchants[0] & merchants[1]) < 0.1 * len(merchants[0])
    for frame, names in zip(rows, (a, b), strict=True):
        assert {row["mcc"] for row in frame.select("mcc").distinct().collect()} - {None} <= set(names["code"])


def test_labels_are_drawn_from_the_probabilities(bank: tuple[DataFrame, DataFrame]) -> None:
    clients, _ = bank
    bayes = _by_task(true_probabilities(clients, CONF))
    labels = _by_task(simulate_labels(clients, CONF))
    for task, rows in labels.items():
        p = np.stack(bayes[task].loc[rows.index, "probabilities"].tolist())
        assert np.allclose(p.sum(axis=1), 1.0)
        shares = np.bincount(rows["label"].astype(int), minlength=p.shape[1]) / len(rows)
        assert np.abs(shares - p.mean(axis=0)).max() < 4 * 0.5 / np.sqrt(len(rows))
    assert set(labels["campaign_response"].index).isdisjoint(labels["organic_response"].index)
    asked, unasked = (
        np.stack(bayes[task]["probabilities"].tolist()) for task in ("campaign_response", "organic_response")
    )
    uplift = asked - unasked
    assert uplift[:, 1].mean() > 0.03


# By 400,000 draws of the formulas; with 1,500 clients the limit itself has a deviation of about 0.012.
@pytest.mark.parametrize(("task", "limit"), [("churn", 0.84), ("default", 0.86), ("campaign_response", 0.85)])
def test_bayes_limit_is_as_designed(bank: tuple[DataFrame, DataFrame], task: str, limit: float) -> None:
    clients, _ = bank
    rows = _by_task(simulate_labels(clients, CONF))[task]
    p = np.stack(_by_task(true_probabilities(clients, CONF))[task].loc[rows.index, "probabilities"].tolist())
    assert roc_auc_score(rows["label"], p[:, 1]) == pytest.approx(limit, abs=0.05)


def test_counts_reach_part_of_the_limit_and_recent_events_more(bank: tuple[DataFrame, DataFrame]) -> None:
    clients, events = bank
    labels, bayes = _by_task(simulate_labels(clients, CONF)), _by_task(true_probabilities(clients, CONF))
    counts = _counted(events, "all")
    recent = events.where(F.col("event_time") >= as_of_time(CONF) - F.expr("INTERVAL 120 DAYS"))
    both = pd.concat([counts, _counted(recent, "recent")], axis=1).fillna(0.0)
    for task, features, low in (("default", counts, 0.65), ("churn", counts, 0.54), ("churn", both, 0.65)):
        rows = labels[task]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=300))
        p = cross_val_predict(model, features.loc[rows.index], rows["label"], cv=3, method="predict_proba")[:, 1]
        limit = roc_auc_score(rows["label"], np.stack(bayes[task].loc[rows.index, "probabilities"].tolist())[:, 1])
        assert low < roc_auc_score(rows["label"], p) < limit


def test_purchases_follow_their_true_probabilities(bank: tuple[DataFrame, DataFrame]) -> None:
    clients, events = bank
    world = load_world()
    parts = F.split(F.substring("event_id", 2, 30), "-")
    bought = events.where("type = 'POS'").select(
        "client_id",
        parts[0].cast("long").alias("trip"),
        parts[1].cast("int").alias("place"),
        ring_place(world, "A", F.col("mcc")).alias("shop"),
        F.month("event_time").alias("month"),
        (F.weekday("event_time") >= 5).cast("double").alias("weekend"),
        (F.datediff(as_of_time(CONF), "event_time") <= world.purchases.intent_days).cast("double").alias("recent"),
    )
    known = bought.join(clients.select("client_id", "taste", "goal", "trait_plan"), "client_id")
    month, weekend, recent = (F.col(name) for name in ("month", "weekend", "recent"))
    first = first_probabilities(world, month=month, weekend=weekend, recent=recent)
    _assert_calibrated(known.where("place = 0").select("shop", first.alias("p")), len(world.categories), 0.005)
    after = bought.select("client_id", "trip", (F.col("place") + 1).alias("place"), F.col("shop").alias("previous"))
    followed = known.join(after, ["client_id", "trip", "place"])
    following = following_probabilities(world, previous=F.col("previous"))
    _assert_calibrated(followed.select("shop", following.alias("p")), len(world.categories), 0.01)


def test_job_writes_two_banks_once(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "bank.yaml").write_text(PIPELINE.format(out=tmp_path / "out"))
    pipeline = load_pipeline(tmp_path / "bank.yaml")
    record = Runner(pipeline, Progress()).run().stages[0].record
    assert record.facts["clients"] == 50
    assert set(record.tables) == {"events", "dictionaries", "clients", "labels", "bayes"}
    clients = spark.read.format("delta").load(str(tmp_path / "out" / "lake" / "clients")).toPandas()
    assert set(clients["bank"]) == {"A", "B"}
    assert set(clients["split"]) <= {"train", "test"}
    assert Runner(pipeline, Progress()).run().stages[0].skipped


def _by_task(frame: DataFrame) -> dict[str, pd.DataFrame]:
    return {str(task): rows.set_index("client_id") for task, rows in frame.toPandas().groupby("task")}


def _counted(events: DataFrame, name: str) -> pd.DataFrame:
    code = F.coalesce("mcc", "type")
    rows = events.groupBy("client_id", F.concat(F.lit(f"{name}/"), code).alias("code")).count().toPandas()
    return rows.pivot(index="client_id", columns="code", values="count").fillna(0.0).apply(np.log1p)


def _assert_calibrated(rows: DataFrame, size: int, most: float) -> None:
    """Shares that came true equal mean probabilities, and the log loss is the entropy that these promise."""
    found = rows.toPandas()
    p = np.stack(found["p"].tolist())
    assert np.allclose(p.sum(axis=1), 1.0)
    shares = np.bincount(found["shop"], minlength=size) / len(found)
    assert np.abs(shares - p.mean(axis=0)).max() < most
    loss = -np.log(p[np.arange(len(p)), found["shop"]])
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    assert loss.mean() == pytest.approx(entropy.mean(), abs=0.02)
