"""Vectors joined and learned in Spark, scores over a table, deciles, and MLlib heads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.collect import collectable, parse_size
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.evaluation.protocol import bounded
from ledgerlm.heads import publish
from ledgerlm.heads.boosting import Boosted, LightGBMConf, train
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.head import HeadCard, hash_names, save_head
from ledgerlm.heads.metrics import metrics_of, value
from ledgerlm.heads.mllib import MllibConf, MllibKind, fit_mllib, score_mllib
from ledgerlm.heads.model import Head, score
from ledgerlm.heads.publish import with_deciles
from ledgerlm.heads.samples import labelled_rows, read_rows
from ledgerlm.heads.scoring import score_rows, scored_rows
from ledgerlm.heads.tasks import Task, find_tasks
from ledgerlm.heads.vectors import (
    Block,
    Source,
    count_values,
    join_sources,
    learn_blocks,
    method_matrices,
    read_matrix,
    readable,
    within,
)
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
    return scored.drop("margin").withColumns({name: F.lit("x") for name in ("task", "run_id")})


def placed(said: DataFrame) -> DataFrame:
    """With deciles, as one head's."""
    return with_deciles(said.withColumn("head_id", F.lit("x")))


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
    scored = placed(score_rows(joined, tmp_path, head_id)).cache()
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
    assert alone.asDict() == {k: v for k, v in rows["c7"].asDict().items() if k not in ("decile", "head_id")}


def test_deciles_of_equal_margins_are_of_one_size(spark: SparkSession) -> None:
    same = spark.range(1000).select(
        F.col("id").cast("string").alias("client_id"), F.lit(AS_OF).alias("as_of"), F.lit(0.5).alias("margin")
    )
    sizes = [row["count"] for row in placed(same).groupBy("decile").count().collect()]
    assert len(sizes) == 10
    assert max(sizes) <= 101


def test_deciles_are_among_clients_of_one_date_and_head(spark: SparkSession) -> None:
    """All of the later date score higher than all of the earlier one; each date has a best tenth of its own."""
    said = spark.range(400).select(
        F.col("id").cast("string").alias("client_id"),
        F.date_add(F.lit(AS_OF), (F.col("id") % 2).cast("int")).cast("timestamp").alias("as_of"),
        (F.col("id") % 2 * 1000.0 + F.col("id")).alias("margin"),
    )
    heads = said.withColumn("head_id", F.lit("up")).unionByName(
        said.withColumns({"head_id": F.lit("down"), "margin": -F.col("margin")})
    )
    found = with_deciles(heads).groupBy("head_id", "as_of", "decile").agg(F.count(F.lit(1)).alias("n"))
    assert {row["n"] for row in found.collect()} == {20}
    assert found.count() == 2 * 2 * 10
    best = with_deciles(heads).where("decile = 1 AND head_id = 'down'").selectExpr("cast(client_id AS int) AS id")
    assert sorted(row["id"] for row in best.collect()) == list(range(40))
    few = with_deciles(heads.where("head_id = 'up' AND client_id IN ('0', '2', '4', '1')")).collect()
    assert {row["client_id"]: row["decile"] for row in few} == {"4": 4, "2": 7, "0": 10, "1": 10}


def test_scores_of_several_heads_are_one_slice(spark: SparkSession) -> None:
    rows = [(f"c{n}", AS_OF, [1 - n / 9, n / 9]) for n in range(10)]
    told = spark.createDataFrame(rows, "client_id string, as_of timestamp, p array<double>")
    said = {"one": scored_rows(told, "p", BINARY), "two": scored_rows(told.where("client_id > 'c4'"), "p", BINARY)}
    heads = [{"head_id": "one", "task": "bad", "name": "first"}, {"head_id": "two", "task": "good"}]
    runs = []

    def keep(frame: DataFrame) -> DataFrame:
        runs.append(frame)
        return frame.cache()

    made = publish.scored(said, heads, keep=keep)
    assert (made.rows_in, made.rows_out, len(runs)) == (15, 15, 2)
    assert made.tables["scores"].slice == {"head_id": ("one", "two")}
    frame = made.tables["scores"].frame
    conform(SCORES, frame.withColumn("run_id", F.lit("r")))
    assert {(row["head_id"], row["task"]): row["count"] for row in frame.groupBy("head_id", "task").count().collect()}
    deciles = {(row["head_id"], row["client_id"]): row["decile"] for row in frame.collect()}
    assert [deciles["one", f"c{n}"] for n in range(10)] == list(range(10, 0, -1)), "also where p is exactly 0 or 1"
    assert deciles["two", "c9"] == 2, "the best of five"
    assert [(one["head_id"], one["rows"], one.get("name")) for one in made.facts["heads"]] == [
        ("one", 10, "first"),
        ("two", 5, None),
    ]
    together = (
        said["one"].withColumn("head_id", F.lit("one")).unionByName(said["two"].withColumn("head_id", F.lit("two")))
    )
    again = publish.scored(together, heads, keep=keep)
    assert again.tables["scores"].frame.select(*frame.columns).exceptAll(frame).isEmpty()
    assert [one["rows"] for one in again.facts["heads"]] == [10, 5]
    with pytest.raises(DataError, match="unknown heads: two"):
        publish.scored(together, heads[:1], keep=keep)
    with pytest.raises(DataError, match="no head to score with"):
        publish.scored({}, [], keep=keep)


@pytest.mark.parametrize("strange", [float("inf"), float("nan")])
def test_numbers_that_no_head_can_learn_from_are_counted_and_refused(
    spark: SparkSession, tables: dict[str, DataFrame], strange: float
) -> None:
    features = tables["features"].withColumn(
        "features",
        F.when(
            F.col("client_id").isin("c3", "c5"), F.create_map(F.lit("count"), F.lit(strange).cast("float"))
        ).otherwise(F.col("features")),
    )
    joined = join_sources(SOURCES, {**tables, "features": features})
    with pytest.raises(DataError, match=r"2 of 'agg', the most of 'count' \(2\)"):
        learn_blocks(joined)
    parts = F.when(
        F.col("client_id") == "c3",
        F.map_from_arrays(
            F.array(F.lit("mean")), F.array(F.array(F.lit(0.0), F.lit(strange), F.lit(0.0)).cast("array<float>"))
        ),
    ).otherwise(F.col("parts"))
    joined = join_sources(SOURCES, {**tables, "embeddings": tables["embeddings"].withColumn("parts", parts)})
    with pytest.raises(DataError, match=r"1 of 'mean', the most of '1' \(1\)"):
        learn_blocks(joined)


def test_a_client_whose_vector_is_not_finite_is_set_aside_and_the_others_are_scored(
    spark: SparkSession,
    tables: dict[str, DataFrame],
    blocks: list[Block],
    world: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    matrix = read_matrix(join_sources(SOURCES, tables), blocks)
    y = world[1][[int(client[1:]) for client in matrix.client_ids]]
    head_id = save(tmp_path, BINARY, blocks, train(matrix.x, y, BINARY, LightGBMConf(n_estimators=5), seed=1))
    parts = F.transform_values("parts", lambda _, numbers: F.transform(numbers, lambda _: F.lit("inf").cast("float")))
    changed = tables["embeddings"].withColumn(
        "parts", F.when(F.col("client_id") == "c3", parts).otherwise(F.col("parts"))
    )
    made = score([Head.load(tmp_path, head_id)], {**tables, "embeddings": changed}, keep=lambda frame: frame.cache())
    assert (made.rows_in, made.rows_out, made.quarantined) == (CLIENTS, CLIENTS - 1, 1)
    assert made.aside is not None
    [aside] = made.aside.collect()
    assert (aside["reason"], "c3" in aside["detail"], head_id in aside["payload"]) == ("not_finite", True, True)
    assert made.tables["scores"].frame.where("client_id = 'c3'").isEmpty()


@pytest.mark.parametrize(
    ("kind", "task"), [("logistic_regression", THREE), pytest.param("gbt", BINARY, marks=pytest.mark.slow)]
)
def test_mllib_heads_are_saved_and_score(
    spark: SparkSession,
    tables: dict[str, DataFrame],
    blocks: list[Block],
    world: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    kind: MllibKind,
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
    scored = placed(score_mllib(joined, blocks, task, tmp_path / "head"))
    rows = {row["client_id"]: row for row in scored.collect()}
    conform(SCORES, with_names(scored))
    p = np.array([rows[f"c{n}"]["probabilities"] for n in range(CLIENTS)], np.float64)
    assert value(metrics_of(task.kind)[0], task.encode(y), p) > 0.85
    assert {row["prediction"] for row in rows.values()} <= set(task.classes)
    accuracy = np.mean([rows[f"c{n}"]["prediction"] == v for n, v in enumerate(y)])
    assert accuracy > 0.65


@pytest.mark.parametrize("kind", ["logistic_regression", "random_forest", "gbt"])
def test_mllib_refuses_one_class(
    spark: SparkSession, tables: dict[str, DataFrame], blocks: list[Block], kind: MllibKind
) -> None:
    joined = join_sources(SOURCES, tables).withColumn("label", F.lit(1.0))
    with pytest.raises(DataError, match="task bad: all 600 rows to learn from are of class 'bad'"):
        fit_mllib(joined, blocks, BINARY, kind, MllibConf(max_iter=2), seed=1)


def test_what_is_read_is_bounded_by_numbers_and_not_by_rows(
    spark: SparkSession, tables: dict[str, DataFrame], world: tuple[np.ndarray, np.ndarray]
) -> None:
    joined = join_sources(SOURCES, tables)
    values = int((world[0][:, :2] != 0).sum()) + 3 * CLIENTS
    assert count_values(joined) == (CLIENTS, values)
    assert within(joined, values) == (joined, 1.0)
    half, share = within(joined, values // 2)
    assert share == pytest.approx(0.5, abs=0.01)
    assert 0.4 * values < count_values(half)[1] < 0.6 * values
    again = within(joined, values // 2)[0].select("client_id")
    assert half.select("client_id").exceptAll(again).isEmpty(), "the same ones every time"
    with pytest.raises(DataError, match="give the driver more"):
        within(joined, 0)
    keys = joined.select("client_id", "as_of")
    kept: list[DataFrame] = []

    def keep(frame: DataFrame) -> DataFrame:
        kept.append(frame)
        return frame.cache()

    representations = {"both": SOURCES, "agg": SOURCES[:1]}
    facts: dict[str, Mapping[str, Any]] = {}
    found = method_matrices(representations, tables, facts.__getitem__, keys, most=values // 2, keep=keep)
    assert len(kept) == 1, "the rows are joined once"
    assert 0.4 * CLIENTS < found["both"].x.shape[0] == found["agg"].x.shape[0] < 0.6 * CLIENTS


def test_the_profile_says_what_may_be_read(spark: SparkSession) -> None:
    # The laptop's driver has 2 GB, and Spark's own bound on results is 1 GB.
    assert collectable(spark) == int(0.8 * 2**30)
    assert readable(spark) == collectable(spark) // 8
    assert parse_size("512m", unit="b") == 512 * 2**20
    assert parse_size("1024", unit="m") == 2**30
    assert parse_size("2gb", unit="b") == 2**31
    with pytest.raises(ConfigError, match="'many' is no size"):
        parse_size("many", unit="b")


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
    cut = labelled_rows(bounded(labels, 1000), clients, [BINARY.name])
    per_client = {row["count"] for row in cut.groupBy("client_id").count().collect()}
    assert per_client == {2}
    assert 800 < cut.count() < 1200
    assert cut.exceptAll(labelled_rows(bounded(labels, 1000), clients, [BINARY.name])).isEmpty()


def test_labels_that_only_stratify_are_read_beside_the_judged_ones(spark: SparkSession) -> None:
    rows = [("c1", "bad", 1.0), ("c1", "age", 3.0), ("c1", "spend", 7.0), ("c2", "bad", 0.0)]
    labels = spark.createDataFrame(rows, "client_id string, task string, label double")
    clients = spark.createDataFrame([("c1", "train"), ("c2", "test")], "client_id string, split string")
    frame = read_rows(labelled_rows(labels.withColumn("as_of", F.lit(AS_OF)), clients, ["bad", "age"]))
    assert sorted(zip(frame["client_id"], frame["task"], strict=True)) == [("c1", "age"), ("c1", "bad"), ("c2", "bad")]
