"""The compare job on real tables: the same rows for all, slices by SQL, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from sklearn import metrics as sk

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.jobs.compare import CompareConf
from ledgerlm.jobs.compare import run as run_compare
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.context import Context
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import BEFORE

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = ("bread", "fuel", "toys")
CLIENTS = 240
SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
client: client
time: {column: time}
fields: [{name: category}]
"""


def draws() -> tuple[np.ndarray, np.ndarray]:
    """True probabilities of each client, and labels drawn from them."""
    random = np.random.default_rng(3)
    p = random.dirichlet([2.0, 1.0, 0.4], CLIENTS)
    return p, np.array([random.choice(3, p=row) for row in p])


def context(spark: SparkSession, folder: Path, scores: list[tuple[object, ...]], heads: dict[str, object]) -> Context:
    """A lake with labels, clients, scores and bayes, and the record of a stage that scored."""
    p, y = draws()
    (folder / "spec.yaml").write_text(SPEC)
    content = {
        "pipeline": "small",
        "out": str(folder),
        "data": str(folder / "spec.yaml"),
        "stages": {
            "heads": {"job": "score"},
            "compare": {"methods": {"good": "heads:good"}, "tasks": ["next"], "baseline": "good"},
        },
    }
    (folder / "run.yaml").write_text(json.dumps(content))
    ids = [f"c{n:03d}" for n in range(CLIENTS)]
    frames = {
        "labels": spark.createDataFrame(
            [(c, "next", AS_OF, float(k), NAMES[k]) for c, k in zip(ids, y, strict=True)],
            "client_id string, task string, as_of timestamp, label double, label_text string",
        ),
        "clients": spark.createDataFrame(
            [(c, "test" if n % 2 else "train", "B" if n % 4 == 1 else "A") for n, c in enumerate(ids)],
            "client_id string, split string, bank string",
        ),
        "scores": spark.createDataFrame(
            scores,
            "client_id string, task string, as_of timestamp, head_id string, probabilities array<float>, "
            "prediction double, decile int, reasons array<struct<feature string, contribution float>>",
        ),
        "bayes": spark.createDataFrame(
            [(c, "next", AS_OF, row.tolist()) for c, row in zip(ids, p, strict=True)],
            "client_id string, task string, as_of timestamp, probabilities array<double>",
        ),
        "leaderboard": spark.createDataFrame(
            [("next", "agg", "accuracy", "test", 0.5, 0.0, 5, 1)],
            "task string, method string, metric string, split string, mean double, std double, folds int, seeds int",
        ),
    }
    lake = Lake(str(folder / "lake"), spark)
    for table, rows in frames.items():
        lake.write(table, rows, by=BEFORE)
    runner = Runner(load_pipeline(folder / "run.yaml"), Progress())
    record = runner.records.begin("heads", "score", "spark", "x", "before")
    runner.records.save(replace(record, done=True, facts=heads))
    return runner._context(runner.records.begin("compare", "compare", "spark", "y", runner.run_id))


def said(head: str, p: np.ndarray) -> list[tuple[object, ...]]:
    return [
        (f"c{n:03d}", "next", AS_OF, head, [float(one) for one in row], float(row.argmax()), 1, [])
        for n, row in enumerate(p)
    ]


def test_figures_are_those_of_the_rows_that_all_methods_scored(spark: SparkSession, tmp_path: Path) -> None:
    p, y = draws()
    good, poor = 0.8 * p + 0.2 / 3, np.tile([0.2, 0.3, 0.5], (CLIENTS, 1))
    unscored = 5
    scores = said("good-id", good)[:-unscored] + said("poor-id", poor)
    heads = {"heads": [{"head_id": "good-id", "name": "good"}, {"head_id": "poor-id", "name": "poor"}]}
    ctx = context(spark, tmp_path, scores, heads)
    conf = CompareConf(
        methods={"good": "heads:good", "poor": "heads:poor"},
        tasks=("next",),
        baseline="poor",
        slices={"test": "split = 'test'", "bank B": "split = 'test' AND bank = 'B'"},
        bootstrap=100,
    )
    result = run_compare(ctx, conf)
    whole, bank = result.facts["compared"]
    test = np.arange(1, CLIENTS, 2)
    rows = test[test < CLIENTS - unscored]
    assert (whole["rows"], whole["left_out"]) == (len(rows), len(test) - len(rows))
    assert bank["rows"] == sum(1 for n in rows if n % 4 == 1)
    figures = {(one["method"], one["metric"]): one for one in whole["figures"]}
    chosen = good[rows].argmax(axis=1)
    assert figures["good", "f1_macro"]["mean"] == pytest.approx(sk.f1_score(y[rows], chosen, average="macro"))
    assert figures["good", "recall: fuel"]["mean"] == pytest.approx(
        sk.recall_score(y[rows], chosen, labels=[1], average="macro")
    )
    assert figures["good", "log_loss"]["mean"] == pytest.approx(
        sk.log_loss(y[rows], good[rows].astype(np.float32), labels=[0, 1, 2]), abs=1e-5
    )
    gained = figures["good", "accuracy"]
    assert gained["baseline"] == "poor"
    assert gained["delta_low"] < gained["delta"] < gained["delta_high"]
    assert gained["delta_low"] > 0
    assert 0.7 < whole["reached"]["good"]["log_loss"] < 1.0
    board = ctx.read("leaderboard").where("metric = 'accuracy'").collect()
    assert {row["split"] for row in board} == {"test", "compare/test", "compare/bank B"}
    assert [one["title"] for one in result.facts["report"]] == ["next on test", "next on bank B"]
    # A rerun of the stage replaces its own rows and no others; without details the report is short.
    brief = run_compare(ctx, conf.model_copy(update={"details": False}))
    assert brief.rows_out == result.rows_out
    headings = [block["heading"] for block in brief.facts["report"][0]["blocks"]]
    assert headings == ["Methods", "Difference to poor", "Share of the reachable"]
    assert ctx.read("leaderboard").count() == result.rows_out + 1


def test_mistakes_are_told(spark: SparkSession, tmp_path: Path) -> None:
    p, _ = draws()
    ctx = context(spark, tmp_path, said("one", p) + said("two", p) + said("short", p[:, :2]), {"heads": ["one", "two"]})
    conf = CompareConf(methods={"m": "heads"}, tasks=("next",), baseline="m", bootstrap=100)
    with pytest.raises(DataError, match="several scores"):
        run_compare(ctx, conf)
    with pytest.raises(ConfigError, match="no condition over"):
        run_compare(ctx, conf.model_copy(update={"slices": {"x": "colour = 'red'"}}))
    with pytest.raises(ConfigError, match="has one, two, not 'three'"):
        run_compare(ctx, conf.model_copy(update={"methods": {"m": "heads:three"}}))
