"""Instruction tuning as stages: two ranks of Ray Train and DeepSpeed, PEFT's own adapter, scores for every label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.model import load_backbone
from ledgerlm.engines.ray import RayEngine
from ledgerlm.events.spec import load_spec
from ledgerlm.instruct.head import MODEL
from ledgerlm.instruct.model import InstructedHead
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

SHAPE = {"width": 32, "layers": 2, "heads": 2, "ffn": 64}
FIELDS = ["days", "mcc"]
PROMPT = {
    "question": "next",
    "answers": {"food": "|Grocery Stores, Supermarkets", "fuel": "|Service Stations"},
    "attributes": ["package"],
    "format": "compact",
    "fields": FIELDS,
    "only": "mcc IS NOT NULL",
}
STAGES = {
    "simulate": {
        "banks": [
            {"bank": "A", "clients": 150, "purchases": 60, "months": 4},
            {"bank": "B", "clients": 30, "purchases": 60, "months": 4},
        ]
    },
    "serialize": {"format": "compact", "fields": FIELDS},
    "finetune": {"context": 256, "vocabulary": 500, "shape": SHAPE, "max_tokens": 60_000, "evaluations": 1},
    "label": {
        "next_category": {
            "next_category": {
                "categories": {"food": ["Grocery Stores, Supermarkets"], "fuel": ["Service Stations"]},
                "per_client": 4,
            }
        }
    },
    "guess": {"task": "next_category"},
    "instruct": {
        "prompt": PROMPT,
        "lengths": [3, 9],
        "context": 256,
        "learning_rate": 1e-2,
        "epochs": 4,
        "batch_tokens": 2048,
        "evaluations": 4,
        "held_out": 0.2,
    },
    "zero_shot": {"job": "instruct", "tune": False, "prompt": PROMPT, "lengths": [9], "context": 256},
    "predict": {"stages": ["instruct", "zero_shot"]},
}


@pytest.mark.slow
def test_from_events_to_scores_of_an_unseen_bank(spark: SparkSession, ray_engine: RayEngine, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    content = {"pipeline": "small", "out": str(tmp_path / "out"), "data": "datasets/simulated_bank.yaml"}
    file.write_text(json.dumps(content | {"stages": STAGES}))
    facts = {stage.record.name: stage.record.facts for stage in Runner(load_pipeline(file), Progress()).run().stages}
    tuned = facts["instruct"]
    assert tuned["ranks"] == 2
    assert {one["events"] for one in tuned["lengths"]} == {3, 9} and tuned["length"] in (3, 9)
    held_out = tuned["curve"]["held_out_loss"]
    assert held_out[-1] < held_out[0]

    folder = tmp_path / "out" / "artefacts" / "instruct"
    [head] = tuned["heads"]
    model = InstructedHead.load(folder, head["head_id"])
    assert model.card.adapter and not (folder / head["head_id"] / MODEL).exists()
    opened = PeftModel.from_pretrained(load_backbone(model.card.base), str(model.adapter))
    assert opened.peft_config["default"].r == 16
    assert not InstructedHead.load(folder, facts["zero_shot"]["heads"][0]["head_id"]).card.adapter

    lake = Lake(str(tmp_path / "out" / "lake"), spark)
    labels = lake.read("labels").where("task = 'next_category'")
    scores = lake.read("scores").where("task = 'next_category'")
    heads = scores.groupBy("head_id").count().collect()
    assert len(heads) == 2 + 5 and {row["count"] for row in heads} == {labels.count()}
    asked, spec = labels.where("client_id LIKE 'B%'").select("client_id", "as_of").limit(20), load_spec(content["data"])
    tables = {name: lake.read(name) for name in ("events", "clients", "dictionaries")}
    prompts = model.inputs(asked, tables["events"], tables["clients"], spec=spec, dictionaries=tables["dictionaries"])
    said = model.transform(prompts).withColumnRenamed("probabilities", "said")
    own = scores.where(F.col("head_id") == head["head_id"])
    both = said.join(own, on=["client_id", "as_of"]).select("said", "probabilities").collect()
    assert len(both) == asked.count()
    assert all(row["said"] == pytest.approx(row["probabilities"], abs=1e-4) for row in both)
    total = F.aggregate("probabilities", F.lit(0.0), lambda left, right: left + right)
    assert scores.where(F.abs(total - 1) > 1e-5).isEmpty()
    assert not scores.where("client_id LIKE 'B%'").isEmpty()
    trained = lake.read("clients").where("split = 'train' AND bank = 'B'")
    assert trained.isEmpty(), "bank B is unseen"
    # Banks have codes of their own; the truth is told for both.
    known = lake.read("bayes").where("task = 'next_category'").groupBy(F.substring("client_id", 1, 1)).count().collect()
    assert len(known) == 2
    assert all(stage.skipped for stage in Runner(load_pipeline(file), Progress()).run().stages)
