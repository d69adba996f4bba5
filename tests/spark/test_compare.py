"""The compare job on real tables: the same rows for all, slices by SQL, and what is left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn import metrics as sk

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.evaluation import comparison
from ledgerlm.evaluation.comparison import CompareConf, compare
from ledgerlm.events.condition import Condition
from ledgerlm.heads.tasks import Task
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import EVENTS, LABELS, fill, write_pipeline

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = ("bread", "fuel", "toys")
CLIENTS = 240
TASK = Task(name="next", kind="multiclass", classes=(0.0, 1.0, 2.0), class_names=NAMES)


def draws() -> tuple[np.ndarray, np.ndarray]:
    """True probabilities of each client, and labels drawn from them."""
    random = np.random.default_rng(3)
    p = random.dirichlet([2.0, 1.0, 0.4], CLIENTS)
    return p, np.array([random.choice(3, p=row) for row in p])


def tables(spark: SparkSession, scores: list[tuple[object, ...]]) -> dict[str, DataFrame]:
    """Labels, clients, scores and bayes."""
    p, y = draws()
    ids = [f"c{n:03d}" for n in range(CLIENTS)]
    frames = {
        "labels": spark.createDataFrame(
            [(c, "next", AS_OF, float(k), NAMES[k]) for c, k in zip(ids, y, strict=True)], LABELS
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
    }
    return {name: frame.withColumn("run_id", F.lit("before")) for name, frame in frames.items()}


def compared(frames: dict[str, DataFrame], conf: CompareConf, heads: dict[str, list[str]]) -> Made:
    return compare(
        frames["labels"],
        frames["clients"],
        frames["scores"],
        [TASK],
        conf,
        heads=heads,
        bayes=frames["bayes"],
        seed=7,
    )


def said(head: str, p: np.ndarray) -> list[tuple[object, ...]]:
    return [
        (f"c{n:03d}", "next", AS_OF, head, [float(one) for one in row], float(row.argmax()), 1, [])
        for n, row in enumerate(p)
    ]


def test_figures_are_those_of_the_rows_that_all_methods_scored(spark: SparkSession) -> None:
    p, y = draws()
    good, poor = 0.8 * p + 0.2 / 3, np.tile([0.2, 0.3, 0.5], (CLIENTS, 1))
    unscored = 5
    scores = said("good-id", good)[:-unscored] + said("poor-id", poor)
    heads = {"good": ["good-id"], "poor": ["poor-id"]}
    frames = tables(spark, scores)
    conf = CompareConf(
        methods={"good": "heads:good", "poor": "heads:poor"},
        tasks=("next",),
        baseline="poor",
        slices={"test": "split = 'test'", "bank B": "split = 'test' AND bank = 'B'"},
        bootstrap=100,
    )
    result = compared(frames, conf, heads)
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
    board = result.tables["leaderboard"]
    assert board.slice == {"stage": ("compare",)}
    assert {row["split"] for row in board.frame.collect()} == {"compare/test", "compare/bank B"}
    assert (board.frame.count(), result.rows_in) == (result.rows_out, len(test))
    assert [one["title"] for one in result.report] == ["next on test", "next on bank B"]
    # Without details the report is short.
    brief = compared(frames, conf.model_copy(update={"details": False}), heads)
    assert brief.rows_out == result.rows_out
    headings = [block["heading"] for block in brief.report[0]["blocks"]]
    assert headings == ["Methods", "Difference to poor", "Share of the reachable"]


def test_the_way_ends_at_what_can_be_reached_where_that_is_known(spark: SparkSession) -> None:
    p, _ = draws()
    frames = tables(spark, said("one", 0.5 * p + 0.5 / 3))
    nearer = spark.createDataFrame(
        [(f"c{n:03d}", "next", AS_OF, row.tolist()) for n, row in enumerate(0.7 * p + 0.3 / 3)],
        "client_id string, task string, as_of timestamp, probabilities array<double>",
    )
    conf = CompareConf(methods={"m": "heads"}, tasks=("next",), baseline="m", bootstrap=100)

    def judged(reachable: DataFrame | None) -> tuple[dict[str, Any], str]:
        made = compare(
            frames["labels"],
            frames["clients"],
            frames["scores"],
            [TASK],
            conf,
            heads={"m": ["one"]},
            bayes=frames["bayes"],
            reachable=reachable,
            seed=7,
        )
        [note] = [one["note"] for one in made.report[0]["blocks"] if one["heading"] == "Share of the reachable"]
        return made.facts["compared"][0], note

    near, far = judged(nearer), judged(None)
    assert (near[0]["bound"], far[0]["bound"]) == ("reachable", "bayes")
    assert "other simulated clients" in near[1] and "hidden traits" in far[1]
    assert set(near[0]["reached"]) == {"m"}
    assert far[0]["reached"]["m"]["log_loss"] < near[0]["reached"]["m"]["log_loss"] < 1
    losses = {one["method"]: one["mean"] for one in near[0]["figures"] if one["metric"] == "log_loss"}
    assert losses["bayes"] < losses["reachable"] < losses["m"]
    # A bound that lacks a row of the task is none.
    assert judged(nearer.where("client_id <> 'c001'"))[0]["bound"] == "bayes"
    with pytest.raises(ValueError, match="'reachable' is taken by a bound"):
        CompareConf(methods={"reachable": "heads"}, tasks=("next",), baseline="reachable")


def test_probabilities_of_exactly_0_and_1_are_judged_and_rows_of_zeros_are_refused(spark: SparkSession) -> None:
    _, y = draws()
    sure = np.eye(3)[np.where(np.arange(CLIENTS) % 5 == 1, (y + 1) % 3, y)]
    conf = CompareConf(methods={"m": "heads"}, tasks=("next",), baseline="m", bootstrap=100)
    figures = compared(tables(spark, said("sure", sure)), conf, {"m": ["sure"]}).facts["leaderboard"]
    loss = next(one["mean"] for one in figures if one["metric"] == "log_loss" and one["method"] == "m")
    assert loss == pytest.approx(0.2 * -np.log(np.finfo(float).eps), rel=0.02)
    with pytest.raises(
        DataError, match=f"m gave {CLIENTS // 2} rows whose probabilities are no numbers or add up to 0"
    ):
        compared(tables(spark, said("none", sure * 0)), conf, {"m": ["none"]})


def test_what_is_read_fits_the_driver_whatever_max_rows_says(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, _ = draws()
    conf = CompareConf(methods={"m": "heads"}, tasks=("next",), baseline="m", bootstrap=100)
    frames = tables(spark, said("one", p))
    whole = compared(frames, conf, {"m": ["one"]})
    monkeypatch.setattr(comparison, "collectable", lambda _: 60 * (200 + 8 * 2 * 3))
    part = compared(frames, conf, {"m": ["one"]})
    assert whole.rows_in == CLIENTS // 2
    assert part.rows_in is not None and 35 < part.rows_in < 85


def test_mistakes_are_told(spark: SparkSession) -> None:
    p, _ = draws()
    frames = tables(spark, said("one", p) + said("two", p) + said("short", p[:, :2]))
    conf = CompareConf(methods={"m": "heads"}, tasks=("next",), baseline="m", bootstrap=100)
    with pytest.raises(DataError, match="several scores"):
        compared(frames, conf, {"m": ["one", "two"]})
    with pytest.raises(ConfigError, match="no condition over"):
        compared(frames, conf.model_copy(update={"slices": {"x": Condition("colour = 'red'")}}), {"m": ["one"]})
    quantity = TASK.model_copy(update={"kind": "regression"})
    with pytest.raises(ConfigError, match="next is a quantity"):
        compare(frames["labels"], frames["clients"], frames["scores"], [quantity], conf, heads={"m": ["one"]}, seed=1)


def test_the_job_compares_what_stages_have_scored(spark: SparkSession, tmp_path: Path) -> None:
    frames = tables(spark, [])
    events = [(f"c{n:03d}", f"e{n}", AS_OF - timedelta(days=1), 0, Decimal(-1), NAMES[n % 3]) for n in range(CLIENTS)]
    filled = {
        "events": spark.createDataFrame(events, EVENTS),
        **{name: frames[name].drop("run_id") for name in ("labels", "clients")},
    }
    lake = fill(spark, tmp_path, filled)
    symbols = [{"name": name, "fields": {"category": [name]}} for name in NAMES]
    stages: dict[str, dict[str, Any]] = {
        "guess": {"task": "next", "symbols": symbols, "orders": [1]},
        "compare": {
            "methods": {"often": "guess:frequency", "chain": "guess:markov1"},
            "tasks": ["next"],
            "baseline": "often",
            "bootstrap": 100,
        },
    }
    record = Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run().stages[-1].record
    board = lake.read("leaderboard").where("stage = 'compare'")
    assert board.count() == record.rows_out > 0
    assert {row["method"] for row in board.collect()} == {"often", "chain"}
    assert [one["title"] for one in record.facts["report"]] == ["next on test"]
    stages["compare"]["methods"] = {"often": "guess:frequency", "m": "guess:markov9"}
    with pytest.raises(ConfigError, match="not 'markov9'"):
        Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run()
