"""Scoring in Spark against `Booster.predict` on a NumPy array that is there already.

In rows a CPU second of the process tree: what is a core's on a machine that nobody else uses. Spark reads the vectors
from a table, lays them out as a matrix, scores, calibrates, and gives rows back; LightGBM alone reads an array.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from ledgerlm.heads.boosting import Boosted, LightGBMConf
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.head import HeadCard, hash_names
from ledgerlm.heads.model import Head
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Block, Source
from tests.benchmarks.bench_aggregates import alternately

ROWS, LEARNT, WIDTH = 40_000, 3_000, 64
COPIES = 5  # of the rows: for few of them planning and opening the head is all there is
FEATURES, FILLED = 800, 120  # aggregate features that there are, and those that a client has
TASK = Task(name="churn", kind="binary", classes=(0.0, 1.0), class_names=("no", "yes"))
EMBEDDING = Source(table="embeddings", backbone_id="b", definition_id="d", parts=("mean", "std"))
AGGREGATES = Source(table="features")
AS_OF = np.datetime64("2025-01-01", "us")


def run(spark: SparkSession, workdir: Path, turns: int = 2) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(ROWS, 2 * WIDTH)).astype(np.float32)
    counts = np.zeros((ROWS, FEATURES), np.float32)
    places = np.argsort(draw.random((ROWS, FEATURES)) - np.linspace(0.6, 0, FEATURES), axis=1)[:, :FILLED]
    np.put_along_axis(counts, places, draw.lognormal(size=(ROWS, FILLED)).astype(np.float32), axis=1)
    tables = {
        "embeddings": _embeddings(vectors),
        "features": _features(counts, np.sort(places, axis=1)),
    }
    for name, table in tables.items():
        shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / name).mkdir(parents=True)
        for part in range(COPIES):
            clients = pa.array([f"c{part}-{place}" for place in range(ROWS)])
            pq.write_table(table.set_column(0, "client_id", clients), workdir / name / f"part-{part}.parquet")
    read = {name: spark.read.parquet(str(workdir / name)) for name in tables}
    return [
        _row(what, read, _head(sources, x, workdir / "heads"), x, turns)
        for what, sources, x in (
            (f"an embedding of {2 * WIDTH} numbers", (EMBEDDING,), vectors),
            (f"{FEATURES} aggregate features, of which a client has {FILLED}", (AGGREGATES,), counts),
            ("both", (EMBEDDING, AGGREGATES), np.hstack([vectors, counts])),
        )
    ]


def _row(what: str, tables: Any, head: Head, x: NDArray[np.float32], turns: int) -> dict[str, Any]:
    assert isinstance(head.model, Boosted)
    booster, scaled, rows = head.model.booster, x / head.model.scale, ROWS * COPIES

    def in_spark() -> None:
        head.transform(head.inputs(tables), reasons=0).write.mode("overwrite").format("noop").save()

    def alone() -> None:
        for _ in range(COPIES):
            booster.predict(scaled, num_threads=1)

    ours, theirs = alternately([in_spark, alone], turns)
    return {
        "what": f"scoring in Spark, rows a CPU second: {what}",
        "against": "Booster.predict on a NumPy array, one thread",
        "ratio": theirs / ours,
        "target": 0.8,
        "better": "higher",
        "detail": f"{rows / ours:,.0f} against {rows / theirs:,.0f} rows a CPU second, {booster.num_trees()} trees",
    }


def _head(sources: tuple[Source, ...], x: NDArray[np.float32], folder: Path) -> Head:
    """Trees of the preset, learnt from a few of the rows."""
    learnt = x[:LEARNT]
    y = learnt[:, :8].sum(axis=1) > np.median(learnt[:, :8].sum(axis=1))
    conf = LightGBMConf()
    scale = np.abs(learnt).max(axis=0)
    scale[scale == 0] = 1
    params = conf.params(TASK, seed=1, threads=1)
    booster = lgb.train(params, lgb.Dataset(learnt / scale, y.astype(float)), num_boost_round=conf.n_estimators)
    blocks = [block for index, source in enumerate(sources) for block in _blocks(source, index)]
    card = HeadCard(
        kind="lightgbm",
        task=TASK,
        representation="bench",
        sources=sources,
        blocks=tuple(blocks),
        features_hash=hash_names([name for block in blocks for name in block.features]),
        params={},
        scale=tuple(scale.tolist()),
        calibration=Calibrator(),
        training_rows=LEARNT,
        as_of="2025-01-01",
    )
    return Head(card=card, model=Boosted(booster=booster, scale=scale, outputs=1)).save(folder)


def _blocks(source: Source, index: int) -> list[Block]:
    if source.table == "features":
        names = tuple(_name(place) for place in range(FEATURES))
        return [Block(column=f"s{index}_agg", group="agg", sparse=True, names=names)]
    return [
        Block(
            column=f"s{index}_{part}",
            group=part,
            sparse=False,
            names=tuple(f"{part}:{place}" for place in range(WIDTH)),
        )
        for part in source.parts
    ]


def _name(place: int) -> str:
    """As long as such names are."""
    return f"category=CATEGORY {place:04d}:count"


def _keys() -> dict[str, pa.Array]:
    return {
        "client_id": pa.array([f"c{place}" for place in range(ROWS)]),
        "as_of": pa.array(np.full(ROWS, AS_OF), pa.timestamp("us", tz="UTC")),
    }


def _embeddings(vectors: NDArray[np.float32]) -> pa.Table:
    offsets = np.arange(2 * ROWS + 1, dtype=np.int32) * WIDTH
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))
    names = pa.array(["mean", "std"] * ROWS)
    parts = pa.MapArray.from_arrays(pa.array(np.arange(ROWS + 1, dtype=np.int32) * 2), names, lists)
    kinds = {"backbone_id": pa.array(["b"] * ROWS), "definition_id": pa.array(["d"] * ROWS)}
    return pa.table({**_keys(), **kinds, "parts": parts})


def _features(counts: NDArray[np.float32], places: NDArray[np.int64]) -> pa.Table:
    names = pa.array([_name(place) for place in range(FEATURES)]).take(pa.array(places.ravel()))
    values = pa.array(np.take_along_axis(counts, places, axis=1).ravel())
    maps = pa.MapArray.from_arrays(pa.array(np.arange(ROWS + 1, dtype=np.int32) * FILLED), names, values)
    return pa.table({**_keys(), "feature_set": pa.array(["agg"] * ROWS), "features": maps})
