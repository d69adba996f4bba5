"""Every shipped ablation, from files to its leaderboard, at a size that finishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable

from ledgerlm.config import shipped
from tests.e2e.conftest import QUICK_TREES, Tiny, write_tiny

NAMES = ("components", "formats", "volume", "backbone", "layers", "low_data", "ensembles", "recipes", "small_backbone")
TRAINING = {
    "workers": {"ranks": 1},
    "context": 128,
    "vocabulary": 400,
    "batch_tokens": 1024,
    "max_tokens": 4_000,
    "evaluations": 1,
    "precision": "fp32",
}
JUDGING = {"tasks": ["income"], "folds": 2, "seeds": [42]}
SMALL: dict[str, dict[str, Any]] = {
    "enrich": {"max_events": 2, "pool": {"workers": 1}},
    "summarize": {"pool": {"workers": 1}},
    "finetune": TRAINING,
    "embed": {"partitions": 2},
    "encode": {"encoder": {"width": 16}, "training": {"epochs": 1}},
    "evaluate": {**JUDGING, "bootstrap": 100, "lightgbm": QUICK_TREES},
    "low_data": {**JUDGING, "counts": [1, 10], "repeats": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("ablations"))


def shrunk(tiny: Tiny, name: str) -> Path:
    """The shipped pipeline with small settings and its own folder."""
    content: dict[str, Any] = yaml.safe_load(shipped(f"ablations/{name}.yaml").read_text())
    content |= {"out": str(tiny.out), "source": {"path": str(tiny.folder / "data")}}
    for stage, settings in content["stages"].items():
        job = settings.get("job", stage)
        settings.update(SMALL.get(job, {}))
        if "trainings" in settings:
            settings["seeds"] = [42, 43, 44]  # one for each training
        if job == "finetune" and not settings.get("base"):
            settings.pop("more", None)  # another pipeline's lake
            width = settings.get("shape", {}).get("width", 96) // 6
            settings["shape"] = {"width": width, "layers": 2, "heads": 2, "ffn": 32}
    file = tiny.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_ablation_runs_from_files_to_leaderboard(tiny: Tiny, name: str) -> None:
    file = shrunk(tiny, name)
    methods = next(
        settings["representations"]
        for settings in reversed(yaml.safe_load(file.read_text())["stages"].values())
        if "representations" in settings
    )
    tiny.command("run", str(file))
    report = json.loads((tiny.out / "report.json").read_text())
    assert report["pipeline"] == f"ablation_{name}"
    skipped = {stage["name"] for stage in report["stages"] if stage["skipped"]}
    if name != NAMES[0]:
        assert {"ingest", "serialize", "enrich", "aggregate", "finetune_raw"} <= skipped, skipped
    if name == "low_data":
        rows = DeltaTable(str(tiny.out / "lake" / "low_data")).to_pyarrow_table().to_pylist()
        assert {row["labelled"] for row in rows} == {1, 10}
        assert "<h2>Few labels</h2>" in (tiny.out / "report.html").read_text()
    else:
        rows = report["leaderboard"]
        assert (tiny.out / "leaderboard.tex").read_text().count("published") == 0
        assert (tiny.out / "leaderboard.md").read_text().count("measured") > 0
    assert {row["method"] for row in rows} - {"majority"} == set(methods)
