"""Runs told to MLflow: a real store in a folder is written by the product and read by MLflow's own client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ledgerlm.errors import EngineError
from ledgerlm.evaluation.tracking import MlflowConf, track


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowConf:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is enough for a test; users have a server
    return MlflowConf(experiment="bank", tracking_uri=(tmp_path / "store").as_uri())


def facts(mean: float = 0.75, keys: int = 3) -> dict[str, Any]:
    row = {"task": "income", "method": "llm4es+agg", "metric": "roc_auc", "mean": mean, "low": 0.7, "high": None}
    return {
        "run_id": "20250101T000000-abc",
        "pipeline": "demo",
        "commit": None,
        "started_at": "2025-01-01T00:00:00+00:00",
        "finished_at": "2025-01-01T00:10:00+00:00",
        "configuration": {"stages": {f"s{n}": {"seed": n} for n in range(keys)}, "title": "x" * 7000, "none": {}},
        "leaderboard": [row],
        "leaderboard_test": [{**row, "mean": 0.5}],
        "stages": [{"name": "ingest", "seconds": 12.5, "skipped": False}],
    }


def test_a_run_is_told_once_with_settings_figures_and_report(conf: MlflowConf, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>the report</p>")
    run = track(facts(keys=250), conf, [page])
    client = MlflowClient(conf.tracking_uri)
    found = client.get_run(run)
    assert found.data.metrics == {
        "income/llm4es and agg/roc_auc": 0.75,
        "income/llm4es and agg/roc_auc low": 0.7,
        "test/income/llm4es and agg/roc_auc": 0.5,
        "test/income/llm4es and agg/roc_auc low": 0.7,
        "seconds/ingest": 12.5,
    }
    assert len(found.data.params) == 252 and found.data.params["stages.s249.seed"] == "249"
    assert len(found.data.params["title"]) == 6000 and found.data.params["none"] == "{}"
    assert (found.info.end_time - found.info.start_time, found.info.status) == (600_000, "FINISHED")
    assert [one.path for one in client.list_artifacts(run)] == ["report.html"]
    # A run that found all of it finished has another id and time, and tells nothing new.
    again = {**facts(keys=250), "run_id": "later", "finished_at": "2025-01-02T00:00:00+00:00"}
    assert track(again, conf, [page]) == run
    assert track(facts(mean=0.76), conf, [page]) != run


def test_a_server_that_is_not_there_is_given_up_soon(conf: MlflowConf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    gone = conf.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(EngineError, match=r"mlflow: experiment bank: .*Connection refused"):
        track(facts(), gone, [])
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"


def test_a_store_that_takes_nothing_is_told_in_a_line(conf: MlflowConf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    broken = conf.model_copy(update={"tracking_uri": (tmp_path / "file" / "store").as_uri()})
    with pytest.raises(EngineError, match=r"mlflow: experiment bank: .*; the report is written, and the same command"):
        track(facts(), broken, [])
