"""The encode job on real Spark and Ray: trained on training clients before `as_of`, every history accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from ledgerlm.baselines.codes import histories
from ledgerlm.baselines.sequence.batches import Histories
from ledgerlm.baselines.sequence.histories import SeenColumns, assemble, learn_fields, observe
from ledgerlm.baselines.sequence.inference import encode_histories
from ledgerlm.baselines.sequence.model import SequenceEncoder
from ledgerlm.baselines.sequence.settings import ENCODER_FILES, FieldsConf
from ledgerlm.baselines.sequence.store import load_encoder
from ledgerlm.engines.ray import RayEngine
from ledgerlm.events.spec import load_spec
from ledgerlm.heads.vectors import Source
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import CLIENTS, EVENTS, fill, write_pipeline

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
CHOSEN = SeenColumns(categorical=("category",), numeric=("amount",), hour=False, weekday=True)


def event(client: str, number: int, time: datetime, category: str, amount: int = 10) -> tuple[object, ...]:
    return (client, f"{client}-{number:03d}", time, number, Decimal(amount), category)


def test_arrays_hold_the_newest_events_before_as_of_in_order(spark: SparkSession) -> None:
    day = timedelta(days=1)
    rows = [event("a", n, AS_OF - (6 - n) * 2 * day, "xyxyxx"[n], n - 3) for n in range(6)]
    rows += [event("a", 6, AS_OF, "future"), event("test", 0, AS_OF - day, "only of a test client")]
    as_of = spark.createDataFrame([("a", AS_OF), ("test", AS_OF)], "client_id string, as_of timestamp")
    observed = observe(spark.createDataFrame(rows, EVENTS), CHOSEN)
    training = histories(observed, as_of.where("client_id = 'a'"))
    fields = learn_fields(training, CHOSEN, FieldsConf(max_events=4, max_codes=1, codes={"weekday": 9}))
    assert fields.codes["category"] == ("x",)
    assert len(fields.codes["weekday"]) > 1
    assert fields.numbers == ("amount", "log_days")
    found = {row["client_id"]: row for row in assemble(histories(observed, as_of), fields).collect()}
    a = found["a"]
    assert (a["event_count_used"], a["event_count_cut"]) == (4, 2)
    assert a["codes"][::2] == [2, 1, 2, 2]  # x y x x; y is beyond max_codes
    np.testing.assert_allclose(a["numbers"][::2], [-np.log(2), 0, np.log(2), np.log(3)], rtol=1e-5)
    np.testing.assert_allclose(a["numbers"][1::2], [np.log(3)] * 4, rtol=1e-5)
    assert found["test"]["codes"][0] == 1
    expected = np.sign([-3, -2, -1, 0, 1, 2]) * np.log1p(np.abs([-3, -2, -1, 0, 1, 2]))
    np.testing.assert_allclose((fields.mean[0], fields.std[0]), (expected.mean(), expected.std()), rtol=1e-5)


def write_lake(spark: SparkSession, folder: Path) -> int:
    """80 clients of two kinds, one client without events, and events after `as_of` that must not matter."""
    random = np.random.default_rng(1)
    events, clients = [], [("nobody", "train")]
    for number in range(80):
        client = f"c{number:02d}"
        clients.append((client, "test" if number % 10 == 0 else "train"))
        likely = [0.8, 0.2] if number % 2 else [0.2, 0.8]
        for place in range(int(random.integers(12, 30))):
            category = str(random.choice(["food", "fuel"], p=likely))
            events.append(event(client, place, AS_OF - timedelta(days=60 - place), category))
        events.append(event(client, 99, AS_OF + timedelta(days=1), "leak"))
    frames = {
        "events": spark.createDataFrame(events, EVENTS),
        "clients": spark.createDataFrame(clients, CLIENTS),
    }
    fill(spark, folder, frames)
    return len(clients)


@pytest.mark.slow  # two encoders; tests/unit/test_sequence.py holds what they learn
def test_job_leaves_vectors_card_and_facts_and_is_not_done_twice(
    spark: SparkSession, ray_engine: RayEngine, tmp_path: Path
) -> None:
    clients = write_lake(spark, tmp_path)
    stage = {
        "method": "coles",
        "encoder": {"width": 16},
        "training": {"epochs": 3, "batch": 8, "held_out": 0.1},
        "workers": {"ranks": 1, "threads": 1},
    }
    file = write_pipeline(tmp_path, {"clues": {"job": "encode", **stage}})
    record = Runner(load_pipeline(file), Progress()).run().stages[0].record
    assert (record.rows_in, record.rows_out, record.quarantined) == (clients, clients - 1, 1)
    facts = record.facts
    assert [line["epoch"] for line in facts["curve"]] == [1, 2, 3]
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]
    assert facts["widths"] == {"coles": 16}
    assert facts["training_events_per_second"] > 0
    folder = Path(facts["encoder"])
    card = ENCODER_FILES.read_card(folder)
    assert set(card.fields.codes["category"]) == {"food", "fuel"}  # no code from after as_of
    source = Source.model_validate({"table": "embeddings", "stage": "clues", "parts": ["coles"]}).pinned(
        lambda _: facts
    )
    lake = Lake(str(tmp_path / "lake"), spark)
    assert source.backbone_id is not None and source.definition_id is not None
    mine = (F.col("backbone_id") == source.backbone_id) & (F.col("definition_id") == source.definition_id)
    rows = {row["client_id"]: row for row in lake.read("embeddings").where(mine).collect()}
    assert len(rows) == clients - 1
    _same_vectors_here(spark, lake, folder, rows)
    aside = lake.read("quarantine").collect()
    assert [(row["reason"], json.loads(row["payload"])["client_id"]) for row in aside] == [("no_events", "nobody")]
    assert Runner(load_pipeline(file), Progress()).run().stages[0].skipped


def _same_vectors_here(spark: SparkSession, lake: Lake, folder: Path, rows: Mapping[str, Row]) -> None:
    """The stored vectors are those of the encoder on the same arrays, computed in this process and by the model."""
    encoder = SequenceEncoder.load(folder.parent, folder.name)
    as_of = spark.createDataFrame([(client, AS_OF) for client in rows], "client_id string, as_of timestamp")
    inputs = encoder.inputs(as_of, lake.read("events"), spec=load_spec(str(folder.parents[2] / "spec.yaml")))
    arrays = inputs.toArrow()
    vectors = encode_histories(load_encoder(folder), Histories.from_arrow(arrays, encoder.card.fields))
    said = {row["client_id"]: row["parts"]["coles"] for row in encoder.transform(inputs).collect()}
    for client, vector in zip(arrays.column("client_id").to_pylist(), vectors, strict=True):
        np.testing.assert_allclose(rows[client]["parts"]["coles"], vector, atol=1e-4)
        np.testing.assert_allclose(said[client], vector, atol=1e-4)
    assert encoder.save(folder.parent).backbone_id == folder.name
