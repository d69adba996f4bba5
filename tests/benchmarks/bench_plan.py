"""The plan against what it plans: runs and nights are predicted from two small runs and a night after one of them.

Each run is one of the command line, in a process of its own. Its stages' seconds are told twice: by the clock, and by
the CPU seconds of all its processes over the cores, which is what the clock would show on a machine that nobody else
uses. The plan is fitted and judged on each of them alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from ledgerlm.config import load_yaml, shipped
from ledgerlm.events.simulator.deliveries import DeliveriesConf
from ledgerlm.jobs.deliveries import write_deliveries
from ledgerlm.lake.lake import Lake
from ledgerlm.planning.conf import Part, PlanConf
from ledgerlm.planning.estimate import Walk
from ledgerlm.planning.measured import Sample, backbone_of, sample_of
from ledgerlm.planning.plans import plans_of
from ledgerlm.runs.pipeline import Pipeline, load_pipeline
from ledgerlm.runs.record import Records, write_json
from ledgerlm.text.serialize import DocumentConf
from ledgerlm.text.windows import windows
from tests.benchmarks.bench_backtests import SPEC, WINDOWING, backbone, events
from tests.cpu_meter import CpuMeter

PURCHASES = 100  # mean of a client in half a year
FITTED, CHECKED = (100, 800), (200, 400, 1600)  # clients
NIGHT = "2025-01-02"
WITHIN = 1.3
_STAGE, _ENDED = re.compile(r"^\d+/\d+ (\w+)  (.*)"), re.compile(r" in, .* out")
_STAGE_OF: dict[Part, str] = {"fold": "embed"}

Seconds = dict[str, float]
"""Stage -> seconds."""


def run(
    spark: SparkSession, workdir: Path, fitted: Sequence[int] = FITTED, checked: Sequence[int] = CHECKED
) -> list[dict[str, Any]]:
    """Measures; returns rows of what, against, ratio, target, better and detail.

    Args:
        spark: the session.
        workdir: where banks and lakes lie.
        fitted: clients of the runs that the plan learns from; a night of the first one tells of nights.
        checked: clients of the runs that are predicted, each with a night after it.
    """
    folder = random_backbone(spark, workdir)
    sizes = {clients: DeliveriesConf(clients=clients, purchases=PURCHASES, nights=1) for clients in (*fitted, *checked)}
    files = {clients: nightly_pipeline(conf, folder, workdir) for clients, conf in sizes.items()}
    told: dict[str, dict[str, Seconds]] = {"clock": {}, "CPU": {}}
    samples: dict[str, list[Sample]] = {"clock": [], "CPU": []}

    def measured(what: str, pipeline: Pipeline, *words: str) -> None:
        told["clock"][what], told["CPU"][what] = _measured(pipeline, *words)
        write_json(workdir / "measured.json", told)

    def sample(pipeline: Pipeline) -> Sample:
        return sample_of(pipeline, Records(pipeline.out), Lake(pipeline.home.root, spark))

    for clients, file in files.items():
        pipeline, first, night = load_pipeline(file), f"{clients}", f"night of {clients}"
        measured(first, pipeline, "run")
        found = sample(pipeline) if clients in fitted else None
        if clients == fitted[0] or clients in checked:
            bank = workdir / f"bank-{clients}"
            shutil.copy(bank / "nights" / "night-1.csv", bank / "deliveries")
            measured(night, pipeline, "rescore", "--as-of", NIGHT)
        if found is not None:
            nights = sample(pipeline).nights if clients == fitted[0] else {}
            samples["clock"].append(replace(found, nights=nights))
            by_cpu = _with_seconds(found, told["clock"][first], told["CPU"][first])
            used = {stage: told["CPU"][night][stage] for stage in nights}
            samples["CPU"].append(replace(by_cpu, nights=used))
    rows = []
    for by, mine in samples.items():
        for clients in checked:
            walk, nightly = _planned(clients, mine, folder)
            rows += _rows(f"first run of {clients:,} clients, {by}", walk, told[by][f"{clients}"])
            rows += _rows(f"a night of {clients:,} clients, {by}", nightly, told[by][f"night of {clients}"])
    return rows


def random_backbone(spark: SparkSession, workdir: Path) -> Path:
    """A Llama with random weights: what it costs does not depend on what it learnt."""
    told = windows(events(spark), SPEC, DocumentConf(), WINDOWING)
    return backbone(told, workdir / "backbone")[0]


def nightly_pipeline(conf: DeliveriesConf, folder: Path, workdir: Path) -> Path:
    """Writes a bank's files, and the nightly pipeline over them with a backbone that is there already.

    Args:
        conf: the bank.
        folder: of the backbone.
        workdir: gets `bank-CLIENTS`, `out-CLIENTS` and the pipeline's file, which is returned.
    """
    bank, out = workdir / f"bank-{conf.clients}", workdir / f"out-{conf.clients}"
    for one in (bank, out):
        shutil.rmtree(one, ignore_errors=True)
    write_deliveries(str(bank), conf)
    content = load_yaml(shipped("nightly.yaml"), [f"source.path={bank}", f"out={out}"])
    del content["stages"]["finetune"]
    content["stages"]["embed"]["backbone"] = str(folder)
    file = workdir / f"pipeline-{conf.clients}.yaml"
    file.write_text(json.dumps(content))
    return file


def _measured(pipeline: Pipeline, *words: str) -> tuple[Seconds, Seconds]:
    """Seconds of each stage of a command on a pipeline, by the clock and by the CPU over the cores."""
    verb, *more = words
    command = [sys.executable, "-m", "tests.benchmarks.bench_plan", verb, str(pipeline.file), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    used: Seconds = json.loads(done.stdout.splitlines()[-1])
    records = {name: Records(pipeline.out).load(name) for name in used}
    return {name: record.seconds for name, record in records.items() if record is not None}, used


def _with_seconds(sample: Sample, clock: Seconds, used: Seconds) -> Sample:
    """The sample as if it had taken other seconds, each part of a stage in proportion."""
    shares = {stage: used[stage] / clock[stage] for stage in used}
    parts = {}
    for part, one in sample.parts.items():
        share = shares.get(_STAGE_OF.get(part, part), 1.0)
        start = None if one.start is None else one.start * share
        parts[part] = replace(one, seconds=one.seconds * share, start=start)
    return replace(sample, parts=parts)


def _planned(clients: int, samples: list[Sample], folder: Path) -> tuple[Walk, Walk]:
    """First run and night of so many clients on this machine."""
    largest = max(samples, key=lambda one: one.events)
    rows = largest.population["training_rows"] / largest.population["clients"] * clients
    conf = PlanConf.model_validate(
        {
            "population": {"clients": clients, "training_rows": rows},
            "training": {"tokens": 0},
            "backbones": {"random": backbone_of(folder).model_dump()},
            "hardware": {"executors": {"count": 1, "cores": os.cpu_count(), "hour_price": 0}, "storage_price": 0},
            "speeds": {"finetune": {}},
        }
    )
    _, (plan,) = plans_of(conf, samples)
    return plan.first, plan.night


def _rows(what: str, walk: Walk, measured: Seconds) -> list[dict[str, Any]]:
    planned = {one.stage: one.wall_seconds.value for one in walk.stages}
    pairs = {stage: (planned[stage], measured[stage]) for stage in planned if stage in measured}
    pairs["together"] = sum(one for one, _ in pairs.values()), sum(other for _, other in pairs.values())
    return [
        {
            "what": f"{what}: {stage}, planned {one:.1f} s",
            "against": f"measured {other:.1f} s",
            "ratio": max(one / other, other / one) if one and other else float("inf"),
            "target": WITHIN,
            "better": "lower",
            "detail": f"planned / measured {one / other:.2f}",
        }
        for stage, (one, other) in pairs.items()
    ]


def measure(words: list[str]) -> Seconds:
    """CPU seconds of each stage of `ledgerlm WORDS`, over the cores of the machine."""
    meter = CpuMeter(every=0.5)  # what processes had used that have ended since is not forgotten
    meter.start()
    command = [sys.executable, "-u", "-m", "ledgerlm.jobs.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert process.stdout is not None
    used: Seconds = {}
    began, said = 0.0, []
    for line in process.stdout:
        said.append(line)
        found = _STAGE.match(line)
        if found and found[2].endswith("..."):
            began = meter.so_far
        elif found and _ENDED.search(found[2]):
            used[found[1]] = (meter.so_far - began) / (os.cpu_count() or 1)
    meter.stop()
    if process.wait():
        raise RuntimeError("".join(said))
    return used


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1:])) + "\n")
