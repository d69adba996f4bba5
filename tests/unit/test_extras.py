"""What is installed and what is not: the table of extras is that of the package, and no message sends astray."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from ledgerlm.engines.examination import Finding, examine_machine
from ledgerlm.engines.extras import EXTRAS, extra_of, lacking
from ledgerlm.enrich.writing import EnrichConf, extras_of
from ledgerlm.jobs import cli
from ledgerlm.runs.faults import as_ledger_error
from ledgerlm.runs.job import Scope
from ledgerlm.runs.plan import Stage
from ledgerlm.runs.registry import SHIPPED

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED: dict[str, list[str]] = PROJECT["optional-dependencies"]


def brought(extra: str) -> set[str]:
    """Packages of an extra, with those of the extras that it names."""
    found: set[str] = set()
    for requirement in DECLARED[extra]:
        name, _, within = re.fullmatch(r"([\w-]+)(\[([\w,-]+)\])?.*", requirement).groups()  # type: ignore[union-attr]
        found |= set().union(*(brought(one) for one in within.split(","))) if name == "ledgerlm" else {name}
    return found


def core() -> set[str]:
    return {re.split(r"[\[<>=]", one)[0] for one in PROJECT["dependencies"]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_a_stage_with_it_imports(extra: str) -> None:
    named = {"mlflow-skinny": "mlflow"}  # a package of another name than what is imported
    assert set(EXTRAS[extra]) <= {named.get(one, one) for one in brought(extra)}


def test_the_core_has_no_engine_and_no_network_library() -> None:
    engines = {"pyspark", "delta-spark", "ray", "torch", "transformers", "peft", "accelerate", "deepspeed", "openai"}
    assert not core() & engines
    assert engines <= brought("all") <= brought("dev")


def test_the_page_on_installing_tells_every_extra() -> None:
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in DECLARED if f"| `{extra}` |" not in page] == ["dev"]


def test_every_job_names_extras_that_there_are() -> None:
    known = [name for name in SHIPPED.names() if not callable(SHIPPED.job(name).extras)]
    assert all(set(SHIPPED.job(name).extras_of(None)) <= set(EXTRAS) for name in known)  # type: ignore[arg-type]
    assert SHIPPED.job("ingest").extras == SHIPPED.job("score").extras == ()


def test_what_a_stage_needs_follows_its_settings() -> None:
    fit = SHIPPED.job("fit")
    for kind, wanted in (("lightgbm", ("ray",)), ("logistic_regression", ())):
        conf = fit.conf.model_validate({"representation": "agg", "sources": [{"table": "features"}], "kind": kind})
        assert fit.extras_of(Scope(name="fit", conf=conf, spec=None)) == wanted  # type: ignore[arg-type]
    assert [extras_of(EnrichConf(engine=one)) for one in ("template", "transformers", "openai")] == [
        ("ray",),
        ("ray", "embed"),
        ("ray", "endpoint"),
    ]


def test_the_smallest_extra_is_named() -> None:
    assert [extra_of(one) for one in ("torch", "tokenizers", "deepspeed", "ray", "pyspark")] == [
        "embed",
        "embed",
        "train",
        "ray",
        "spark",
    ]
    assert extra_of("somebodys_own") is None


def test_nothing_that_is_installed_is_lacking() -> None:
    assert lacking(EXTRAS) == []


def test_a_command_without_spark_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_spark(**_: object) -> None:
        raise ModuleNotFoundError("No module named 'pyspark'", name="pyspark.sql")

    monkeypatch.setattr(cli.app, "main", no_spark)
    assert cli.main(["run", "p.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'ledgerlm[spark]'" in line


def test_another_module_that_is_missing_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def typo(**_: object) -> None:
        raise ModuleNotFoundError("No module named 'ledgerlm.nowhere'", name="ledgerlm.nowhere")

    monkeypatch.setattr(cli.app, "main", typo)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["run", "p.yaml"])


@pytest.mark.parametrize(("package", "command"), [("torch", "ledgerlm[embed]"), ("ledgerlm", "pip install ledgerlm")])
def test_executors_without_a_package_are_told_apart_from_this_machine(package: str, command: str) -> None:
    from pyspark.errors import PythonException

    job = SHIPPED.job("embed")
    stage = Stage(name="embed", job=job, conf=job.conf())
    said = f"Traceback ...\n  import {package}.nn\nModuleNotFoundError: No module named '{package}.nn'"
    told = str(as_ledger_error(PythonException(said), stage))
    assert f"executors' Python has no package {package}" in told
    assert command in told


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ledgerlm.errors.EngineError: no such GPU; look there", "Spark failed: no such GPU; look there"),
        ("ValueError: of torch's own", "Spark failed: ValueError: of torch's own"),
    ],
)
def test_a_python_workers_error_is_told_by_its_last_line(raised: str, told: str) -> None:
    from pyspark.errors import PythonException

    job = SHIPPED.job("embed")
    said = (
        "An exception was thrown from the Python worker:\nTraceback (most recent call last):\n  File 'a', line 1\n"
        f"    open()\nKeyError: 'the first'\n\nDuring handling of it:\n\n{raised}\n\tat org.apache.Worker.run(a:1)"
    )
    found = as_ledger_error(PythonException(said), Stage(name="embed", job=job, conf=job.conf()))
    assert str(found) == f"stage embed: {told}"


def test_the_doctor_says_what_a_small_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the core and Spark: it is well, and says which extra brings the rest."""
    big = {"ray", "torch", "transformers", "peft", "deepspeed", "vllm"}
    found = examined(without=big, monkeypatch=monkeypatch)
    assert found["torch"].remedy == "pip install 'ledgerlm[embed]'"
    assert not any(found[name].needed for name in big - {"vllm"})
    assert found["pyspark"].good


def test_the_doctor_says_that_there_is_no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(without={"pyspark"}, monkeypatch=monkeypatch)
    assert found["pyspark"].needed and not found["pyspark"].good
    assert "Delta jars" not in found


def examined(*, without: set[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """What is found on a machine without some packages."""
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in without else there(name))
    return {finding.what: finding for finding in examine_machine()}
