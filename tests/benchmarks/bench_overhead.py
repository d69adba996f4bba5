"""What states and publication cost on the first, full run: the road over windows against the one over documents.

The same files, backbone and clients, from ingest to an embedding of everybody as of the same time. A study over
documents keeps no states, follows no changes and publishes nothing; the first run of a night's pipeline does all of
that. Both in one session, in turns, each into an empty lake.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession

from ledgerlm.config import load_yaml, shipped
from ledgerlm.events.simulator.deliveries import DeliveriesConf
from ledgerlm.jobs.deliveries import write_deliveries
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.runs.record import Records
from tests.benchmarks.bench_aggregates import cpu_so_far
from tests.benchmarks.bench_plan import random_backbone

BANK = DeliveriesConf(clients=200, purchases=100, nights=1)
STAGES = ("ingest", "serialize", "embed", "publish")


def run(spark: SparkSession, workdir: Path, turns: int = 2) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    folder = random_backbone(spark, workdir)
    write_deliveries(str(workdir / "bank"), BANK)
    ways = {name: _pipeline(name, folder, workdir) for name in ("windows", "documents")}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, file in ways.items():
            used = _used(file, workdir / name)
            if turn:  # the first one compiles, and opens the backbone in Python's workers
                taken[name].append(used)
    vectors = {name: Lake(str(workdir / name / "lake"), spark).read("embeddings").count() for name in ways}
    if vectors["windows"] != vectors["documents"]:
        raise AssertionError(f"the two ways embed different clients: {vectors}")
    typical = {name: {key: median(one[key] for one in each) for key in each[0]} for name, each in taken.items()}
    ours, plain = typical["windows"], typical["documents"]
    parts = ", ".join(f"{stage} {ours[stage]:.1f} against {plain.get(stage, 0):.1f}" for stage in STAGES)
    return [
        {
            "what": f"a first run with states and publication, {vectors['windows']:,} embeddings, {by}",
            "against": "a study over documents, which keeps none",
            "ratio": ours[by] / plain[by],
            "target": 1.1,
            "better": "lower",
            "detail": f"{ours[by]:.1f} against {plain[by]:.1f} s; by the clock {parts}",
        }
        for by in ("wall time", "CPU seconds")
    ]


def _pipeline(name: str, folder: Path, workdir: Path) -> Path:
    bank, out = workdir / "bank", workdir / name
    content = load_yaml(shipped("nightly.yaml"), [f"source.path={bank}", f"out={out}"])
    stages = {stage: content["stages"][stage] for stage in STAGES}
    stages["embed"]["backbone"] = str(folder)
    if name == "documents":
        del stages["publish"], stages["embed"]["source"], stages["serialize"]["windows"]
        stages["ingest"] = {}
    file = workdir / f"{name}.yaml"
    file.write_text(json.dumps(content | {"stages": stages}))
    return file


def _used(file: Path, out: Path) -> dict[str, float]:
    """Seconds of a run into an empty lake, and of each stage."""
    shutil.rmtree(out, ignore_errors=True)
    began, before = time.perf_counter(), cpu_so_far()
    with contextlib.redirect_stdout(io.StringIO()):
        run_pipeline(str(file))
    used = {"wall time": time.perf_counter() - began, "CPU seconds": cpu_so_far() - before}
    found = {stage: Records(out).load(stage) for stage in STAGES}
    return used | {stage: record.seconds for stage, record in found.items() if record is not None}
