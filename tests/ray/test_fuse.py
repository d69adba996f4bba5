"""ALIMN by Ray Train and DeepSpeed on a small lake whose answers lie half in a number and half in what was said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.ray import RayEngine
from ledgerlm.errors import ArtefactError
from ledgerlm.heads.alimn.head import FusedHead
from ledgerlm.heads.alimn.store import load_fusion, load_network
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Run, Runner
from tests.small_lake import BEFORE

pytestmark = pytest.mark.slow  # two trainings; tests/unit/test_alimn.py holds the network, test_learn.py Ray and ranks

AS_OF = datetime(2018, 1, 1, tzinfo=UTC)
CLIENTS = 700
AUC = metrics_of("binary")[0]
STATES = {"asked about rates": [2.0, 0.0, 9.0], "lost card": [-2.0, 0.0, 9.0], "angry": [0.0, 2.0, 9.0]}
SENTENCE = "array<struct<document:int,domain:string,state:array<float>,text:string>>"


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Contacted clients (three in four) answer by a number, by what they said, and by being contacted."""
    folder = tmp_path_factory.mktemp("campaign")
    generator = np.random.default_rng(4)
    clients, labels, features, states = [], [], [], []
    for n in range(CLIENTS):
        key, number, interest = (f"{n}", AS_OF), generator.normal(), generator.normal()
        said = generator.choice(list(STATES), size=3, p=_odds(interest)).tolist()
        treated = n % 4 > 0
        p = 1 / (1 + np.exp(-(1.5 * number + 1.5 * interest + (1.0 if treated else -1.0))))
        answered = float(generator.uniform() < p)
        task = "answer" if treated else "unasked"
        clients.append((key[0], "test" if n % 5 < 2 else "train", "NS"[n % 2]))
        labels.append((key[0], task, AS_OF, answered, ("no", "yes")[int(answered)]))
        features.append((*key, "structured", {"number": float(number), "noise": float(generator.normal())}))
        told = [(place, "marketing", STATES[text], text) for place, text in enumerate(said)]
        states.append((*key, "text", "bb", told if n % 50 else []))
    frames = {
        "clients": spark.createDataFrame(clients, "client_id string, split string, side string"),
        "labels": spark.createDataFrame(
            labels, "client_id string, task string, as_of timestamp, label double, label_text string"
        ),
        "features": spark.createDataFrame(
            features, "client_id string, as_of timestamp, feature_set string, features map<string, float>"
        ),
        "text_states": spark.createDataFrame(
            states,
            f"client_id string, as_of timestamp, state_set string, backbone_id string, sentences {SENTENCE}",
        ),
    }
    store = Lake(str(folder / "lake"), spark)
    for table, rows in frames.items():
        store.write(table, rows, by=BEFORE)
    return folder


def _odds(interest: float) -> list[float]:
    grown = np.exp([1.5 * interest, -1.5 * interest, 0.0])
    return list(grown / grown.sum())


STAGES = {
    "fuse": {
        "task": "answer",
        "sources": [{"table": "features", "feature_set": "structured"}],
        "networks": {
            "alimn": {"width": 8, "adapter": 2},
            "text": {"inputs": "text", "width": 8, "adapter": 0},
            "structured": {"inputs": "structured", "width": 8},
            "control": {"task": "unasked", "width": 8},
        },
        "late": {
            "average": {"members": ["text", "structured"]},
            "stacking": {"members": ["text", "structured"], "how": "stacking"},
        },
        "training": {"epochs": 12, "batch": 32, "learning_rate": 0.01, "held_out": 0.25},
    },
    "contact": {
        "campaign": "card",
        "task": "answer",
        "head": "fuse:alimn",
        "beside": {"structured": "fuse:structured"},
        "economy": {"cost": 1.0, "value": 2.0},
        "control": {
            "task": "unasked",
            "head": "fuse:control",
            "transformed": [{"table": "features", "feature_set": "structured"}],
        },
        "policy": {"budget": 50, "opt_out": "side = 'S'"},
        "fairness": ["side"],
        "bootstrap": 100,
    },
}


def work(folder: Path) -> Run:
    content = {"pipeline": "small", "out": str(folder), "data": "datasets/complete_journey.yaml", "stages": STAGES}
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(content))
    return Runner(load_pipeline(file), Progress()).run()


def table(spark: SparkSession, folder: Path, name: str) -> DataFrame:
    return Lake(str(folder / "lake"), spark).read(name)


@pytest.fixture(scope="module")
def done(spark: SparkSession, ray_engine: RayEngine, lake: Path) -> Run:
    return work(lake)


def _auc(spark: SparkSession, lake: Path, head_id: str) -> float:
    scores = table(spark, lake, "scores").where(F.col("head_id") == head_id)
    labels = table(spark, lake, "labels").where("task = 'answer'").select("client_id", "label")
    test = table(spark, lake, "clients").where("split = 'test'").select("client_id")
    rows = scores.join(labels, "client_id").join(test, "client_id").select("label", "probabilities").collect()
    return value(AUC, np.array([r["label"] for r in rows]), np.array([r["probabilities"] for r in rows]))


def test_the_fused_network_uses_both_sides(spark: SparkSession, lake: Path, done: Run) -> None:
    heads = {head["name"]: head for head in done.stages[0].record.facts["heads"]}
    assert set(heads) == {"alimn", "text", "structured", "control", "average", "stacking"}
    found = {name: _auc(spark, lake, heads[name]["head_id"]) for name in heads if name != "control"}
    assert found["alimn"] > found["structured"] + 0.03
    assert found["alimn"] > found["text"] + 0.03
    assert min(found["average"], found["stacking"]) > max(found["text"], found["structured"])
    assert heads["structured"]["parameters"] < heads["alimn"]["parameters"]
    assert sum(heads["alimn"]["alpha"]) == pytest.approx(1.0)
    assert heads["alimn"]["training_rows"] == pytest.approx(0.6 * 0.75 * CLIENTS, rel=0.01), "refitted on all"


def test_every_client_has_a_score_of_each_head_with_reasons(spark: SparkSession, lake: Path, done: Run) -> None:
    heads = {head["name"]: head["head_id"] for head in done.stages[0].record.facts["heads"]}
    scores = table(spark, lake, "scores")
    counted = {row["head_id"]: row["count"] for row in scores.groupBy("head_id").count().collect()}
    assert counted == dict.fromkeys(heads.values(), CLIENTS)
    rows = scores.where(F.col("head_id") == heads["alimn"]).collect()
    named = {reason["feature"] for row in rows for reason in row["reasons"]}
    assert named == {"number", "noise", *(f'"{text}"' for text in STATES)}
    asked = [r["contribution"] for row in rows for r in row["reasons"] if r["feature"] == '"asked about rates"']
    assert np.mean(asked) > 0
    assert {row["decile"] for row in rows} == set(range(1, 11))
    tables = {"features": table(spark, lake, "features")}
    for name in ("alimn", "stacking"):
        head = FusedHead.load(lake / "artefacts" / "heads", heads[name])
        said = head.transform(head.inputs(tables, table(spark, lake, "text_states")), reasons=0)
        own = scores.where(F.col("head_id") == heads[name]).select("client_id", F.col("probabilities").alias("stored"))
        both = said.join(own, on="client_id").collect()
        assert len(both) == CLIENTS
        np.testing.assert_allclose([r["probabilities"] for r in both], [r["stored"] for r in both], atol=1e-6)
        assert head.save(lake / "elsewhere").head_id == heads[name]


def test_the_contact_list_obeys_profit_and_policy(spark: SparkSession, lake: Path, done: Run) -> None:
    contacts = table(spark, lake, "contacts").collect()
    assert len(contacts) == CLIENTS
    chosen = [row for row in contacts if row["contact"]]
    assert len(chosen) == 50
    assert all(row["expected_profit"] > 0 and int(row["client_id"]) % 2 == 0 for row in chosen)
    assert {row["blocked"] for row in contacts} == {None, "does_not_pay", "opt_out", "budget"}
    for row in contacts[:20]:
        assert row["expected_profit"] == pytest.approx(2 * row["probability"] - 1, abs=1e-6)
    facts = done.stages[1].record.facts
    assert [section["title"] for section in facts["report"]] == [
        "Campaign",
        "Uplift",
        "Fairness by group",
        "Contacts",
    ]
    assert set(facts["qini"]) == {"two models", "transformed outcome", "probability"}
    assert 0 < facts["cutoff"]["share"] < 1


def test_a_second_run_changes_nothing_and_a_changed_head_is_refused(lake: Path, done: Run) -> None:
    again = work(lake)
    assert all(stage.skipped for stage in again.stages)
    head_id = done.stages[0].record.facts["heads"][0]["head_id"]
    heads = lake / "artefacts" / "heads"
    assert load_network(heads, head_id)[0].task.name == "answer"
    card = heads / head_id / "head.json"
    content = card.read_text()
    try:
        card.write_text(content.replace('"answer"', '"other"'))
        with pytest.raises(ArtefactError, match="changed after training"):
            load_fusion(heads, head_id)
    finally:
        card.write_text(content)
