"""The whole road, by the command a user types; what it leaves behind, and what a second run does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import HOUSEHOLDS, STAGES, Tiny
from tests.e2e.lakes import all_keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(finished: Tiny) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished.out / "report.json").read_text())
    return content


def test_report_json_has_the_promised_form(report: dict[str, Any]) -> None:
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    for stage in report["stages"]:
        assert {"name", "engine", "rows_in", "rows_out", "quarantined", "seconds", "skipped"} <= set(stage)
        assert not stage["skipped"]
    for row in report["leaderboard"]:
        assert {"task", "method", "metric", "mean", "std", "folds"} <= set(row)
    assert {row["method"] for row in report["leaderboard"]} >= {"agg", "llm4es+agg"}
    assert report["tables"]["clients"]["rows"] == HOUSEHOLDS
    for entry in report["tables"].values():
        assert DeltaTable(entry["path"]).version() == entry["version"]
    assert report["backbone"]["parameters"] > 0
    assert "definition" in report["backbone"]


def test_rows_in_are_rows_out_quarantined_or_duplicates(report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        if stage["name"] in ("ingest", "enrich", "embed"):
            assert stage["rows_in"] == stage["rows_out"] + stage["quarantined"] + stage["duplicates"], stage


def test_keys_are_unique_and_clients_arrive(finished: Tiny) -> None:
    found = all_keys(finished.out / "lake")
    clients = {row[0] for row in found["clients"]}
    assert {row[0] for row in found["embeddings"]} == {row[0] for row in found["documents"]} <= clients
    assert {row[0] for row in found["scores"]} == {row[0] for row in found["embeddings"]}


def test_backbone_opens_in_transformers(finished: Tiny, report: dict[str, Any]) -> None:
    folder = report["details"]["finetune"]["backbone"]
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = DeltaTable(str(finished.out / "lake" / "documents")).to_pyarrow_table()["text"][0].as_py()
    loss = model(**tokenizer(text, return_tensors="pt"), labels=tokenizer(text, return_tensors="pt").input_ids).loss
    assert 0 < float(loss.detach()) < 20
    assert not list(Path(folder).glob("*.bin")) + list(Path(folder).glob("*.pt"))


def test_log_is_quiet(finished: Tiny) -> None:
    log = (finished.folder / "log.txt").read_text()
    for noise in ("Traceback", "WARN", "Warning", "ERROR", "Error:", "Exception"):
        assert noise not in log, log
    assert "report.html" in log


def test_second_run_skips_every_stage(finished: Tiny) -> None:
    before = all_keys(finished.out / "lake")
    finished.command("run", str(finished.file))
    again = json.loads((finished.out / "report.json").read_text())
    assert all(stage["skipped"] for stage in again["stages"])
    assert all_keys(finished.out / "lake") == before


def test_spec_error_stops_before_anything_starts(finished: Tiny) -> None:
    done = finished.command("run", str(finished.file), "--set", "stages.serialize.fromat=json", expect=2)
    assert "stages.serialize" in done.stderr
    assert "did you mean 'format'" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_tells_the_plan(finished: Tiny) -> None:
    done = finished.command("run", str(finished.file), "--dry-run", "--set", "stages.aggregate.max_codes=7")
    assert re.search(r"ingest.*unchanged", done.stdout)
    assert re.search(r"aggregate.*would run", done.stdout)


@pytest.mark.skipif(
    CHROMIUM is None, reason="only a browser knows how wide a page gets, and none is here: install chromium"
)
@pytest.mark.parametrize("width", [1200, 390])
def test_report_fits_the_window(finished: Tiny, tmp_path: Path, width: int) -> None:
    probe = "<script>document.title = 'w' + document.documentElement.scrollWidth + 'of' + window.innerWidth</script>"
    page = tmp_path / "page.html"
    page.write_text((finished.out / "report.html").read_text().replace("</body>", f"{probe}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"--window-size={width},1000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>w(\d+)of(\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= int(found[2])
