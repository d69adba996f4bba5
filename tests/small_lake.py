"""A lake of one table of events with a category, and the pipeline over it, for tests of single jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake

BEFORE = Author(attempt="before", stage="test/before", run_id="before")
# The as_of of clients without a label is the beginning of 2025.
SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
client: client
time: {column: time}
amount: {column: amount}
as_of: 2025-01-01
fields: [{name: category}]
"""
EVENTS = (
    "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), category string"
)
CLIENTS = "client_id string, split string"
LABELS = "client_id string, task string, as_of timestamp, label double, label_text string"


def fill(spark: SparkSession, folder: Path, tables: Mapping[str, DataFrame]) -> Lake:
    """Writes tables as an earlier run would have left them."""
    lake = Lake(str(folder / "lake"), spark)
    for table, rows in tables.items():
        lake.write(table, rows, by=BEFORE)
    return lake


def write_pipeline(folder: Path, stages: Mapping[str, Any]) -> Path:
    """The file of a pipeline over the lake in the same folder."""
    (folder / "spec.yaml").write_text(SPEC)
    file = folder / "run.yaml"
    content = {"pipeline": "small", "out": str(folder), "data": str(folder / "spec.yaml"), "stages": stages}
    file.write_text(json.dumps(content))
    return file


def write_bank(folder: Path) -> None:
    """Writes two events in a file that arrived, and the spec `bank.yaml` that reads such files."""
    (folder / "files").mkdir()
    (folder / "files" / "1.csv").write_text("id,who,at,mcc\n1,a,2024-01-01,x\n2,b,2024-01-02,y\n")
    spec = {
        "name": "bank",
        "client": "who",
        "source": {"path": str(folder / "files"), "files": [{"glob": "*.csv"}]},
        "time": {"column": "at", "format": "yyyy-MM-dd"},
        "event_id": {"columns": ["id"], "conflicts": "last"},
        "fields": [{"name": "mcc"}],
    }
    (folder / "bank.yaml").write_text(yaml.safe_dump(spec))
