"""README's "Every night", as a user would type it: a study, three nights, and a look at what readers see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def ledgerlm(*words: str) -> str:
    """The output of a command that must end well."""
    command = [sys.executable, "-m", "ledgerlm.jobs.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "WARN" not in done.stderr
    return done.stdout


def test_a_bank_is_rescored_every_night(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    ledgerlm("deliveries", str(bank), "--clients", "120")
    nightly = ["conf/nightly.yaml", "--set", f"source.path={bank}", "--set", f"out={tmp_path / 'out'}"]
    ledgerlm("run", *nightly, "--set", "stages.finetune.max_tokens=20000")
    nightly += ["--set", "stages.finetune.max_tokens=20000"]
    for night in (1, 2, 3):
        file = bank / "nights" / f"night-{night}.csv"
        (bank / "deliveries" / file.name).write_bytes(file.read_bytes())
        said = ledgerlm("rescore", *nightly, "--as-of", f"2025-01-0{night + 1}")
        assert f"Publication {night + 1} of" in said
        assert said.count("learnt before: taken as it stands") == 2
    record = json.loads((tmp_path / "out" / "runs" / "stages" / "embed.json").read_text())
    assert record["since"] == 3, "the model read what the third night brought"
    ingested = json.loads((tmp_path / "out" / "runs" / "stages" / "ingest.json").read_text())
    assert ingested["facts"]["batch"] == 4
    status = json.loads(ledgerlm("status", *nightly, "--json"))
    assert [one["number"] for one in status["publications"]] == [4, 3, 2, 1]
    assert set(status["waiting"].values()) == {0}
    client = (bank / "nights" / "night-3.csv").read_text().splitlines()[1].split(",")[0]
    found = json.loads(ledgerlm("explain", *nightly, "--client", client, "--form", "json"))
    assert {one["task"] for one in found["scores"]} == {"churn", "default"}
    assert found["publication"]["number"] == 4 and found["texts"]
    ledgerlm("explain", *nightly, "--client", client, "--form", "html", "--to", str(tmp_path / "client.html"))
    assert client in (tmp_path / "client.html").read_text()
    assert "Publication 5: the tables of publication 3" in ledgerlm("rollback", *nightly)
    assert f"{client}" in ledgerlm("explain", *nightly, "--client", client, "--as-of", "2025-01-03")
    assert "readers see publication 5 (published again)" in ledgerlm("status", *nightly)
    assert "publications that stay readable: 5, 4, 3, 2, 1" in ledgerlm("maintain", *nightly)
    assert ledgerlm("explain", *nightly, "--client", client)
