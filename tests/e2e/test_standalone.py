"""`spark-submit` to a standalone cluster of a master and two workers, without the source tree; GPUs by Spark.

The executors' Python is an environment shipped as an archive, ledgerlm itself comes by `--py-files`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.spark import DELTA
from tests.e2e.conftest import Tiny, copied_to, done_again
from tests.e2e.environments import Environment, environment, interpreter
from tests.e2e.lakes import rows
from tests.e2e.standalone import DELTA_PACKAGE, Shipped, Standalone, Worker, end, ship, standalone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SMALL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.executor.memory": "1g",
    "spark.sql.shuffle.partitions": 4,
    "spark.databricks.delta.snapshotPartitions": 1,
    "spark.buffer.pageSize": "1m",
    "spark.ui.enabled": False,
}
BY_WHAT = {
    "windows": ["client_id", "period", "place", "text_hash"],
    "states": ["client_id", "text_hash", "backbone_id", "sums"],
    "embeddings": ["client_id", "as_of", "backbone_id", "parts"],
    "features": ["client_id", "as_of", "features"],
    "scores": ["client_id", "task", "as_of", "head_id", "probabilities", "decile"],
}


@pytest.fixture(scope="module")
def driver(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A machine that submits: Spark, Ray and DeepSpeed, and ledgerlm from its wheel."""
    folder = tmp_path_factory.mktemp("driver")
    return environment(folder / "env", interpreter("3.11"), wheel, extras="spark,train", pyspark="4.2.0")


@pytest.fixture(scope="module")
def shipment(driver: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return ship(driver, wheel, tmp_path_factory.mktemp("shipped") / "there")


@pytest.fixture(scope="module")
def cluster(driver: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with standalone(driver, tmp_path_factory.mktemp("cluster") / "spark", [Worker(), Worker()]) as started:
        yield started


@pytest.fixture(scope="module")
def gpu_cluster(driver: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    """Two machines of two cores, with one GPU each according to their discovery scripts."""
    workers = [Worker(cores=2, gpus=("3",)), Worker(cores=2, gpus=("5",))]
    with standalone(driver, tmp_path_factory.mktemp("gpus") / "spark", workers) as started:
        yield started


def profile(folder: Path, cluster: Standalone, **spark: object) -> Path:
    """The shipped profile, for machines as small as these."""
    content = load_yaml(shipped("engines/standalone.yaml"), changes={"spark": {"master": cluster.master}})
    content["spark"]["conf"] |= SMALL | spark
    content["ray"] = {"address": "local", "cpus": 2, "object_store_gb": 0.3}
    file = folder / "engine.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def submitted(driver: Environment, shipment: Shipped, cluster: Standalone, job: str, *words: str) -> list[str]:
    """The command line of a job in client mode."""
    (site,) = (driver.folder / "lib").glob("python*/site-packages")
    main = str(site / "ledgerlm" / "jobs" / f"{job}.py")
    return ["spark-submit", "--master", cluster.master, "--driver-memory", "1500m", *shipment.arguments(), main, *words]


IN_THE_ARCHIVE = {"PYSPARK_PYTHON": "./environment/bin/python", "SPARK_LOCAL_IP": "127.0.0.1"}


def submit(driver: Environment, command: list[str], *, at: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    here = {**IN_THE_ARCHIVE, "PYSPARK_DRIVER_PYTHON": str(driver.python)}
    return driver.run(*command, at=at, expect=expect, **here)


def test_a_study_and_a_night_with_an_executor_killed(
    driver: Environment, shipment: Shipped, cluster: Standalone, tmp_path: Path
) -> None:
    """All tables are those of one process on one machine."""
    bank, engine = tmp_path / "bank", profile(tmp_path, cluster)
    driver.run("ledgerlm", "deliveries", str(bank), "--clients", "40", at=tmp_path)
    nightly = ["nightly.yaml", "--set", f"source.path={bank}", "--set", "stages.finetune.max_tokens=20000"]
    there, here = (tmp_path / name for name in ("cluster", "laptop"))
    on_cluster = [*nightly, "--set", f"out={there}", "--set", f"engine={engine}"]
    on_laptop = [*nightly, "--set", f"out={here}"]

    run = submitted(driver, shipment, cluster, "run", *on_cluster)
    process = subprocess.Popen(
        [str(driver.folder / "bin" / run[0]), *run[1:]],
        cwd=tmp_path,
        env=driver.variables(**IN_THE_ARCHIVE, PYSPARK_DRIVER_PYTHON=str(driver.python)),
        stdout=(tmp_path / "run.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        killed = kill_an_executor_that_reads(cluster, there / "runs" / "stages" / "embed.json", process)
        assert process.wait(1400) == 0, (tmp_path / "run.log").read_text()[-6000:]
    finally:
        end(process)
    said = (tmp_path / "run.log").read_text()
    assert "Lost executor" in said and "exited with code 137" in said, f"nobody missed process {killed}"

    driver.run("ledgerlm", "run", *on_laptop, at=tmp_path)
    assert_equal(there, here)

    night = bank / "nights" / "night-1.csv"
    shutil.copy2(night, bank / "deliveries")
    rescore = submitted(driver, shipment, cluster, "rescore", *on_cluster, "--as-of", "2025-01-02")
    done = submit(driver, rescore, at=tmp_path)
    assert "Publication 2 of" in done.stdout
    done = driver.run("ledgerlm", "rescore", *on_laptop, "--as-of", "2025-01-02", at=tmp_path)
    assert "Publication 2 of" in done.stdout
    assert_equal(there, here)


def kill_an_executor_that_reads(cluster: Standalone, record: Path, run: subprocess.Popen[bytes]) -> int:
    """Kills, without a word, an executor whose Python worker is reading texts with the model."""
    while not record.exists() or json.loads(record.read_text())["done"]:
        assert run.poll() is None, "the run ended before the model read anything"
        time.sleep(0.2)
    while True:
        assert run.poll() is None, "the run ended before the model read anything"
        with suppress(psutil.NoSuchProcess):
            for executor in cluster.executors():
                if any(_reads(one) for one in executor.children(recursive=True)):
                    executor.kill()
                    return int(executor.pid)
        time.sleep(0.2)


def _reads(process: psutil.Process) -> bool:
    """Whether a process has torch loaded."""
    try:
        return any("libtorch" in one.path for one in process.memory_maps())
    except (psutil.Error, OSError):  # it has just ended
        return False


def assert_equal(out: Path, wanted: Path) -> None:
    """Same keys, same texts; numbers differ by the order in which they were added."""
    for table, columns in BY_WHAT.items():
        found, right = (rows(one / "lake" / table, columns) for one in (out, wanted))
        assert found.keys() == right.keys() and len(found) > 1, table
        for key, numbers in found.items():
            assert numbers == pytest.approx(right[key], rel=1e-4, abs=1e-5), (table, key)


def test_standalone_takes_no_python_driver(
    driver: Environment, shipment: Shipped, cluster: Standalone, tmp_path: Path
) -> None:
    """Spark's own refusal: of a Python program the driver runs where it is submitted."""
    command = submitted(driver, shipment, cluster, "run", "nightly.yaml")
    command[1:1] = ["--deploy-mode", "cluster"]
    done = submit(driver, command, at=tmp_path, expect=1)
    assert "Cluster deploy mode is currently not supported for python applications on standalone" in done.stderr


def embed_on(
    driver: Environment, shipment: Shipped, cluster: Standalone, tiny: Tiny, expect: int, **spark: object
) -> subprocess.CompletedProcess[str]:
    engine = profile(tiny.folder, cluster, **spark)
    words = ("--conf", str(tiny.file), "--set", f"engine={engine}", "--set", "stages.embed.device=cuda", "--fresh")
    command = submitted(driver, shipment, cluster, "embed", *words)
    return submit(driver, command, at=tiny.folder, expect=expect)


GPUS: dict[str, Any] = {"spark.executor.resource.gpu.amount": 1, "spark.task.resource.gpu.amount": 1}


def test_workers_that_would_share_a_gpu_are_refused(
    finished: Tiny, driver: Environment, shipment: Shipped, cluster: Standalone, tmp_path: Path
) -> None:
    done = embed_on(driver, shipment, cluster, copied_to(finished, tmp_path / "tiny"), expect=2)
    assert "Spark knows of no GPUs" in done.stdout + done.stderr
    assert "spark.task.resource.gpu.amount=1" in done.stdout + done.stderr


def test_a_worker_opens_its_model_on_the_gpu_of_its_task(
    finished: Tiny, driver: Environment, shipment: Shipped, gpu_cluster: Standalone, tmp_path: Path
) -> None:
    """There is no card, so it says which one it wanted."""
    done = embed_on(driver, shipment, gpu_cluster, copied_to(finished, tmp_path / "tiny"), expect=1, **GPUS)
    told = done.stdout + done.stderr
    assert "the model is to be opened on cuda:3" in told or "the model is to be opened on cuda:5" in told


TASKS = """
import json, os, time
from pyspark.sql import SparkSession
from ledgerlm.engines.gpus import WorkerDevice
import pyarrow as pa

spark = SparkSession.builder.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
device = WorkerDevice.of(spark, "cuda")

def where(batches):
    began, at = time.time(), device.here()
    time.sleep(1)
    for _ in batches:
        pass
    row = {"at": at, "process": os.getpid(), "began": began, "ended": time.time()}
    yield pa.RecordBatch.from_pylist([row])

frame = spark.range(0, 8, 1, 8).mapInArrow(where, "at string, process long, began double, ended double")
print("TASKS " + json.dumps([row.asDict() for row in frame.collect()]))
"""


def test_no_two_tasks_are_on_one_gpu_at_a_time(
    driver: Environment, shipment: Shipped, gpu_cluster: Standalone, tmp_path: Path
) -> None:
    """Machines of two cores and one GPU: two tasks at a time, not four."""
    (tmp_path / "tasks.py").write_text(TASKS)
    conf = [f"--conf={key}={value}" for key, value in (SMALL | GPUS).items()]
    command = ["spark-submit", "--master", gpu_cluster.master, *conf, *shipment.arguments(), "tasks.py"]
    done = submit(driver, command, at=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TASKS ")]
    tasks = json.loads(line.removeprefix("TASKS "))
    assert len(tasks) == 8 and {task["at"] for task in tasks} == {"cuda:3", "cuda:5"}
    for gpu in ("cuda:3", "cuda:5"):
        spans = sorted((task["began"], task["ended"]) for task in tasks if task["at"] == gpu)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(spans)), spans


BOTH = """
import sys
from pyspark.sql import SparkSession
from ray.util.spark import setup_ray_cluster, shutdown_ray_cluster
from ledgerlm.jobs.cli import main

SparkSession.builder.getOrCreate()
memory = dict.fromkeys(("memory_worker_node", "memory_head_node"), 10**9)
objects = dict.fromkeys(("object_store_memory_worker_node", "object_store_memory_head_node"), 150_000_000)
cores = {"num_cpus_worker_node": 1, "num_gpus_worker_node": 0, "num_cpus_head_node": 0}
setup_ray_cluster(max_worker_nodes=2, **cores, **memory, **objects)
try:
    code = main(sys.argv[1:])
finally:
    shutdown_ray_cluster()
sys.exit(code)
"""


def test_ray_beside_spark_on_its_executors(
    finished: Tiny, driver: Environment, gpu_cluster: Standalone, tmp_path: Path
) -> None:
    """Of the two cores of each machine Ray has one, for as long as the program runs, and Spark the other."""
    tiny = copied_to(finished, tmp_path / "tiny")
    (tmp_path / "both.py").write_text(BOTH)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    conf = SMALL | DELTA | {f"spark.executorEnv.{key}": value for key, value in auth.items()}
    engine = profile(tmp_path, gpu_cluster)
    content = yaml.safe_load(engine.read_text()) | {"ray": {"address": "${oc.env:RAY_ADDRESS}"}}
    engine.write_text(yaml.safe_dump(content))
    settings = [f"--conf={key}={value}" for key, value in conf.items()]
    words = ["enrich", "--conf", str(tiny.file), "--set", f"engine={engine}", "--set", "stages.enrich.pool.workers=2"]
    submit = ["spark-submit", "--master", gpu_cluster.master, "--packages", DELTA_PACKAGE, *settings]
    here = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(driver.python), **auth}
    driver.run(*submit, "both.py", *words, "--fresh", at=tmp_path, expect=0, **here)
    done_again(tiny, finished, "enrich")
    columns = ["client_id", "as_of", "variant", "text"]
    found, wanted = (rows(one.out / "lake" / "enriched_documents", columns) for one in (tiny, finished))
    assert found.keys() == wanted.keys() and len(found) > 1
