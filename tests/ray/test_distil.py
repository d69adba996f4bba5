"""A student distilled by Ray Train and DeepSpeed from a teacher given by its path."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from ledgerlm.backbone.model import new_llama, parameter_count, read_card
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.engines.ray import RayEngine
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from ledgerlm.text.tokenizer import train_tokenizer
from tests.small_lake import BEFORE

AS_OF = datetime(2018, 1, 1, tzinfo=UTC)
TEXTS = [f"asked about {what} {how}" for what in ("rates", "cards", "loans") for how in ("again", "by phone", "today")]


@pytest.mark.slow
def test_a_teacher_by_path_is_distilled_into_a_smaller_backbone(
    spark: SparkSession, ray_engine: RayEngine, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(TEXTS * 10, vocabulary_size=300)
    model = new_llama(LlamaShape(width=32, layers=2, heads=2, ffn=32), tokenizer, context=32, seed=1)
    teacher = tmp_path / "teacher"
    model.save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    store = Lake(str(tmp_path / "lake"), spark)
    sentences = [(f"c{n}", AS_OF, 0, 0, "marketing", TEXTS[n % len(TEXTS)]) for n in range(30)]
    frames = {
        "clients": spark.createDataFrame([(f"c{n}", "train") for n in range(30)], "client_id string, split string"),
        "sentences": spark.createDataFrame(
            sentences, "client_id string, as_of timestamp, document int, place int, domain string, text string"
        ),
    }
    for table, rows in frames.items():
        store.write(table, rows, by=BEFORE)
    stages = {
        "distil": {
            "teacher": str(teacher),
            "shape": {"width": 16, "layers": 1, "heads": 2, "ffn": 16},
            "training": {"epochs": 8, "batch": 4, "next_token": 0.0},
            "context": 32,
        }
    }
    content = {"pipeline": "small", "out": str(tmp_path), "data": "datasets/complete_journey.yaml", "stages": stages}
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content))
    [stage] = Runner(load_pipeline(tmp_path / "pipeline.yaml"), Progress()).run().stages
    facts = stage.record.facts
    assert stage.record.rows_in == len(TEXTS), "each different sentence is learnt from once"
    assert facts["last_loss"] < 0.7 * facts["first_loss"]
    assert facts["parameters"] < facts["teacher_parameters"] == parameter_count(model)
    assert read_card(Path(facts["backbone"])).base == "distilled from teacher"
