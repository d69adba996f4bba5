"""`kill -9` in every stage, then the same command again: it ends well, with the same keys and no doubled row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Tiny, copied_to, write_tiny
from tests.e2e.lakes import all_keys

# Each point dies with work done that no completion record knows of yet.
POINTS = [
    "ingest:after_events",
    "serialize:after_documents",
    "enrich:after_pool",
    "enrich:after_enriched_documents",
    "finetune:end",
    "embed:after_embeddings",
    "aggregate:after_features",
    "evaluate:after_leaderboard",
    "fit:after_income",
    "score:after_scores",
]
KILLED = -9


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_in_every_stage(finished: Tiny, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    for point in POINTS:
        tiny.command("run", str(tiny.file), expect=KILLED, LEDGERLM_FAILPOINT=point)
        stage, _, _ = point.partition(":")
        record = json.loads((tiny.out / "runs" / "stages" / f"{stage}.json").read_text())
        assert not record["done"], point
    tiny.command("run", str(tiny.file))
    assert all_keys(tiny.out / "lake") == all_keys(finished.out / "lake")


@pytest.mark.parametrize("point", ["serialize:after_documents"])
def test_killed_between_commit_and_record(finished: Tiny, tmp_path: Path, point: str) -> None:
    """The short form, for every commit of the code: one kill at the worst point of a cheap stage."""
    tiny = copied_to(finished, tmp_path)
    stage, _, _ = point.partition(":")
    tiny.command(stage, "--conf", str(tiny.file), "--fresh", expect=KILLED, LEDGERLM_FAILPOINT=point)
    cut = json.loads((tiny.out / "runs" / "stages" / f"{stage}.json").read_text())
    committed = sorted((tiny.out / "lake" / "documents" / "_delta_log").glob("*.json"))
    tiny.command(stage, "--conf", str(tiny.file))
    assert sorted((tiny.out / "lake" / "documents" / "_delta_log").glob("*.json")) == committed
    record = json.loads((tiny.out / "runs" / "stages" / f"{stage}.json").read_text())
    assert (record["done"], record["attempt"]) == (True, cut["attempt"])
