"""A newcomer's way: files as people have them, a draft, a look, a run; and what was written into them comes out."""

from __future__ import annotations

import json
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.events.columns import LEFT_OUT
from ledgerlm.events.guesses.draft import draft
from ledgerlm.events.guesses.pages import spec_page
from ledgerlm.events.guesses.roles import Hints
from ledgerlm.events.guesses.tables import tables_at
from ledgerlm.events.judging import judged_entry
from ledgerlm.events.spec import DataSetSpec, load_spec, source_of
from ledgerlm.jobs.cli import main
from tests.shapes import SHAPES, Event, Shape, with_labels

CLIENTS = 20


def spec_of(shape: Shape, folder: Path) -> tuple[DataSetSpec, list[Event]]:
    """The draft of a shape's files with its choices made, and what happened."""
    happened = list(shape.write(folder))
    made = draft(tables_at([str(folder)]), str(folder), "shape", Hints())
    (folder / "spec.yaml").write_text(spec_page(made, shape.name), encoding="utf-8")
    return load_spec(folder / "spec.yaml", shape.answers), happened


@pytest.mark.parametrize(
    "shape", [pytest.param(one, id=one.name, marks=[pytest.mark.slow] * one.plain) for one in SHAPES]
)
def test_what_happened_is_read(spark: SparkSession, shape: Shape, tmp_path: Path) -> None:
    spec, happened = spec_of(shape, tmp_path)
    entries = [judged_entry(spark, spec, place) for place in range(len(source_of(spec).files))]
    rows = reduce(DataFrame.unionByName, entries).where(~F.col(LEFT_OUT))
    time = F.date_format("event_time", "yyyy-MM-dd HH:mm:ss").alias("time")
    found = [tuple(row) for row in rows.select("reason", "client_id", time, "amount").collect()]
    wanted = [(None, one.client, one.time.strftime(shape.clock), one.amount) for one in happened]
    assert sorted(found) == sorted(wanted)


def walked(folder: Path, capsys: pytest.CaptureFixture[str], *, beside: bool) -> dict[str, Any]:
    """The report after the printed commands, one after another; `beside`: with files of attributes and codes."""
    data, to, out = folder / "data", folder / "my", folder / "out"
    data.mkdir()
    with_labels(data, CLIENTS, beside=beside)
    assert main(["init", str(data), "--to", str(to)]) == 0
    told = capsys.readouterr().out
    assert f"  clients: {CLIENTS}\n" in told and f"  labels: 0 {CLIENTS // 2}, 1 {CLIENTS // 2}\n" in told
    check, run = [line.split()[1:] for line in told.splitlines() if line.startswith("  ledgerlm ")]
    assert check == ["check", str(to / "spec.yaml")]
    assert main([*run, "--set", f"out={out}"]) == 0
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    counts = {one["name"]: one["rows_out"] for one in report["stages"]}
    assert (counts["ingest"], counts["score"]) == (CLIENTS * 12, CLIENTS)
    return report


def test_from_files_to_scores_without_ray(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerlm.engines.extras.find_spec", lambda name: None if name == "ray" else find_spec(name))
    report = walked(tmp_path, capsys, beside=False)
    assert [one["name"] for one in report["stages"]] == ["ingest", "serialize", "aggregate", "fit", "score"]


@pytest.mark.slow
def test_from_files_to_figures(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = walked(tmp_path, capsys, beside=True)
    assert [one["name"] for one in report["stages"]][3:] == ["fit", "score", "evaluate"]
    [row] = [one for one in report["leaderboard"] if one["method"] == "agg" and one["metric"] == "roc_auc"]
    assert 0 <= row["mean"] <= 1
