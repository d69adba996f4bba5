"""The same jobs where parts run in other processes: spark-submit on two executors, Ray on two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.conftest import Tiny, copied_to, done_again, run
from tests.e2e.environments import REPOSITORY
from tests.e2e.lakes import all_keys

BIN = Path(sys.executable).parent
DASHBOARD = 8399


@pytest.fixture(scope="module")
def copied(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A copy of the finished pipeline, free to be changed."""
    return copied_to(finished, tmp_path_factory.mktemp("copied"))


# The one that asks most of an executor, a model in each Python worker; the others take as long.
@pytest.mark.parametrize(
    "job",
    ["embed", *(pytest.param(job, marks=pytest.mark.slow) for job in ("ingest", "serialize", "aggregate", "score"))],
)
def test_spark_submit_on_two_executors(copied: Tiny, finished: Tiny, job: str) -> None:
    run(
        [
            str(BIN / "spark-submit"),
            str(REPOSITORY / "jobs" / f"{job}.py"),
            "--conf",
            str(copied.file),
            "--set",
            "engine=local_cluster",
            "--fresh",
        ],
        SPARK_LOCAL_IP="127.0.0.1",
        PYSPARK_PYTHON=sys.executable,
        PYSPARK_DRIVER_PYTHON=sys.executable,
    )
    assert all_keys(copied.out / "lake") == all_keys(finished.out / "lake")
    done_again(copied, finished, job)


def test_spark_submit_tells_failure_by_its_exit_code(copied: Tiny) -> None:
    command = [str(BIN / "spark-submit"), str(REPOSITORY / "jobs" / "serialize.py"), "--conf", str(copied.file)]
    done = run([*command, "--set", "data=nowhere.yaml"], expect=2, PYSPARK_DRIVER_PYTHON=sys.executable)
    # Spark passes on what the driver program prints as its own output.
    assert "no file nowhere.yaml" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Ray cluster of a head and a worker node, one core each, on loopback."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    address = "127.0.0.1:6399"
    common = ["--num-cpus=1", "--object-store-memory=150000000", "--disable-usage-stats"]
    board = ["--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD}"]
    head = ["start", "--head", "--port=6399", "--node-ip-address=127.0.0.1", *board, *common]
    for arguments in (head, ["start", f"--address={address}", "--node-ip-address=127.0.0.1", *common]):
        subprocess.run([str(BIN / "ray"), *arguments], env=environment, check=True, capture_output=True, timeout=120)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    yield address
    del os.environ["RAY_AUTH_TOKEN_PATH"]
    # `ray stop` would end every Ray of this machine, also one that a user works with.
    ours = [process for process in psutil.process_iter(["environ"]) if str(token) in _token_path(process)]
    for process in ours:
        process.kill()
    psutil.wait_procs(ours, timeout=60)


def _token_path(process: psutil.Process) -> str:
    """Token of the cluster that a process belongs to; processes of other users do not tell."""
    environment: dict[str, str] = process.info["environ"] or {}
    return environment.get("RAY_AUTH_TOKEN_PATH", "")


def joining(tiny: Tiny, address: str) -> Path:
    """The laptop's profile, but for the Ray cluster that it joins."""
    profile = yaml.safe_load((REPOSITORY / "conf" / "engines" / "laptop.yaml").read_text())
    engine = tiny.folder / "joining.yaml"
    engine.write_text(yaml.safe_dump({**profile, "ray": {"address": address}}))
    return engine


# A node has one core, which a rank and a worker take: two of them are on two nodes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "spread"),
    [("enrich", "stages.enrich.pool.workers=2"), ("finetune", "stages.finetune.workers.ranks=2"), ("fit", "seed=42")],
)
def test_ray_jobs_on_two_nodes(copied: Tiny, finished: Tiny, two_nodes: str, job: str, spread: str) -> None:
    words = ("--conf", str(copied.file), "--set", f"engine={joining(copied, two_nodes)}", "--set", spread, "--fresh")
    copied.command(job, *words)
    record = done_again(copied, finished, job)
    if job == "finetune":
        assert record["facts"]["ranks"] == 2


@pytest.mark.slow
def test_a_job_submitted_to_ray(finished: Tiny, two_nodes: str, tmp_path: Path) -> None:
    """The driver runs on a node of the cluster, which it finds by the RAY_ADDRESS that Ray gives a job."""
    tiny = copied_to(finished, tmp_path / "tiny")
    engine = joining(tiny, "${oc.env:RAY_ADDRESS}")
    verb = [sys.executable, "-m", "ledgerlm.jobs.cli", "enrich", "--conf", str(tiny.file), "--set", f"engine={engine}"]
    submit = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--", *verb, "--fresh"]
    done = run(submit, RAY_AUTH_MODE="token")
    assert "succeeded" in done.stdout + done.stderr
    done_again(tiny, finished, "enrich")
    assert all_keys(tiny.out / "lake") == all_keys(finished.out / "lake")
