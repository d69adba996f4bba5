"""The first small run: twelve rows through ingest, serialize and report, by the command line in a process of its own.

With what a session of this machine is started with, against Java's own settings. The figures are CPU seconds of all
processes of the run: so short a run waits for a compiler more than for anything else, and wall time would say how busy
the machine is.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml
from pyspark.sql import SparkSession

from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.java import java_home

SPEC = """
name: small
source: {{path: {folder}, files: [{{glob: events.csv}}]}}
client: client
time: {{column: time, format: yyyy-MM-dd}}
event_id: {{columns: [id]}}
fields: [{{name: mcc}}]
as_of: 2025-01-01
labels: [{{name: churn, kind: binary, file: {{glob: labels.csv}}, id: client, column: flag}}]
"""
JAVAS_OWN = (
    "-XX:Tier4InvocationThreshold=5000 -XX:Tier4MinInvocationThreshold=600 -XX:Tier4CompileThreshold=15000 "
    "-XX:Tier4BackEdgeThreshold=40000 -XX:Tier3DelayOn=5 -XX:+UseG1GC"
)
_ORPHANS_COME_HERE = 36  # PR_SET_CHILD_SUBREAPER: the JVM outlives the process that started it


def run(spark: SparkSession, workdir: Path, turns: int = 3) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    del spark  # each turn starts its own
    ways = {"ours": "laptop", "javas": str(_javas_own(workdir))}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, engine in ways.items():
            file = _pipeline(workdir / f"{name}-{turn}", engine)
            command = [sys.executable, "-m", "tests.benchmarks.bench_first_run", str(file)]
            seconds[name].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    typical = {name: {key: median(one[key] for one in taken) for key in taken[0]} for name, taken in seconds.items()}
    return [
        {
            "what": "twelve rows: ingest, serialize, report; CPU seconds",
            "against": "Java's own settings, without the class archive",
            "ratio": typical["ours"]["all"] / typical["javas"]["all"],
            "target": 0.75,
            "better": "lower",
            "detail": "; ".join(
                f"{key} {typical['ours'][key]:.1f} against {typical['javas'][key]:.1f} s" for key in typical["ours"]
            ),
        }
    ]


def _javas_own(workdir: Path) -> Path:
    """The laptop's profile, its JVM as Java starts one."""
    profile = load_yaml(shipped("engines/laptop.yaml"))
    base = f"-XX:SharedArchiveFile={java_home()}/lib/server/classes.jsa"
    profile["spark"]["conf"]["spark.driver.extraJavaOptions"] = f"{JAVAS_OWN} {base}"
    file = workdir / "java.yaml"
    file.write_text(yaml.safe_dump(profile))
    return file


def _pipeline(folder: Path, engine: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(SPEC.format(folder=folder))
    rows = [f"{number},c{number % 6},2024-01-{number + 1:02d},grocery" for number in range(12)]
    (folder / "events.csv").write_text("\n".join(["id,client,time,mcc", *rows]) + "\n")
    (folder / "labels.csv").write_text("client,flag\n" + "".join(f"c{number},{number % 2}\n" for number in range(6)))
    content = {
        "pipeline": "first_run",
        "out": str(folder / "out"),
        "data": str(folder / "spec.yaml"),
        "engine": engine,
        "stages": {"ingest": {}, "serialize": {}},
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(content))
    return file


def measure(file: str) -> dict[str, float]:
    """CPU seconds of `ledgerlm run --fresh FILE`, and of its parts: what comes before a stage is done counts to it."""
    ctypes.CDLL(None).prctl(_ORPHANS_COME_HERE, 1, 0, 0, 0)
    command = [sys.executable, "-u", "-m", "ledgerlm.jobs.cli", "run", file, "--fresh"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reached = [_so_far() for line in process.stdout if " in, " in line]
    used = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        used += usage.ru_utime + usage.ru_stime
    ingest, serialize = reached
    return {"ingest": ingest, "serialize": serialize - ingest, "report": used - serialize, "all": used}


def _so_far() -> float:
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        used += times.user + times.system + times.children_user + times.children_system
    return used


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1])))
