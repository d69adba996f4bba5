"""A standalone Spark cluster of separate processes on loopback, and what a job ships to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.environments import Environment, uv

DELTA_PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
# What a machine of the cluster has of its own: what no archive should carry.
MODEL_LIBRARIES = ("torch==2.13.0", "transformers==5.20.2", "peft==0.21.2", "accelerate==1.15.0")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One machine of the cluster.

    Attributes:
        cores: that it lends.
        gpus: addresses that its discovery script tells; no card is needed for Spark to schedule them.
    """

    cores: int = 1
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """A master and workers, each a process of its own."""

    folder: Path
    master: str
    processes: tuple[subprocess.Popen[bytes], ...]

    def executors(self) -> list[psutil.Process]:
        """Processes that run an application's tasks."""
        children = [one for ours in self.processes for one in psutil.Process(ours.pid).children(recursive=True)]
        return [one for one in children if "CoarseGrainedExecutorBackend" in _command(one)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@contextmanager
def standalone(driver: Environment, folder: Path, workers: Sequence[Worker]) -> Iterator[Standalone]:
    """Starts a cluster with the Spark of an environment, and ends it with all that it started."""
    folder.mkdir()
    with ExitStack() as stack:
        port = _free_port()
        started = [_started(stack, driver, folder, "master.Master", "--port", str(port))]
        master = f"spark://127.0.0.1:{port}"
        for number, worker in enumerate(workers):
            settings = _settings(folder / f"worker-{number}", worker)
            words = ("--cores", str(worker.cores), "--memory", "2g", "--properties-file", str(settings), master)
            started.append(_started(stack, driver, folder, "worker.Worker", *words, "--work-dir", str(settings.parent)))
        said = folder / "master.Master-0.log"
        deadline = time.monotonic() + 120
        while said.read_text().count("Registering worker") < len(workers):
            assert time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.2)
        yield Standalone(folder=folder, master=master, processes=tuple(started))


def _started(stack: ExitStack, driver: Environment, folder: Path, name: str, *words: str) -> subprocess.Popen[bytes]:
    log = folder / f"{name}-{len([*folder.glob(f'{name}-*.log')])}.log"
    spark = next((driver.folder / "lib").glob("python*/site-packages/pyspark"))
    process = subprocess.Popen(
        [str(spark / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1", *words],
        env=driver.variables(SPARK_HOME=str(spark), SPARK_LOCAL_IP="127.0.0.1", SPARK_MASTER_WEBUI_PORT="0"),
        cwd=folder,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, if it has not ended, with all that it started."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(60)


def _settings(folder: Path, worker: Worker) -> Path:
    folder.mkdir()
    lines = {"spark.worker.ui.port": "0"}
    if worker.gpus:
        script = folder / "gpus.sh"
        script.write_text(f"#!/bin/sh\necho '{json.dumps({'name': 'gpu', 'addresses': worker.gpus})}'\n")
        script.chmod(0o755)
        amount = {"spark.worker.resource.gpu.amount": str(len(worker.gpus))}
        lines |= amount | {"spark.worker.resource.gpu.discoveryScript": str(script)}
    settings = folder / "worker.conf"
    settings.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    return settings


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What `spark-submit` gives executors: packages that change rarely, and ledgerlm, which changes with each release.

    Attributes:
        environment: archive of a virtual environment with all that ledgerlm asks for but itself.
        package: the wheel under a name that Spark puts on Python's path.
    """

    environment: Path
    package: Path

    def arguments(self) -> list[str]:
        return [
            "--packages",
            DELTA_PACKAGE,
            "--archives",
            f"{self.environment}#environment",
            "--py-files",
            str(self.package),
        ]


def ship(driver: Environment, wheel: Path, folder: Path) -> Shipped:
    """Packs what executors need. torch with its CUDA (4.7 GB) lies on the machines, on the path of the environment."""
    folder.mkdir()
    libraries, packed = folder / "libraries", folder / "environment"
    uv("pip", "install", "--quiet", "--python", str(driver.python), "--target", str(libraries), *MODEL_LIBRARIES)
    uv("venv", "--quiet", "--relocatable", "--python", str(driver.python), str(packed))
    python = str(packed / "bin" / "python")
    uv("pip", "install", "--quiet", "--python", python, str(wheel))
    uv("pip", "uninstall", "--quiet", "--python", python, "ledgerlm")
    (site,) = (packed / "lib").glob("python*/site-packages")
    (site / "machine.pth").write_text(f"{libraries}\n")
    archive, package = folder / "environment.tar.gz", folder / "ledgerlm.zip"
    subprocess.run(["tar", "-czf", str(archive), "-C", str(packed), "."], check=True)
    shutil.copy2(wheel, package)
    return Shipped(environment=archive, package=package)
