"""Vectors joined and learned in Spark, scores over a table, deciles, and MLlib heads."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.evaluation.protocol import labelled_rows, read_rows
from ledgerlm.heads.boosting import Boosted, LightGBMConf, train
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.head import HeadCard, hash_names, save_head
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.heads.mllib import MllibConf, fit_mllib, score_mllib
from ledgerlm.heads.scoring import score_rows, with_deciles
from ledgerlm.heads.tasks import Task, find_tasks
from ledgerlm.heads.vectors import Block, Source, join_sources, learn_blocks, read_matrix
from ledgerlm.lake.lake import conform
from ledgerlm.lake.schemas import SCORES

CLIENTS = 600
AS_OF = datetime(2020, 1, 1, tzinfo=UTC)
SOURCES = (Source(table="features"), Source(table="embeddings", backbone_id="b1", definition_id="d1", parts=("mean",)))
BINARY = Task(name="bad", kind="binary", classes=(0.0, 1.0), class_names=("good", "bad"))
THREE = Task(name="age", kind="multiclass", classes=(1.0, 2.0, 3.0), class_names=("a", "b", "c"))


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """Two sparse features and three of an embedding; the label depends on one of each."""
    generator = np.random.default_rng(6)
    x = generator.normal(size=(CLIENTS, 5)).astype(np.float32)
    x[:, :2][generator.uniform(size=(CLIENTS, 2)) < 0.3] = 0
    return x, (x[:, 0] + x[:, 3] + generator.normal(0, 0.5, CLIENTS) > 0).astype(float)


@pytest.fixture(scope="module")
def tables(spark: SparkSession, world: tuple[np.ndarray, np.ndarray]) -> dict[str, DataFrame]:
    x, _ = world
    sparse = [
        (f"c{n}", AS_OF, "agg", {k: float(v) for k, v in (("count", row[0]), ("dept=A", row[1])) if v})
        for n, row in enumerate(x)
    ]
    dense = [(f"c{n}", AS_OF, "b1", "d1", {"mean": [float(v) for v in row[2:]]}) for n, row in enumerate(x)]
    others = [("c1", AS_OF, "b2", "d1", {"mean": [0.0]}), ("only_here", AS_OF, "b1", "d1", {"mean": [1.0, 2.0, 3.0]})]
    return {
        "features": spark.createDataFrame(
            [*sparse, ("c1", AS_OF, "other", {"z": 1.0})],
            "client_id string, as_of timestamp, feature_set string, features map<string, float>",
        )
        .repartition(3)
        .cache(),
        "embeddings": spark.createDataFrame(
            [*dense, *others],
            "client_id string, as_of timestamp, backbone_id string, definition_id string, "
            "parts map<string, array<float>>",
        )
        .repartition(2)
        .cache(),
    }


@pytest.fixture(scope="module")
def blocks(tables: dict[str, DataFrame]) -> list[Block]:
    return learn_blocks(join_sources(SOURCES, tables), named={"mean": ["first", "second", "third"]})


def save(folder: Path, task: Task, blocks: list[Block], model: Boosted) -> str:
    names = [name for block in blocks for name in block.features]
    card = HeadCard(
        kind="lightgbm",
        task=task,
        representation="both",
        sources=SOURCES,
        blocks=tuple(blocks),
        features_hash=hash_names(names),
        params={},
        scale=tuple(model.scale.tolist()),
        calibration=Calibrator(),
        training_rows=CLIENTS,
        as_of=AS_OF.isoformat(),
    )
    return save_head(folder, card, model)


def with_names(scored: DataFrame) -> DataFrame:
    return scored.drop("margin").withColumns({name: F.lit("x") for name in ("task", "head_id", "run_id")})


def test_sources_join_on_client_and_time(
    tables: dict[str, DataFrame], blocks: list[Block], world: tuple[np.ndarray, np.ndarray]
) -> None:
    assert [block.features for block in blocks] == [("count", "dept=A"), ("first", "second", "third")]
    matrix = read_matrix(join_sources(SOURCES, tables), blocks)
    order = [int(client[1:]) for client in matrix.client_ids]
    assert sorted(order) == list(range(CLIENTS))
    assert np.array_equal(matrix.x.toarray(), world[0][order])
    assert matrix.groups == ("agg", "agg", "mean", "mean", "mean")
    assert np.array_equal(matrix.of_sources([1]).x.toarray(), world[0][order][:, 2:])


def test_union_keeps_clients_that_one_source_lacks(tables: dict[str, DataFrame]) -> None:
    joined = join_sources(SOURCES, tables, union=True)
    matrix = read_matrix(joined, learn_blocks(joined, union=True))
    assert matrix.x.shape == (CLIENTS + 1, 7)
    (extra,) = np.flatnonzero(matrix.client_ids == "only_here")
    assert matrix.x.toarray()[extra].tolist() == [0, 0, 1, 1, 2, 3, 0]
    assert matrix.names[2] == "agg:missing"


def test_a_part_that_is_missing_is_named(tables: dict[str, DataFrame]) -> None:
    source = Source(table="embeddings", backbone_id="b1", definition_id="d1", parts=("mean", "surprise"))
    with pytest.raises(DataError, match="part 'surprise'"):
        learn_blocks(join_sources([source], tables))
    with pytest.raises(ConfigError, match="must be known"):
        join_sources([Source(table="embeddings")], tables)


def test_scores_of_a_table_equal_those_of_the_matrix(
    spark: SparkSession,
    tables: dict[str, DataFrame],
    blocks: list[Block],
    world: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    joined = join_sources(SOURCES, tables)
    matrix = read_matrix(joined, blocks)
    y = world[1][[int(client[1:]) for client in matrix.client_ids]]
    model = train(matrix.x, y, BINARY, LightGBMConf(n_estimators=40), seed=1)
    head_id = save(tmp_path, BINARY, blocks, model)
    scored = with_deciles(score_rows(joined, tmp_path, head_id)).cache()
    rows = {row["client_id"]: row for row in scored.collect()}
    raw = dict(zip(matrix.client_ids, model.raw(matrix.x)[:, 0], strict=True))
    assert {client: row["margin"] for client, row in rows.items()} == raw
    assert all(len(row["reasons"]) == 3 for row in rows.values())
    assert {name for row in rows.values() for name in (r["feature"] for r in row["reasons"])} >= {"count", "second"}
    assert all(row["prediction"] == float(row["probabilities"][1] > 0.5) for row in rows.values())

    sizes = {row["decile"]: row["count"] for row in scored.groupBy("decile").count().collect()}
    assert set(sizes) == set(range(1, 11))
    assert all(0.95 * CLIENTS / 10 <= size <= 1.05 * CLIENTS / 10 for size in sizes.values())
    borders = scored.groupBy("decile").agg(F.min("margin").alias("low"), F.max("margin").alias("high"))
    ordered = borders.orderBy("decile").collect()
    assert all(one["low"] >= other["high"] for one, other in pairwise(ordered))

    conform(SCORES, with_names(scored))
    alone = score_rows(joined.where("client_id = 'c7'"), tmp_path, head_id).first()
    assert alone is not None
    assert alone.asDict() == {key: v for key, v in rows["c7"].asDict().items() if key != "decile"}


def test_deciles_of_equal_margins_are_of_one_size(spark: SparkSession) -> None:
    same = spark.range(1000).select(
        F.col("id").cast("string").alias("client_id"), F.lit(AS_OF).alias("as_of"), F.lit(0.5).alias("margin")
    )
    sizes = [row["count"] for row in with_deciles(same).groupBy("decile").count().collect()]
    assert len(sizes) == 10
    assert max(sizes) <= 101


@pytest.mark.parametrize(
    ("kind", "task"), [("logistic_regression", THREE), pytest.param("gbt", BINARY, marks=pytest.mark.slow)]
)
def test_mllib_heads_are_saved_and_score(
    spark: SparkSession,
    tables: dict[str, DataFrame],
    blocks: list[Block],
    world: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    kind: str,
    task: Task,
) -> None:
    x, bad = world
    y = bad if task is BINARY else 1.0 + np.digitize(x[:, 4], [-0.4, 0.4])
    labels = spark.createDataFrame([(f"c{n}", float(v)) for n, v in enumerate(y)], "client_id string, label double")
    joined = join_sources(SOURCES, tables)
    conf = MllibConf(max_iter=5, reg_param=0.001, max_depth=3, step_size=0.5)
    model = fit_mllib(joined.join(labels, on="client_id", how="inner"), blocks, task, kind, conf, seed=1)
    model.write().overwrite().save((tmp_path / "head").as_uri())
    assert isinstance(PipelineModel.load((tmp_path / "head").as_uri()), PipelineModel)
    scored = with_deciles(score_mllib(joined, blocks, task, tmp_path / "head"))
    rows = {row["client_id"]: row for row in scored.collect()}
    conform(SCORES, with_names(scored))
    p = np.array([rows[f"c{n}"]["probabilities"] for n in range(CLIENTS)], np.float64)
    assert value(metrics_of(task.kind)[0], task.encode(y), p) > 0.85
    assert {row["prediction"] for row in rows.values()} <= set(task.classes)
    accuracy = np.mean([rows[f"c{n}"]["prediction"] == v for n, v in enumerate(y)])
    assert accuracy > 0.65


def test_gbt_refuses_more_than_two_classes(tables: dict[str, DataFrame], blocks: list[Block]) -> None:
    joined = join_sources(SOURCES, tables).withColumn("label", F.lit(1.0))
    with pytest.raises(ConfigError, match="has 3 classes"):
        fit_mllib(joined, blocks, THREE, "gbt", MllibConf(), seed=1)


def test_tasks_are_told_by_the_spec_or_by_their_labels(spark: SparkSession) -> None:
    rows = [
        *[("bad", float(n % 2), ("no", "yes")[n % 2]) for n in range(6)],
        *[("age", float(n % 3), None) for n in range(6)],
        *[("spend", n / 3, None) for n in range(6)],
    ]
    labels = spark.createDataFrame(rows, "task string, label double, label_text string")
    age, bad, spend = find_tasks(labels, None, {})
    assert (bad.kind, bad.class_names) == ("binary", ("no", "yes"))
    assert (age.kind, age.class_names) == ("multiclass", ("0", "1", "2"))
    assert spend.kind == "regression"
    declared = {"age": Task(name="age", kind="regression")}
    assert [task.kind for task in find_tasks(labels, ["bad", "age"], declared)] == ["regression", "binary"]
    with pytest.raises(DataError, match=r"no labels of task 'sped': did you mean 'spend'"):
        find_tasks(labels, ["sped"], {})
    with pytest.raises(DataError, match="at least two classes"):
        find_tasks(labels.where("label = 0"), ["bad"], {})


def test_a_large_labelled_sample_is_cut_by_whole_clients(spark: SparkSession) -> None:
    labels = spark.range(4000).select(
        F.format_string("c%d", F.floor(F.col("id") / 2)).alias("client_id"),
        F.date_add(F.lit(AS_OF), (F.col("id") % 2).cast("int")).cast("timestamp").alias("as_of"),
        F.lit("bad").alias("task"),
        F.lit(1.0).alias("label"),
    )
    clients = labels.select("client_id").distinct().withColumn("split", F.lit("train"))
    cut = labelled_rows(labels, clients, [BINARY.name], max_rows=1000)
    per_client = {row["count"] for row in cut.groupBy("client_id").count().collect()}
    assert per_client == {2}
    assert 800 < cut.count() < 1200
    assert cut.exceptAll(labelled_rows(labels, clients, [BINARY.name], max_rows=1000)).isEmpty()


def test_labels_that_only_stratify_are_read_beside_the_judged_ones(spark: SparkSession) -> None:
    rows = [("c1", "bad", 1.0), ("c1", "age", 3.0), ("c1", "spend", 7.0), ("c2", "bad", 0.0)]
    labels = spark.createDataFrame(rows, "client_id string, task string, label double")
    clients = spark.createDataFrame([("c1", "train"), ("c2", "test")], "client_id string, split string")
    frame = read_rows(labelled_rows(labels.withColumn("as_of", F.lit(AS_OF)), clients, ["bad", "age"]))
    assert sorted(zip(frame["client_id"], frame["task"], strict=True)) == [("c1", "age"), ("c1", "bad"), ("c2", "bad")]
