"""The schedules that ship: each is parsed as its scheduler would, and its commands are dry-run by the command line."""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from pyspark.sql import SparkSession

from ledgerlm.jobs import cli
from tests.conftest import REPOSITORY
from tests.small_lake import write_bank

DEPLOY = REPOSITORY / "deploy"
DAY = "2025-01-02"
# What a scheduler's own shell would find under LEDGERLM: it notes what it was called with.
STAND_IN = """#!{python}
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([os.getcwd(), *sys.argv[1:]]) + "\\n")
"""


class Place:
    """A folder with a pipeline `nightly.yaml`, and a stand-in for the installed command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_bank(root)
        content = {
            "pipeline": "nightly",
            "out": str(root / "out"),
            "data": str(root / "bank.yaml"),
            "stages": {"ingest": {"append": True}, "publish": {}},
        }
        self.pipeline = root / "nightly.yaml"
        self.pipeline.write_text(yaml.safe_dump(content))
        self.command, self._calls = root / "ledgerlm", root / "calls"
        self.command.write_text(STAND_IN.format(python=sys.executable, calls=str(self._calls)))
        self.command.chmod(0o755)

    def called(self, shell: str, command: str, environment: Mapping[str, str]) -> list[str]:
        """The arguments with which a shell calls the command, which it does in this folder."""
        self._calls.unlink(missing_ok=True)
        subprocess.run([shell, "-c", command], env=dict(environment), cwd=self.root, check=True, timeout=60)
        (call,) = self._calls.read_text().splitlines()
        folder, *arguments = json.loads(call)
        assert Path(folder).resolve() == self.root.resolve()
        return [str(one) for one in arguments]


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """`spark`: dry runs join the session that is there."""
    found = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield found
    spark.sql("DROP SCHEMA IF EXISTS spark_catalog.scheduled_bank CASCADE")


def dry_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says that it would do."""
    capsys.readouterr()
    assert cli.main([*arguments, "--dry-run"]) == 0, arguments
    return capsys.readouterr().out


def looks_right(commands: Mapping[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """A night of a day, and upkeep."""
    assert set(commands) == {"rescore", "maintain"}
    said = dry_run(commands["rescore"], capsys)
    assert f"as of {DAY}" in said
    assert "ingest: spark; would run" in said and "publish: spark; would run" in said
    assert "publications that stay readable: none" in dry_run(commands["maintain"], capsys)


# cron

FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}


def in_range(field: str, low: int, high: int) -> bool:
    """Whether a field of a cron line means something: stars, numbers, ranges, steps and lists of them."""
    for part in field.split(","):
        found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
        if found is None:
            return False
        numbers = [int(one) for one in found.groups()[:2] if one is not None]
        if any(not low <= one <= high for one in numbers) or numbers != sorted(numbers):
            return False
    return True


def crontab(text: str) -> tuple[dict[str, str], list[tuple[list[str], str]]]:
    """Variables, and the lines: their five fields, and the command as cron hands it to its shell."""
    variables, lines = {}, []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if (named := re.fullmatch(r"(\w+)\s*=\s*(.*)", line)) is not None:
            variables[named[1]] = named[2]
            continue
        *fields, command = line.split(None, 5)
        assert "%" not in command.replace(r"\%", ""), "a bare percent sign ends a command of cron"
        lines.append((fields, command.replace(r"\%", "%")))
    return variables, lines


def test_the_crontab(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    variables, lines = crontab((DEPLOY / "cron" / "nightly.crontab").read_text())
    assert not any("$" in one for one in variables.values()), "cron puts nothing into the values of variables"
    commands = {}
    for fields, command in lines:
        assert len(fields) == 5
        assert all(in_range(one, *limits) for one, limits in zip(fields, FIELDS.values(), strict=True)), fields
        # `date` of that day, as cron's own PATH finds it.
        (place.root / "date").write_text(f'#!/bin/sh\n[ "$1" = +%F ] && echo {DAY}\n')
        (place.root / "date").chmod(0o755)
        here = {"BANK": str(place.root), "LEDGERLM": str(place.command), "PATH": f"{place.root}:/usr/bin:/bin"}
        arguments = place.called(variables["SHELL"], command, variables | here)
        commands[arguments[0]] = arguments
    looks_right(commands, capsys)
    assert not in_range("60", 0, 59) and not in_range("5-1", 0, 59) and not in_range("x", 0, 59)


# Databricks: the parts of a bundle that ours uses, and no others; `test_deploy` asks Databricks' own package.


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Variable(Part):
    description: str
    default: str


class Target(Part):
    mode: str = Field(pattern="^(development|production)$")
    default: bool = False
    variables: dict[str, str] = {}
    workspace: dict[str, str] = {}
    run_as: dict[str, str] = {}
    presets: dict[str, str] = {}


class Artifact(Part):
    type: str = Field(pattern="^whl$")
    path: str
    build: str


class Bundle(Part):
    bundle: dict[str, str]
    include: list[str]
    variables: dict[str, Variable]
    permissions: list[dict[str, str]]
    artifacts: dict[str, Artifact]
    targets: dict[str, Target]


class Wheel(Part):
    package_name: str
    entry_point: str
    parameters: list[str]


class Task(Part):
    task_key: str
    job_cluster_key: str | None = None
    environment_key: str | None = None
    python_wheel_task: Wheel
    libraries: list[dict[str, str]] = []
    depends_on: list[dict[str, str]] = []
    run_if: str = "ALL_SUCCESS"
    max_retries: int = 0
    min_retry_interval_millis: int = 0
    retry_on_timeout: bool = False


class Schedule(Part):
    quartz_cron_expression: str
    timezone_id: str
    pause_status: str = Field(pattern="^(UNPAUSED|PAUSED)$")

    def means_something(self) -> bool:
        """Quartz takes a day of the month, or of the week."""
        seconds, minutes, hours, day, month, weekday = self.quartz_cron_expression.split()
        numbers = in_range(seconds, 0, 59) and in_range(minutes, 0, 59) and in_range(hours, 0, 23)
        return numbers and in_range(month, 1, 12) and [day, weekday].count("?") == 1


class Environment(Part):
    environment_version: str
    dependencies: list[str]


class Environments(Part):
    environment_key: str
    spec: Environment


class Job(Part):
    name: str
    max_concurrent_runs: int
    schedule: Schedule | None = None
    email_notifications: dict[str, list[str]] = {}
    parameters: list[dict[str, str]] = []
    tasks: list[Task]
    job_clusters: list[dict[str, Any]] = []
    environments: list[Environments] = []

    def after(self) -> dict[str, list[str]]:
        """Task -> those before it."""
        return {one.task_key: [before["task_key"] for before in one.depends_on] for one in self.tasks}


class Jobs(Part):
    jobs: dict[str, Job]


class Resources(Part):
    resources: Jobs


FOLDER = DEPLOY / "databricks"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.model_validate(yaml.safe_load((FOLDER / "databricks.yml").read_text()))


@pytest.fixture(scope="module")
def jobs(bundle: Bundle) -> dict[str, Job]:
    files = [file for pattern in bundle.include for file in FOLDER.glob(pattern)]
    read = [Resources.model_validate(yaml.safe_load(file.read_text())) for file in files]
    return {name: job for one in read for name, job in one.resources.jobs.items()}


def filled_in(text: str, variables: Mapping[str, str], job: Job) -> str:
    """A parameter as the task gets it."""
    for name, value in variables.items():
        text = text.replace(f"${{var.{name}}}", value)
    for one in job.parameters:
        text = text.replace(f"{{{{job.parameters.{one['name']}}}}}", one["default"])
    text = text.replace("{{job.trigger.time.iso_date}}", DAY)
    assert "${" not in text and "{{" not in text, text
    return text


def commands_of(job: Job, variables: Mapping[str, str]) -> dict[str, list[str]]:
    """Task -> arguments of the command line."""
    return {
        task.task_key: [filled_in(one, variables, job) for one in task.python_wheel_task.parameters]
        for task in job.tasks
    }


def test_the_databricks_jobs_do_what_they_say(
    bundle: Bundle, jobs: dict[str, Job], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {"pipeline": str(place.pipeline), "lake": "spark_catalog.scheduled_bank", "out": str(place.root / "out")}
    variables = {name: one.default for name, one in bundle.variables.items()} | here
    assert jobs.keys() == {"study", "nightly", "maintenance"}
    (study,) = commands_of(jobs["study"], variables).values()
    assert "publish: spark; would run" in dry_run(study, capsys)
    night = commands_of(jobs["nightly"], variables)
    scored = dry_run(night["score"], capsys)
    assert f"as of {DAY}" in scored and "ingest: spark; would run" in scored and "publish:" not in scored
    upkeep = commands_of(jobs["maintenance"], variables)
    looks_right({"rescore": night["publish"], "maintain": upkeep["maintain"]}, capsys)
    assert cli.main(upkeep["status"]) == 0
    assert jobs["nightly"].after() == {"score": [], "publish": ["score"]}
    assert jobs["maintenance"].after() == {"maintain": [], "status": ["maintain"]}
    retried = jobs["nightly"].tasks[0]
    assert retried.min_retry_interval_millis > 10 * 60_000, "a dead run's lease of ten minutes has run out"


def test_each_databricks_task_runs_the_wheel_where_it_has_what_it_needs(bundle: Bundle, jobs: dict[str, Job]) -> None:
    wheels = (FOLDER / bundle.artifacts["ledgerlm"].path / "dist").resolve()
    for job in jobs.values():
        assert job.max_concurrent_runs == 1
        assert job.schedule is None or job.schedule.means_something()
        clusters = {one["job_cluster_key"] for one in job.job_clusters}
        serverless = {one.environment_key: one.spec.dependencies for one in job.environments}
        for task in job.tasks:
            wheel = task.python_wheel_task
            assert wheel.package_name == PROJECT["name"]
            module, _, function = PROJECT["scripts"][wheel.entry_point].partition(":")
            assert getattr(import_module(module), function) is cli.task
            given = serverless.get(task.environment_key or "", [one["whl"] for one in task.libraries if "whl" in one])
            assert (task.job_cluster_key in clusters) != (task.environment_key in serverless)
            assert [(FOLDER / "resources" / one).parent.resolve() for one in given] == [wheels]
            asked = [one["requirements"] for one in task.libraries if "requirements" in one]
            verb = wheel.parameters[0]
            assert asked == {"run": ["../train.txt"], "rescore": ["../embed.txt"]}.get(verb, []), verb


def test_databricks_clusters_get_the_versions_of_the_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    embed, train = (
        {line for line in (FOLDER / name).read_text().splitlines() if line and not line.startswith("#")}
        for name in ("embed.txt", "train.txt")
    )
    assert embed == set(extras["embed"])
    assert train - {"-r embed.txt"} == {*extras["ray"], *extras["train"]} - {"ledgerlm[ray,embed]"}


def test_databricks_targets(bundle: Bundle) -> None:
    assert bundle.targets.keys() == {"dev", "staging", "prod"}
    for name, target in bundle.targets.items():
        assert target.variables.keys() <= bundle.variables.keys(), name
        steady = target.mode == "production"
        assert (target.run_as == {"service_principal_name": "${var.service_principal}"}) == steady, name
        assert ("root_path" in target.workspace) == steady, "one copy for all who deploy it"
    places = [{**{k: v.default for k, v in bundle.variables.items()}, **t.variables} for t in bundle.targets.values()]
    for variable in ("lake", "out"):
        assert len({one[variable] for one in places}) == len(places), "no target writes where another does"
    assert bundle.targets["staging"].presets == {"trigger_pause_status": "PAUSED"}


def test_a_task_fails_where_a_shell_would_see_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ledgerlm-task", "rescore", "nowhere.yaml", "--as-of", DAY])
    with pytest.raises(RuntimeError, match="ledgerlm rescore ended with exit code 2"):
        cli.task()
    monkeypatch.setattr(sys, "argv", ["ledgerlm-task", "--version"])
    cli.task()


# Airflow, which is not installed here: stand-ins for the two names that the file imports.


class Operator:
    """What a DAG holds."""

    def __init__(self, *, task_id: str, bash_command: str, cwd: str, trigger_rule: str = "all_success") -> None:
        assert trigger_rule in {"all_success", "all_done"}
        self.task_id, self.bash_command, self.cwd = task_id, bash_command, cwd
        self.after: list[Operator] = []
        assert Dag.open is not None, "a task belongs to the DAG that is open"
        Dag.open.tasks[task_id] = self

    def __rshift__(self, other: Operator) -> Operator:
        other.after.append(self)
        return other


class Dag:
    """A DAG that knows its tasks."""

    open: Dag | None = None

    def __init__(
        self,
        *,
        dag_id: str,
        description: str,
        schedule: str,
        start_date: dt.datetime,
        catchup: bool,
        max_active_runs: int,
        default_args: dict[str, Any],
    ) -> None:
        self.schedule, self.start_date, self.catchup = schedule, start_date, catchup
        self.max_active_runs, self.default_args = max_active_runs, default_args
        self.tasks: dict[str, Operator] = {}

    def __enter__(self) -> Dag:
        Dag.open = self
        return self

    def __exit__(self, *_: object) -> None:
        Dag.open = None


def test_the_airflow_dag(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = DEPLOY / "airflow" / "ledgerlm_nightly.py"
    tree = ast.parse(file.read_text())
    imported = {
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    operator = "airflow.providers.standard.operators.bash"
    assert imported == {"__future__.annotations", "datetime", "os", f"{operator}.BashOperator", "airflow.sdk.DAG"}
    for name, content in (("airflow.sdk", {"DAG": Dag}), (operator, {"BashOperator": Operator})):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setenv("LEDGERLM", str(place.command))
    monkeypatch.setenv("LEDGERLM_BANK", str(place.root))
    names: dict[str, Any] = {}
    exec(compile(tree, str(file), "exec"), names)
    dag = names["dag"]
    assert (dag.catchup, dag.max_active_runs) == (False, 1), "a night is of today, and one at a time"
    assert dag.default_args["retry_delay"] > dt.timedelta(minutes=10), "a dead run's lease has run out"
    assert all(in_range(one, *limits) for one, limits in zip(dag.schedule.split(), FIELDS.values(), strict=True))
    assert dag.tasks["maintain"].after == [dag.tasks["rescore"]] and dag.tasks["rescore"].after == []
    templates = jinja2.Environment(undefined=jinja2.StrictUndefined)
    templates.filters["ds"] = lambda time: time.strftime("%Y-%m-%d")
    run = {"run_after": dt.datetime.fromisoformat(f"{DAY} 01:15:00+00:00")}
    commands = {}
    for name, task in dag.tasks.items():
        command = templates.from_string(task.bash_command).render(dag_run=run)
        assert task.cwd == str(place.root)
        commands[name] = place.called("/bin/bash", command, {"PATH": "/usr/bin:/bin"})
        assert commands[name][0] == name
    looks_right(commands, capsys)
