"""A local Ray comes up on a machine that is too slow for it at first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The interpreter imports this before anything else: Ray's agent, and nobody but it, is late the first time.
_LATE = """
import pathlib, sys, time
if any("dashboard/agent.py" in argument for argument in sys.orig_argv):
    seen = pathlib.Path(__file__).with_name("seen")
    if not seen.exists():
        seen.touch()
        time.sleep(60)
"""
_START = """
from ledgerlm.engines.ray import RayConf, RayEngine
engine = RayEngine(RayConf(cpus=1, object_store_gb=0.1))
engine.start()
import ray
print(ray.get(ray.remote(lambda: "came up").remote()))
engine.stop()
"""


@pytest.mark.slow  # a minute of waiting for Ray's own limits
def test_an_agent_that_is_late_costs_an_attempt_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_LATE)
    done = subprocess.run(
        [sys.executable, "-c", _START],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "came up"
    assert (tmp_path / "seen").exists()
