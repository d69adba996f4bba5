"""The serialize job: whose histories it tells, until when, and which events of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import CLIENTS, EVENTS, LABELS, fill, write_pipeline

START = datetime(2024, 12, 1, 12, tzinfo=UTC)


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
        "clients": spark.createDataFrame([("one", "train"), ("two", "train")], CLIENTS),
        "labels": spark.createDataFrame(labels, LABELS),
    }
    return fill(spark, tmp_path, tables)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {("one", "aba"), ("one", "ababab"), ("two", "abababab")}),
        ({"labels": False}, {("one", "abababab"), ("two", "abababab")}),
        ({"everyone": True}, {("one", "aba"), ("one", "ababab"), ("one", "abababab"), ("two", "abababab")}),
        ({"until": "2024-12-05"}, {("one", "aba"), ("one", "abab"), ("two", "abab")}),
        ({"labels": False, "until": "2024-12-05", "only": "category = 'b'"}, {("one", "bb"), ("two", "bb")}),
    ],
)
def test_whose_histories_and_how_much_of_them(
    lake: Lake, tmp_path: Path, settings: dict[str, Any], told: set[tuple[str, str]]
) -> None:
    stages = {"serialize": {"format": "compact", "fields": ["category"], **settings}}
    Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run()
    rows = lake.read("documents").collect()
    found = [(row["client_id"], "".join(row["text"].split("\n")[1:])) for row in rows]
    assert len(found) == len(told)
    assert set(found) == told


def test_a_split_by_time_bounds_what_is_learnt_from(spark: SparkSession, tmp_path: Path) -> None:
    """Nobody is tested before 7 December, and no history that a backbone learns from reaches further."""
    events = [
        (client, f"{client}{day}", START + timedelta(days=day), 0, Decimal(-1), "ab"[day % 2])
        for client in ("old", "new", "none")
        for day in range(8)
    ]
    labels = [("old", "t", START + timedelta(days=2), 1.0, "yes"), ("new", "t", START + timedelta(days=6), 0.0, "no")]
    tables = {
        "events": spark.createDataFrame(events, EVENTS),
        "clients": spark.createDataFrame([(one, "train") for one in ("old", "new", "none")], CLIENTS),
        "labels": spark.createDataFrame(labels, LABELS),
    }
    lake = fill(spark, tmp_path, tables)
    split = {"split": {"rule": "time", "share": 0.3}}
    stages = {**split, "serialize": {"fields": ["category"]}}
    [first, _] = Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run().stages
    assert first.record.facts["until"] == "2024-12-07T12:00:00+00:00"
    found = {row["client_id"]: str(row["last_event_time"]) for row in lake.read("documents").collect()}
    assert found == {"old": "2024-12-02 12:00:00", "new": "2024-12-06 12:00:00", "none": "2024-12-06 12:00:00"}
    for late in ({"as_of": "2024-12-08"}, {"as_of": "2024-12-07 12:00:01", "everyone": True}):
        stages = {**split, "serialize": {"fields": ["category"], **late}}
        with pytest.raises(ConfigError, match="lies after 2024-12-07 12:00, from which the split by time tests"):
            Runner(load_pipeline(write_pipeline(tmp_path, stages)), Progress()).run()
