"""Fits on Ray: folds as tasks, one head over two workers, and the jobs fit, score and evaluate on a small lake."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from scipy import sparse

from ledgerlm.engines.ray import RayEngine
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.evaluation.study import EvaluateConf, evaluate
from ledgerlm.events.condition import Condition
from ledgerlm.heads.boosting import LightGBMConf, to_probabilities, train
from ledgerlm.heads.distributed import DistributedConf, stage_rows, train_distributed
from ledgerlm.heads.fitting import FitConf, fit_heads
from ledgerlm.heads.head import load_trees
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.heads.model import Head
from ledgerlm.heads.parallel import Fit, run_local, run_on_ray
from ledgerlm.heads.tasks import Floats, Task, find_tasks
from ledgerlm.heads.vectors import Block, join_sources
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.progress import Task as ProgressTask
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Run, Runner
from tests.small_lake import BEFORE

BINARY = Task(name="bad", kind="binary", classes=(0.0, 1.0), class_names=("good", "bad"))
AUC = metrics_of("binary")[0]
CODES = 80
AS_OF = datetime(2018, 1, 1, tzinfo=UTC)
NO_FACTS: dict[str, Mapping[str, Any]] = {}
QUICK = {"n_estimators": 30, "learning_rate": 0.1, "min_data_in_leaf": 5}


def _merchants(rows: int) -> tuple[Floats, Floats]:
    """A merchant code of eighty, each with its own risk, and two numbers."""
    generator = np.random.default_rng(9)
    risk = generator.uniform(0.05, 0.95, CODES)
    code = generator.integers(0, CODES, rows)
    x = np.column_stack([code, generator.normal(size=(rows, 2))])
    logit = np.log(risk[code] / (1 - risk[code])) + x[:, 1]
    return x, (generator.uniform(size=rows) < 1 / (1 + np.exp(-logit))).astype(float)


def test_fits_on_ray_equal_fits_here(ray_engine: RayEngine) -> None:
    x, y = _merchants(300)
    matrices = {"a": sparse.csr_matrix(x, dtype=np.float32), "b": sparse.csr_matrix(x[:, 1:], dtype=np.float32)}
    rows = np.arange(300)
    fits = [
        Fit(
            matrix=name,
            task=BINARY,
            rows=rows[rows % 3 != fold],
            y=y[rows % 3 != fold],
            ask=rows[rows % 3 == fold],
            conf=LightGBMConf.model_validate(QUICK),
            seed=1,
        )
        for name in matrices
        for fold in range(3)
    ]
    here, there = dict(run_local(fits, matrices)), dict(run_on_ray(fits, matrices))
    assert sorted(there) == list(range(6))
    for place, found in there.items():
        assert np.array_equal(found.raw, here[place].raw)
        assert found.text == here[place].text


@pytest.mark.slow
def test_two_workers_learn_many_categories_as_well_as_one(
    spark: SparkSession, ray_engine: RayEngine, tmp_path: Path
) -> None:
    x, y = _merchants(6000)
    names = ("merchant", "amount", "gap")
    block = Block(column="s0_mean", group="mean", sparse=False, names=names)
    rows = [([float(v) for v in row], float(label)) for row, label in zip(x[:4000], y[:4000], strict=True)]
    stage_rows(spark.createDataFrame(rows, "s0_mean array<float>, label double"), [block], tmp_path / "rows", workers=2)
    conf = LightGBMConf.model_validate({**QUICK, "n_estimators": 60})
    model = train_distributed(
        tmp_path / "rows",
        3,
        BINARY,
        conf,
        DistributedConf(workers=2),
        seed=1,
        storage=tmp_path / "train",
        categorical=[0],
    )
    assert any(line.startswith("num_cat=") and line != "num_cat=0" for line in model.text.splitlines())
    held = sparse.csr_matrix(x[4000:], dtype=np.float32)
    alone = train(sparse.csr_matrix(x[:4000], dtype=np.float32), y[:4000], BINARY, conf, seed=1)
    found, local = (value(AUC, y[4000:], to_probabilities(one.raw(held), BINARY)) for one in (model, alone))
    assert found > 0.75
    assert found > local - 0.02
    with pytest.raises(DataError, match="too few for 41 workers"):
        train_distributed(
            tmp_path / "rows", 3, BINARY, conf, DistributedConf(workers=41), seed=1, storage=tmp_path / "train"
        )


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors and labels of 240 clients: Agg knows little of the label, the embedding much."""
    folder = tmp_path_factory.mktemp("small")
    generator = np.random.default_rng(2)
    p = generator.uniform(0.02, 0.98, 240)
    y = (generator.uniform(size=240) < p).astype(float)
    noise = generator.normal(size=(240, 4))
    clients, labels, features, embeddings, bayes, reachable = [], [], [], [], [], []
    for n in range(240):
        key = (f"{n}", AS_OF)
        clients.append((key[0], "test" if n % 10 == 0 else "train"))
        labels.append((key[0], "default", AS_OF, float(y[n]), ("no", "yes")[int(y[n])]))
        features.append((*key, "agg", {"count": float(y[n] * 0.5 + noise[n, 0]), "dept=A:count": float(noise[n, 1])}))
        embeddings.append((*key, "bb", "dd", {"mean": [float(3 * p[n] + noise[n, 2] * 0.1), float(noise[n, 3])]}))
        bayes.append((key[0], "default", AS_OF, [float(1 - p[n]), float(p[n])]))
        seen = float(np.clip(p[n] + 0.2 * noise[n, 2], 0, 1))
        reachable.append((key[0], "default", AS_OF, [1 - seen, seen]))
    embedded = spark.createDataFrame(
        embeddings,
        "client_id string, as_of timestamp, backbone_id string, definition_id string, parts map<string,array<float>>",
    )
    known = {"token_count": 1, "event_count_used": 1, "event_count_cut": 0, "input_hash": "h", "definition": "{}"}
    frames = {
        "clients": spark.createDataFrame(clients, "client_id string, split string"),
        "labels": spark.createDataFrame(
            labels, "client_id string, task string, as_of timestamp, label double, label_text string"
        ),
        "features": spark.createDataFrame(
            features, "client_id string, as_of timestamp, feature_set string, features map<string, float>"
        ),
        "embeddings": embedded.select("*", *(F.lit(v).alias(name) for name, v in known.items())),
        "bayes": spark.createDataFrame(
            bayes, "client_id string, task string, as_of timestamp, probabilities array<double>"
        ),
        "reachable": spark.createDataFrame(
            reachable, "client_id string, task string, as_of timestamp, probabilities array<double>"
        ),
    }
    store = Lake(str(folder / "lake"), spark)
    for table, rows in frames.items():
        store.write(table, rows, by=BEFORE)
    return folder


AGG = {"table": "features"}
EMBEDDING = {"table": "embeddings", "backbone_id": "bb", "definition_id": "dd", "parts": ["mean"]}


STUDY = {
    "heads": ["lightgbm"],
    "representations": {"agg": [AGG], "llm4es": [EMBEDDING], "llm4es+agg": [EMBEDDING, AGG]},
    "lightgbm": {"min_data_in_leaf": 10, "n_estimators": 30},
    "folds": 3,
    "bootstrap": 100,
}


def work(folder: Path, stages: Mapping[str, object]) -> Run:
    content = {"pipeline": "small", "out": str(folder), "data": "datasets/complete_journey.yaml", "stages": stages}
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(content))
    return Runner(load_pipeline(file), Progress()).run()


def table(spark: SparkSession, folder: Path, name: str) -> DataFrame:
    return Lake(str(folder / "lake"), spark).read(name)


def test_evaluate_finds_the_better_representation(spark: SparkSession, ray_engine: RayEngine, lake: Path) -> None:
    stages = {
        "evaluate": {
            "representations": {"agg": [AGG], "llm4es": [EMBEDDING], "llm4es+agg": [EMBEDDING, AGG]},
            "lightgbm": {"min_data_in_leaf": 10, "n_estimators": 60},
            "seeds": [1, 2],
            "folds": 3,
            "bootstrap": 200,
        }
    }
    [stage] = work(lake, stages).stages
    facts = stage.record.facts
    assert stage.record.rows_in == 240
    rows = {(r["method"], r["metric"], r["split"]): r for r in table(spark, lake, "leaderboard").collect()}
    assert {method for method, *_ in rows} == {"agg", "llm4es", "llm4es+agg", "bayes", "reachable", "majority"}
    auc = {method: rows[method, "roc_auc", "cross_validation"] for method in ("agg", "llm4es", "bayes", "reachable")}
    assert auc["agg"]["mean"] < auc["llm4es"]["mean"] <= auc["bayes"]["mean"] + 0.01
    assert auc["agg"]["mean"] < auc["reachable"]["mean"] < auc["bayes"]["mean"]
    assert auc["llm4es"]["delta_low"] > 0
    assert (auc["llm4es"]["folds"], auc["llm4es"]["seeds"], auc["llm4es"]["baseline"]) == (3, 2, "agg")
    assert ("llm4es", "roc_auc", "test") in rows
    [task] = facts["tasks"].values()
    for of_method in task["heads"].values():
        assert of_method["means"].keys() == {"lightgbm", "linear", "stack"} and sum(of_method["chosen"].values()) == 6
    assert len(facts["leaderboard"]) == len(rows)
    task = facts["tasks"]["default"]
    assert (task["development_rows"], task["test_rows"], task["classes"]) == (216, 24, ["no", "yes"])
    assert task["importance"]["llm4es+agg"]["features"][0]["feature"] == "mean:0"
    assert set(task["roc"]) == set(task["calibration"]) == {"agg", "llm4es", "llm4es+agg", "bayes", "reachable"}
    assert (task["way"]["bound"], task["way"]["metric"]) == ("reachable", "roc_auc")
    whole = auc["reachable"]["mean"] - 0.5
    assert task["way"]["shares"]["agg"] == pytest.approx((auc["agg"]["mean"] - 0.5) / whole)
    assert facts["map"]["method"] == "llm4es"
    assert len(facts["map"]["x"]) == 240
    assert len(json.dumps(facts)) < 300_000


def test_fit_and_score_leave_calibrated_heads_and_deciles(
    spark: SparkSession, ray_engine: RayEngine, lake: Path
) -> None:
    fit = {
        "representation": "llm4es+agg",
        "sources": [EMBEDDING, AGG],
        "lightgbm": {"min_data_in_leaf": 10, "n_estimators": 60},
    }
    run = work(lake, {"fit": fit, "score": {}})
    [head] = run.stages[0].record.facts["heads"]
    assert (head["task"], head["training_rows"], head["features"]) == ("default", 216, 4)
    assert head["calibration"]["log_loss"]["after"] < head["calibration"]["log_loss"]["before"]
    card, _ = load_trees(lake / "artefacts" / "heads", head["head_id"])
    assert card.sources[0].backbone_id == "bb"
    scores = table(spark, lake, "scores")
    assert scores.count() == 240
    assert {row["head_id"] for row in scores.select("head_id").distinct().collect()} == {head["head_id"]}
    lift = scores.join(table(spark, lake, "labels"), on="client_id").groupBy(F.col("decile") <= 3).agg(F.avg("label"))
    shares = {row[0]: row[1] for row in lift.collect()}
    assert shares[True] > 0.7
    assert shares[False] < 0.5

    again = work(lake, {"fit": fit, "score": {"reasons": 1}})
    assert again.stages[0].skipped
    assert table(spark, lake, "scores").count() == 240
    [reasons] = table(spark, lake, "scores").selectExpr("max(size(reasons)) AS most").collect()
    assert reasons.most == 1


def test_what_the_driver_cannot_read_is_trained_by_ray_train(
    spark: SparkSession, ray_engine: RayEngine, lake: Path, tmp_path: Path
) -> None:
    """By the numbers in the vectors: there are far fewer rows than `above_rows`."""
    heads = {}
    for values in (None, 100):
        conf = FitConf.model_validate(
            {
                "representation": "llm4es",
                "sources": [EMBEDDING],
                "lightgbm": {"min_data_in_leaf": 10, "n_estimators": 20},
                "distributed": {"above_values": values, "workers": 1, "holdout": 0.3},
                # Whom it names is learnt from, also those who are of the split `test`.
                "where": "split IN ('train', 'test')",
            }
        )
        heads[values] = fit(spark, lake, conf, tmp_path / f"work{values}")[0]
    staged = {values: list((tmp_path / f"work{values}").glob("default/*.parquet")) for values in heads}
    assert not staged[None] and staged[100]
    vectors = join_sources(heads[100].card.sources, {"embeddings": table(spark, lake, "embeddings")})
    with pytest.raises(ArtefactError, match=r"not saved; call save\(folder\) first"):
        heads[100].transform(vectors)
    found = {}
    for values, head in heads.items():
        saved = head.save(tmp_path / "heads")
        again = Head.load(tmp_path / "heads", saved.head_id)
        assert again.card == head.card
        assert head.card.training_rows == 240
        assert head.facts["calibration"]["method"] == "sigmoid"
        said = again.transform(vectors, reasons=1).join(table(spark, lake, "labels"), on="client_id")
        rows = said.select("label", F.col("probabilities")[1].alias("p")).collect()
        p = np.array([row["p"] for row in rows], np.float64)
        found[values] = value(AUC, np.array([row["label"] for row in rows]), np.stack([1 - p, p], axis=1))
    assert min(found.values()) > 0.7


@pytest.mark.parametrize("distributed", [{}, {"above_rows": 10, "workers": 1}])
@pytest.mark.parametrize("kind", ["lightgbm", "logistic_regression"])
def test_one_class_is_refused_on_every_road(
    spark: SparkSession, lake: Path, tmp_path: Path, kind: str, distributed: dict[str, int]
) -> None:
    conf = FitConf.model_validate(
        {
            "representation": "agg",
            "sources": [AGG],
            "kind": kind,
            "calibration": "none",
            "distributed": distributed,
            "where": "label = 1",
        }
    )
    with pytest.raises(DataError, match=r"task default: all \d+ rows to learn from are of class 'yes'"):
        fit(spark, lake, conf, tmp_path)
    with pytest.raises(DataError, match="task default: no labelled row where split = 'none' has a vector"):
        fit(spark, lake, conf.model_copy(update={"where": Condition("split = 'none'")}), tmp_path)


@pytest.mark.slow
def test_ray_train_refuses_one_class(spark: SparkSession, ray_engine: RayEngine, tmp_path: Path) -> None:
    block = Block(column="s0_mean", group="mean", sparse=False, names=("a",))
    rows = spark.range(400).selectExpr("array(cast(id AS float)) AS s0_mean", "1.0D AS label")
    stage_rows(rows, [block], tmp_path / "rows", workers=1)
    conf, settings = LightGBMConf.model_validate(QUICK), DistributedConf(workers=1)
    with pytest.raises(DataError, match="task bad: all 400 rows to learn from are of class 'bad'"):
        train_distributed(tmp_path / "rows", 1, BINARY, conf, settings, seed=1, storage=tmp_path / "train")


def fit(spark: SparkSession, lake: Path, conf: FitConf, folder: Path) -> list[Head]:
    names = ("labels", "clients", "features", "embeddings")
    labels, clients, features, embeddings = (table(spark, lake, name) for name in names)
    return fit_heads(
        labels,
        clients,
        {"features": features, "embeddings": embeddings},
        find_tasks(labels, None, {}),
        conf,
        facts=NO_FACTS.__getitem__,
        folder=folder,
        seed=1,
        keep=lambda frame: frame.cache(),
    )


def test_an_evaluation_that_was_killed_goes_on_between_its_folds(
    spark: SparkSession, ray_engine: RayEngine, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lake").symlink_to(lake / "lake")
    content = {
        "pipeline": "killed",
        "out": str(tmp_path),
        "data": "datasets/complete_journey.yaml",
        "stages": {"killed": {"job": "evaluate", **STUDY}},
    }
    file = tmp_path / "killed.yaml"
    file.write_text(json.dumps(content))

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("LEDGERLM_FAILPOINT", "killed:after_fit")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "kill", kill)
        Runner(load_pipeline(file), Progress()).run()
    monkeypatch.delenv("LEDGERLM_FAILPOINT")
    staged = list((tmp_path / "staging" / "killed").glob("*/fits/*.npz"))
    assert len(staged) == 1
    seen = io.StringIO()
    progress = Progress(Console(file=seen, width=200))
    done = Runner(load_pipeline(file), progress).run().stages[0].record
    assert "1 of 9 fits were finished before" in seen.getvalue()
    [whole] = work(lake, {"whole": {"job": "evaluate", **STUDY}}).stages
    assert done.facts["leaderboard"] == whole.record.facts["leaderboard"]


class Counted(ProgressTask):
    """Knows how far it went."""

    def __init__(self, progress: Progress, text: str, total: float | None) -> None:
        super().__init__(progress, text, total)
        self.total, self.done = total, 0.0

    def advance(self, amount: float = 1) -> None:
        super().advance(amount)
        self.done += amount


class Recorded(Progress):
    """Notes what is shown."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.tasks: dict[str, Counted] = {}

    def task(self, text: str, total: float | None = None) -> Counted:
        self.tasks[text] = Counted(self, text, total)
        return self.tasks[text]


@pytest.mark.slow
def test_an_evaluation_shows_how_far_it_is(spark: SparkSession, ray_engine: RayEngine, lake: Path) -> None:
    names = ("labels", "clients", "features", "embeddings")
    labels, clients, features, embeddings = (table(spark, lake, name) for name in names)
    progress = Recorded()
    made = evaluate(
        labels,
        clients,
        {"features": features, "embeddings": embeddings},
        find_tasks(labels, None, {}),
        EvaluateConf.model_validate(STUDY),
        facts=NO_FACTS.__getitem__,
        seed=1,
        keep=lambda frame: frame.cache(),
        progress=progress,
    )
    assert made.tables["leaderboard"].slice == {"stage": ("evaluate",)}
    for text in ("Evaluating folds", "Resampling clients"):
        assert progress.tasks[text].done == progress.tasks[text].total
    assert progress.tasks["Evaluating folds"].total == 9
    # Seven metrics of three methods on two splits, and the accuracy of the majority on both.
    assert progress.tasks["Resampling clients"].total == len(made.facts["leaderboard"]) == 7 * 3 * 2 + 2


@pytest.mark.slow
def test_a_large_head_is_trained_by_ray_train_and_calibrated_on_clients_held_out(
    spark: SparkSession, ray_engine: RayEngine, lake: Path
) -> None:
    fit = {
        "job": "fit",
        "representation": "llm4es",
        "sources": [EMBEDDING],
        "lightgbm": {"min_data_in_leaf": 10, "n_estimators": 30},
        "distributed": {"above_rows": 100, "workers": 1, "holdout": 0.3},
    }
    run = work(lake, {"large": fit, "score": {"stages": ["large"]}})
    [head] = run.stages[0].record.facts["heads"]
    assert head["calibration"]["method"] == "sigmoid"
    p = (
        table(spark, lake, "scores")
        .where(F.col("head_id") == head["head_id"])
        .join(table(spark, lake, "labels"), on="client_id")
    )
    rows = p.select("label", F.col("probabilities")[1].alias("p")).collect()
    found = np.array([row["p"] for row in rows], np.float64)
    assert value(AUC, np.array([row["label"] for row in rows]), np.stack([1 - found, found], axis=1)) > 0.7
