"""`ledgerlm run` on a small CSV, from ingest to scores, against a script of Spark and LightGBM to the same end.

Both are processes of their own, as a user starts them. CPU seconds of all their processes, Ray's and the JVM's among
them, and the clock's.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from tests.cpu_meter import CpuMeter

CLIENTS, EVENTS = 400, 2_000
OUT = {"ours": "out", "bare": "bare"}
LIKE = 0.8  # rank correlation of the scores, whose trees and features are not the same to the last
SPEC = """
name: small
source: {{path: {folder}, files: [{{glob: events.csv}}]}}
client: client_id
time: {{column: event_time}}
event_id: {{columns: [event_id]}}
amount: {{column: amount}}
fields: [{{name: category}}, {{name: store}}]
as_of: 2025-01-01
labels: [{{name: churn, kind: binary, file: {{glob: labels.csv}}, id: client_id, column: churn}}]
split: {{rule: hash, share: 0.1, seed: 42}}
"""
STAGES: dict[str, dict[str, Any]] = {
    "ingest": {},
    "aggregate": {},
    # All labelled clients, as the script does.
    "fit": {"representation": "agg", "sources": [{"table": "features"}], "where": "split IN ('train', 'test')"},
    "score": {},
}


def run(spark: SparkSession, workdir: Path, turns: int = 3) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    write_files(workdir)
    ways = {
        "ours": [
            sys.executable,
            "-m",
            "ledgerlm.jobs.cli",
            "run",
            str(write_pipeline(workdir, SPEC, STAGES)),
            "--fresh",
        ],
        "bare": [sys.executable, str(Path(__file__).with_name("bare.py")), str(workdir)],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, command in ways.items():
            shutil.rmtree(workdir / OUT[name], ignore_errors=True)
            taken[name].append(measured(command))
    likeness = _likeness(spark, workdir)
    if likeness < LIKE:
        raise AssertionError(f"the two ways say different things: rank correlation {likeness:.2f}")
    typical = {name: [median(column) for column in zip(*each, strict=True)] for name, each in taken.items()}
    return [
        {
            "what": f"ledgerlm run on {EVENTS:,} rows of {CLIENTS} clients, ingest to score, {by}",
            "against": "a script of Spark and LightGBM, the same tables",
            "ratio": typical["ours"][place] / typical["bare"][place],
            "target": 2,
            "better": "lower",
            "detail": f"{typical['ours'][place]:.1f} against {typical['bare'][place]:.1f} s; "
            f"rank correlation of the scores {likeness:.2f}",
        }
        for place, by in enumerate(("CPU seconds", "wall time"))
    ]


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a command's processes, and wall seconds.

    Raises:
        RuntimeError: it failed.
    """
    line = [sys.executable, "-m", "tests.benchmarks.bench_run", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    used, seconds = json.loads(done.stdout.splitlines()[-1])
    return used, seconds


def write_files(folder: Path) -> None:
    """Events of clients of whom those who buy in the first categories, and those who have stopped, tend to leave."""
    draw, first = random.Random(7), datetime(2024, 1, 1)
    leaves = {f"c{number}": draw.random() < 0.4 for number in range(CLIENTS)}
    with (folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["event_id", "client_id", "event_time", "amount", "category", "store"])
        for number in range(EVENTS):
            client = f"c{number % CLIENTS}"
            days = draw.uniform(0, 240 if leaves[client] else 365)
            place = int(draw.random() ** (2.0 if leaves[client] else 1.0) * 30)
            at = (first + timedelta(days=days)).replace(microsecond=0)
            row = [f"e{number}", client, at, round(draw.lognormvariate(3, 1), 2), f"CATEGORY {place}"]
            rows.writerow([*row, f"s{draw.randrange(20)}"])
    lines = [f"{client},{int(left)}\n" for client, left in leaves.items()]
    (folder / "labels.csv").write_text("client_id,churn\n" + "".join(lines), encoding="utf-8")


def write_pipeline(folder: Path, spec: str, stages: Mapping[str, Any]) -> Path:
    """The file of a pipeline over the files of a folder; `{folder}` in the spec is that."""
    (folder / "spec.yaml").write_text(spec.format(folder=folder), encoding="utf-8")
    file = folder / "run.yaml"
    content = {
        "pipeline": "bench",
        "out": str(folder / "out"),
        "data": str(folder / "spec.yaml"),
        "stages": stages,
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def _likeness(spark: SparkSession, folder: Path) -> float:
    """Rank correlation of both ways' scores, which hold the same clients."""
    ours = spark.read.format("delta").load(str(folder / "out" / "lake" / "scores"))
    bare = spark.read.format("delta").load(str(folder / "bare" / "scores"))
    ours = ours.select("client_id", F.col("probabilities")[1].alias("ours"))
    both = ours.join(bare.select("client_id", F.col("probability").alias("bare")), "client_id").toPandas()
    if not len(both) == CLIENTS == ours.count() == bare.count():
        raise AssertionError("the two ways score different clients")
    return float(both["ours"].corr(both["bare"], method="spearman"))


def measure(command: list[str]) -> tuple[float, float]:
    """CPU seconds of all processes of a command, this one apart, and wall seconds."""
    meter = CpuMeter(every=0.25)
    meter.start()
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    seconds = time.monotonic() - began
    used = meter.stop() - time.process_time()
    if done.returncode:
        raise RuntimeError(f"{done.stdout}{done.stderr}")
    return used, seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1:])) + "\n")
