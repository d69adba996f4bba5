"""The serialize job: whose histories it tells, until when, and which events of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from ledgerlm.lake.lake import Lake, Transaction
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.progress import Progress
from ledgerlm.runs.runner import Runner

SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
client: client
time: {column: time}
amount: {column: amount}
as_of: 2025-01-11
fields: [{name: category}]
"""
START = datetime(2025, 1, 1, 12, tzinfo=UTC)
EVENTS = (
    "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), category string"
)


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    """Two clients with an event a day, of categories a, b, a, b ...; `one` has labels as of days 3 and 6."""
    events = [
        (client, f"{client}{day}", START + timedelta(days=day), 0, Decimal(-1), "ab"[day % 2])
        for client in ("one", "two")
        for day in range(8)
    ]
    labels = [("one", "t", START + timedelta(days=day), 1.0, "yes") for day in (3, 6)]
    tables = {
        "events": spark.createDataFrame(events, EVENTS),
        "clients": spark.createDataFrame([("one", "train"), ("two", "train")], "client_id string, split string"),
        "labels": spark.createDataFrame(
            labels, "client_id string, task string, as_of timestamp, label double, label_text string"
        ),
    }
    store = Lake(str(tmp_path / "lake"), spark)
    for table, rows in tables.items():
        store.write(table, rows, run_id="before", transaction=Transaction(app_id=f"test/{table}", version=1))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return store


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {("one", "aba"), ("one", "ababab"), ("two", "abababab")}),
        ({"labels": False}, {("one", "abababab"), ("two", "abababab")}),
        ({"until": "2025-01-05"}, {("one", "aba"), ("one", "abab"), ("two", "abab")}),
        ({"labels": False, "until": "2025-01-05", "only": "category = 'b'"}, {("one", "bb"), ("two", "bb")}),
    ],
)
def test_whose_histories_and_how_much_of_them(
    lake: Lake, tmp_path: Path, settings: dict[str, Any], told: set[tuple[str, str]]
) -> None:
    stages = {"serialize": {"format": "compact", "fields": ["category"], **settings}}
    content = {"pipeline": "small", "out": str(tmp_path), "data": str(tmp_path / "spec.yaml"), "stages": stages}
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    Runner(load_pipeline(tmp_path / "run.yaml"), Progress()).run()
    rows = lake.read("documents").collect()
    found = [(row["client_id"], "".join(row["text"].split("\n")[1:])) for row in rows]
    assert len(found) == len(told)
    assert set(found) == told
