"""The command line answers at once: what help, a job's settings and a dry run import, and what they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerlm.progress import Progress
from ledgerlm.runs.job import Scope
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Inputs, StageRecord
from ledgerlm.runs.registry import SHIPPED
from ledgerlm.runs.runner import Runner

# Half a second to three seconds of work each, before anything is done with them.
MODELS = {
    "deepspeed", "holidays", "jinja2", "lightgbm", "matplotlib", "pandas", "peft", "ray", "scipy", "sklearn", "torch",
    "transformers",
}  # fmt: skip
FRAMES = {"numpy", "pyarrow", "pyspark", "py4j"}


def imported(code: str) -> tuple[set[str], str]:
    """Top packages that a fresh interpreter has imported after `code`, and what it printed."""
    ending = "\nimport json, sys\nprint(); print(json.dumps(sorted({one.split('.')[0] for one in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    *said, modules = done.stdout.splitlines()
    return set(json.loads(modules)), "\n".join(said)


def command(*argv: str) -> str:
    """Code that runs the command line and goes on."""
    return f"from ledgerlm.jobs.cli import main\nassert main({list(argv)!r}) == 0"


def test_help_imports_no_engine() -> None:
    modules, said = imported(command("--help"))
    assert "serialize" in said
    assert not modules & (MODELS | FRAMES)


@pytest.mark.parametrize("job", ["embed", "finetune", "fit"])
def test_help_of_a_job_imports_no_model_library(job: str) -> None:
    modules, said = imported(command(job, "--help"))
    assert f"Settings, under `stages.{job}`" in said
    assert not modules & MODELS


def test_no_job_imports_a_model_library_before_it_works() -> None:
    """All of them in one interpreter; the first one that brings a package in is named."""
    code = f"""
import json, sys
from ledgerlm.runs.registry import SHIPPED
seen, found = set(), {{}}
for name in SHIPPED.names():
    SHIPPED.job(name)
    new = {{one.split('.')[0] for one in sys.modules}} & set({sorted(MODELS)!r}) - seen
    seen |= new
    if new:
        found[name] = sorted(new)
print(json.dumps(found))
"""
    _, said = imported(code)
    assert json.loads(said) == {}


def test_settings_can_be_read_without_spark_or_torch() -> None:
    library = Path(__file__).parents[2] / "lib"
    rooms = sorted((library / "ledgerlm").rglob("settings.py"))
    names = [".".join(one.relative_to(library).with_suffix("").parts) for one in rooms]
    assert names
    modules, _ = imported("\n".join(f"import {name}" for name in names))
    assert not modules & (MODELS | {"pyspark", "py4j"})


def test_a_dry_run_of_a_finished_pipeline_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("client,time,mcc\nc1,2026-01-01 10:00:00,5411\n")
    (tmp_path / "spec.yaml").write_text(
        "name: tiny\nfields: [{name: mcc}]\nclient: client\ntime: {column: time}\n"
        "source: {path: ., files: [{glob: events.csv, format: csv}]}\n"
    )
    file = tmp_path / "p.yaml"
    stages = "{ingest: {}, serialize: {}, fit: {representation: agg, sources: [{table: features}]}}"
    file.write_text(f"pipeline: p\ndata: spec.yaml\nout: {tmp_path}/out\nstages: {stages}\n")
    runner = Runner(load_pipeline(file), Progress())
    for plan in runner.pipeline.plans:
        stage, definition = plan.stage, runner.definition(plan)
        scope = Scope(name=stage.name, conf=stage.conf, spec=runner.pipeline.spec)
        sources = stage.job.sources(scope) if stage.job.sources else ()
        runner.records.save(
            StageRecord(
                name=stage.name,
                job=stage.job.name,
                engine=stage.job.engine,
                definition=definition,
                attempt="a",
                done=True,
                inputs=Inputs(files={one: runner.hashes.of(one) for one in sources}),
            )
        )
    started = "\nfrom pyspark import SparkContext\nassert SparkContext._gateway is None"
    modules, said = imported(command("run", str(file), "--dry-run") + started)
    assert said.count("finished, unchanged") == len(runner.pipeline.plans) == 3
    assert not modules & MODELS


def test_every_job_says_what_it_is() -> None:
    assert all(SHIPPED.about(name) for name in SHIPPED.names())
