"""A wrong SQL condition of a stage's settings, as a user sees it: one line with the condition and the stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ledgerlm.jobs.cli import main

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPEC = """
name: tiny
fields: [{name: mcc}]
client: client
time: {column: time}
source: {path: ., files: [{glob: events.csv, format: csv}]}
labels: [{name: good, kind: binary, file: {glob: labels.csv, format: csv}, id: client, column: good}]
as_of: 2026-02-01
"""
PIPELINE = """
pipeline: p
data: spec.yaml
out: out
stages:
  ingest: {}
  serialize: {}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    Path("p.yaml").write_text(PIPELINE)
    Path("events.csv").write_text("client,time,mcc\nc1,2026-01-01 10:00:00,5411\nc2,2026-01-02 10:00:00,5412\n")
    Path("labels.csv").write_text("client,good\nc1,1\nc2,0\n")
    return "p.yaml"


def test_condition_that_spark_cannot_read(
    spark: SparkSession, pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conditions = {
        "mccc = '5411'": "A column, variable, or function parameter with name `mccc` cannot be resolved",
        "mcc = = '5411'": "Syntax error at or near '='",
        "mcc + 1": "[DATATYPE_MISMATCH.FILTER_NOT_BOOLEAN]",
    }
    for condition, said in conditions.items():
        assert main(["run", pipeline, "--set", f'stages.serialize.only="{condition}"']) == 2
        error = capsys.readouterr().err
        (line,) = error.splitlines()
        assert "Traceback" not in error
        assert said in line
        assert f"look at stages.serialize.only: {condition!r}" in line
    capsys.readouterr()
    assert main(["run", pipeline, "--set", "stages.serialize.only=\"mcc = '5411'\""]) == 0
    assert spark.read.format("delta").load(f"{Path.cwd()}/out/lake/documents").count() == 1
