"""A tiny lake: 60 households of the shipped purchases, one pipeline through every stage, as a user would run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.environments import REPOSITORY, uv

DATA = REPOSITORY / "data" / "complete_journey"
HOUSEHOLDS = 60
COLUMNS = [{"table": "embeddings", "parts": ["mean", "std", "surprise"]}, {"table": "features"}]
QUICK_TREES = {"preset": "complete_journey", "n_estimators": 20, "min_data_in_leaf": 5}
STAGES: dict[str, Any] = {
    "ingest": {},
    "serialize": {"format": "compact", "fields": ["days", "weekday", "department", "store", "amount"]},
    "enrich": {"max_events": 4, "pool": {"workers": 1}},
    "finetune": {
        "shape": {"width": 32, "layers": 2, "heads": 2, "ffn": 64},
        "context": 256,
        "batch_tokens": 1024,
        "max_tokens": 20_000,
        "evaluations": 2,
        "precision": "fp32",
    },
    "embed": {"partitions": 2},
    "aggregate": {"max_codes": 20},
    "evaluate": {
        "representations": {"agg": [COLUMNS[1]], "llm4es+agg": COLUMNS},
        "tasks": ["income"],
        "stratify": ["age", "income"],
        "folds": 2,
        "bootstrap": 100,
        "lightgbm": QUICK_TREES,
    },
    "fit": {
        "representation": "llm4es+agg",
        "sources": COLUMNS,
        "tasks": ["income"],
        "folds": 2,
        "lightgbm": QUICK_TREES,
    },
    "score": {},
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A folder with a pipeline file that anybody could have written."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def command(self, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `ledgerlm ARGUMENTS`; `expect` is the exit code."""
        return run([sys.executable, "-m", "ledgerlm.jobs.cli", *arguments], expect=expect, **environment)


def run(command: list[str], *, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository and checks its exit code."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1400,  # below pytest's own limit, so that the command's output is shown
        check=False,
    )
    assert done.returncode == expect, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return done


def write_tiny(folder: Path) -> Tiny:
    """Writes reduced data and the pipeline file."""
    people = pq.read_table(DATA / "demographics.parquet").slice(0, HOUSEHOLDS)
    bought = pq.read_table(DATA / "transactions.parquet")
    source = folder / "data"
    source.mkdir(parents=True)
    chosen = pc.is_in(bought["household_id"], value_set=people["household_id"].combine_chunks())
    pq.write_table(bought.filter(chosen), source / "transactions.parquet")
    pq.write_table(people, source / "demographics.parquet")
    (source / "products.parquet").write_bytes((DATA / "products.parquet").read_bytes())
    content = {
        "pipeline": "tiny",
        "out": str(folder / "out"),
        "data": "datasets/complete_journey.yaml",
        "source": {"path": str(source)},
        "stages": STAGES,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Tiny(folder=folder)


def copied_to(tiny: Tiny, folder: Path) -> Tiny:
    """A copy of a pipeline with its results, free to be changed."""
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    content = yaml.safe_load((folder / "tiny.yaml").read_text()) | {"out": str(folder / "out")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Tiny(folder=folder)


def done_again(tiny: Tiny, before: Tiny, stage: str) -> dict[str, Any]:
    """The record of a stage that has been done in a new attempt."""
    found, stood = (json.loads((one.out / "runs" / "stages" / f"{stage}.json").read_text()) for one in (tiny, before))
    assert found["done"] and stood["done"]
    assert found["attempt"] != stood["attempt"]
    return dict(found)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny pipeline after a clean run."""
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"))
    done = tiny.command("run", str(tiny.file))
    (tiny.folder / "log.txt").write_text(done.stdout + done.stderr)
    return tiny


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree, as `make release` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", str(folder))
    (found,) = folder.glob("*.whl")
    return found
