"""The read job: each different sentence is read once, every client that is asked for has states and features."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records, StageRecord
from ledgerlm.runs.runner import Runner
from ledgerlm.text.tokenizer import train_tokenizer
from tests.small_lake import CLIENTS, LABELS, fill, write_pipeline

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
EARLIER = datetime(2024, 6, 1, tzinfo=UTC)
SENTENCES = "client_id string, as_of timestamp, document int, place int, domain string, text string"


def test_sentences_become_states_and_features_of_all_who_are_asked_for(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    tokenizer = train_tokenizer(["asked about rates", "lost card"] * 20, vocabulary_size=300)
    new_llama(LlamaShape(width=16, layers=2, heads=2, ffn=16), tokenizer, context=64, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = [
        ("a", AS_OF, 0, 0, "marketing", "asked about rates"),
        ("a", AS_OF, 1, 1, "product", "lost card"),
        ("b", EARLIER, 0, 0, "marketing", "asked about rates"),
        # Nothing is left to pool of it.
        ("b", EARLIER, 0, 1, "marketing", ""),
    ]
    lake = fill(
        spark,
        tmp_path,
        {
            "sentences": spark.createDataFrame(told, SENTENCES),
            "clients": spark.createDataFrame([("a", "train"), ("b", "test"), ("mute", "train")], CLIENTS),
            "labels": spark.createDataFrame([("b", "t", EARLIER, 1.0, "yes")], LABELS),
        },
    )
    described = StageRecord(
        name="describe",
        job="describe",
        engine="spark",
        definition="",
        attempt="d",
        done=True,
        facts={"as_of": "2025-01-01T00:00:00"},
    )
    Records(tmp_path).save(described)
    describe = {"sources": [{"of": "clients", "domain": "product", "sentences": ["x"]}]}
    stages = {"describe": describe, "read": {"backbone": str(folder), "state_set": "notes", "partitions": 1}}
    run = Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run(only="read")
    record = run.stages[0].record
    assert (record.rows_in, record.rows_out, record.quarantined) == (3, 3, 0)
    assert (record.facts["different_sentences"], record.facts["unread_sentences"]) == (3, 1)
    assert record.facts["backbone_id"] == backbone_id(folder)

    states = {row["client_id"]: row for row in lake.read("text_states").collect()}
    assert {client: row["as_of"] for client, row in states.items()} == {
        row["client_id"]: row["as_of"] for row in lake.read("features").collect()
    }
    assert [one["text"] for one in states["a"]["sentences"]] == ["asked about rates", "lost card"]
    assert [one["text"] for one in states["b"]["sentences"]] == ["asked about rates"]
    assert states["mute"]["sentences"] == []
    assert {row["state_set"] for row in states.values()} == {"notes"}
    assert states["a"]["sentences"][0]["state"] == states["b"]["sentences"][0]["state"]
    features = {
        row["client_id"]: row["features"] for row in lake.read("features").where("feature_set = 'notes'").collect()
    }
    mean = np.mean([one["state"] for one in states["a"]["sentences"]], axis=0)
    assert [features["a"][f"notes:{place}"] for place in range(16)] == pytest.approx(mean, abs=1e-5)
    assert features["mute"] == {}
    [aside] = lake.read("quarantine").collect()
    assert (aside["stage"], json.loads(aside["payload"])) == ("read", {"text": ""})
