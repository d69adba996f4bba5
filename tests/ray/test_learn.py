"""The learn and forecast jobs on real Spark and Ray Train: learnt from training clients, scored for everybody."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.ray import RayEngine
from ledgerlm.events.spec import load_spec
from ledgerlm.heads.recurrent.head import RecurrentHead
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Finished, Runner
from tests.small_lake import CLIENTS, EVENTS, LABELS, fill, write_pipeline

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = ("rising", "falling")
CODES = "abcde"


def tables(spark: SparkSession) -> dict[str, DataFrame]:
    """240 clients who walk up or down through the categories: only the order of events tells which."""
    random = np.random.default_rng(1)
    events, clients, labels = [], [("nobody", "train")], [("nobody", "way", AS_OF, 0.0, NAMES[0])]
    for number in range(240):
        client, up = f"c{number:03d}", number % 2 == 0
        clients.append((client, "test" if number % 5 == 0 else "train"))
        labels.append((client, "way", AS_OF, float(not up), NAMES[not up]))
        start, length = int(random.integers(5)), int(random.integers(6, 16))
        for place in range(length + 3):
            # What comes after as_of walks the other way: it would mislead who looked at it.
            way = (1 if up else -1) * (1 if place < length else -1)
            time = AS_OF + timedelta(days=place - length)
            code = CODES[(start + way * place) % 5]
            events.append((client, f"{client}-{place:03d}", time, place, Decimal(10), code))
    return {
        "events": spark.createDataFrame(events, EVENTS),
        "clients": spark.createDataFrame(clients, CLIENTS),
        "labels": spark.createDataFrame(labels, LABELS),
    }


LEARN: dict[str, Any] = {
    "task": "way",
    "network": {"width": 16, "dense": 16, "dropout": 0.0},
    "learning": {"epochs": 12, "batch": 16, "learning_rate": 0.01, "event_dropout": 0.0},
    "workers": {"ranks": 1, "threads": 1},
}


def ran(spark: SparkSession, folder: Path, stages: dict[str, Any]) -> Callable[[], tuple[Finished, ...]]:
    """Writes the tables and the pipeline; gives what runs it."""
    fill(spark, folder, tables(spark))
    file = write_pipeline(folder, stages)
    return lambda: Runner(load_pipeline(file), Progress()).run().stages


def test_order_is_learnt_scored_and_accounted_for(spark: SparkSession, ray_engine: RayEngine, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    compare = {"methods": {"lstm": "forecast"}, "tasks": ["way"], "baseline": "lstm", "bootstrap": 100}
    again = ran(spark, tmp_path, {"learn": LEARN, "forecast": {}, "compare": compare})
    learnt, scored, compared = (stage.record for stage in again())
    head = learnt.facts["heads"][0]["head_id"]
    # One training client has no events; the 48 test clients taught nothing.
    assert sum(learnt.facts[f"{part}_rows"] for part in ("training", "held_out", "calibration")) == 192
    assert learnt.facts["calibration_rows"] > 0 and learnt.facts["held_out_rows"] > 0
    assert learnt.facts["without_events"] == 1
    assert len(learnt.facts["curve"]) <= 12
    assert (scored.rows_in, scored.rows_out, scored.quarantined) == (241, 240, 1)
    scores = lake.read("scores")
    assert {row["head_id"] for row in scores.select("head_id").distinct().collect()} == {head}
    _as_the_model_says(spark, tmp_path, scores, head)
    row = scores.agg(
        F.max(F.abs(F.aggregate("probabilities", F.lit(0.0), lambda a, b: a + b) - 1)).alias("off"),
        F.count_if(~F.col("decile").between(1, 10)).alias("strange"),
    ).first()
    assert row is not None
    assert row["off"] < 1e-5
    assert row["strange"] == 0
    figures = {one["metric"]: one["mean"] for one in compared.facts["compared"][0]["figures"]}
    assert compared.facts["compared"][0]["rows"] == 48
    assert figures["accuracy"] > 0.9
    assert figures["log_loss"] < 0.4
    assert all(stage.skipped for stage in again())


def _as_the_model_says(spark: SparkSession, folder: Path, scores: DataFrame, head_id: str) -> None:
    head = RecurrentHead.load(folder / "artefacts" / "heads", head_id)
    lake = Lake(str(folder / "lake"), spark)
    asked = lake.read("labels").select("client_id", "as_of")
    spec = load_spec(str(folder / "spec.yaml"))
    said = head.transform(head.inputs(asked, lake.read("events"), lake.read("clients"), spec=spec))
    both = said.select("client_id", F.col("probabilities").alias("said")).join(scores, on="client_id").collect()
    assert len(both) == 240
    np.testing.assert_allclose([row["said"] for row in both], [row["probabilities"] for row in both], atol=1e-6)
    assert head.save(folder / "elsewhere").head_id == head_id


@pytest.mark.slow
def test_what_starts_from_a_trained_head_has_little_left_to_learn(
    spark: SparkSession, ray_engine: RayEngine, tmp_path: Path
) -> None:
    further = {**LEARN, "job": "learn", "base": "learn", "learning": {**LEARN["learning"], "epochs": 1}}
    run = ran(spark, tmp_path, {"learn": LEARN, "further": further})
    first, then = (stage.record.facts["curve"][0]["held_out_loss"] for stage in run())
    assert then < 0.7 * first
