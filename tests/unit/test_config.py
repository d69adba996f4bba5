"""Strict configuration: an error names the file, the key and what was probably meant."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydantic import Field

from ledgerlm.config import Conf, find_file, load_yaml, parse, shipped
from ledgerlm.errors import ConfigError, SpecError
from ledgerlm.runs.pipeline import load_pipeline
from tests.conftest import REPOSITORY


class Inner(Conf):
    learning_rate: float = Field(0.1, gt=0)


class Outer(Conf):
    name: str
    training: Inner = Inner()
    parts: list[Inner] = Field(default_factory=list)


def test_unknown_key_names_file_and_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"demo\.yaml.*training\.learning_rat.*did you mean 'learning_rate'"):
        parse(Outer, {"name": "a", "training": {"learning_rat": 1}}, source="demo.yaml")


def test_unknown_key_inside_a_list() -> None:
    with pytest.raises(ConfigError, match=r"parts\.0\.lr.*known: learning_rate"):
        parse(Outer, {"name": "a", "parts": [{"lr": 1}]}, source="demo.yaml")


def test_missing_key_and_bad_value_are_both_told() -> None:
    with pytest.raises(SpecError) as caught:
        parse(Outer, {"training": {"learning_rate": -1}}, source="spec.yaml", error=SpecError)
    assert "key 'name' is missing" in str(caught.value)
    assert "value: -1" in str(caught.value)


def test_overrides_win_and_references_are_resolved(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: one\nout: build/${name}\ntraining:\n  learning_rate: 1\n")
    content = load_yaml(file, ["name=two", "training.learning_rate=0.5"])
    assert content == {"name": "two", "out": "build/two", "training": {"learning_rate": 0.5}}


def test_override_inside_a_list_and_of_a_new_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("fields: [{name: a}, {name: b}]\n")
    content = load_yaml(file, ["fields.1.kind=numeric", "more.deep=[1,2]"])
    assert content == {"fields": [{"name": "a"}, {"name": "b", "kind": "numeric"}], "more": {"deep": [1, 2]}}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${nothing}\n"])
def test_unusable_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_yaml(file)


def test_override_without_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: one\n")
    with pytest.raises(ConfigError, match="has no '='"):
        load_yaml(file, ["name"])


def test_files_are_found_beside_then_here_then_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec.yaml").write_text("a: 1\n")
    assert find_file("spec.yaml", beside=tmp_path) == (tmp_path / "spec.yaml").resolve()
    assert find_file("engines/laptop.yaml") == shipped("engines/laptop.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("pipeline: mine\n")
    (tmp_path / "protocol.yaml").write_text("stages: {}\n")
    assert find_file("demo.yaml") == (tmp_path / "demo.yaml").resolve(), "one's own before the shipped one of the name"
    assert load_pipeline("datasets/complete_journey.yaml").stages, "what the suite names itself is the shipped one"
    with pytest.raises(ConfigError, match=r"no file nowhere\.yaml: looked at"):
        find_file("nowhere.yaml", beside=tmp_path)


@pytest.mark.parametrize(
    "file",
    sorted(path for path in shipped("demo.yaml").parent.rglob("*.yaml") if load_yaml(path).get("stages")),
    ids=lambda path: path.stem,
)
def test_every_shipped_pipeline_can_be_loaded(file: Path) -> None:
    """Every stage reads what a stage before it writes, none writes over another, and all files named are there."""
    assert load_pipeline(file).stages


def test_a_value_that_is_to_be_chosen_stops_whoever_reads_the_file(tmp_path: Path) -> None:
    file = tmp_path / "drafted.yaml"
    file.write_text("name: ???\nparts: [{learning_rate: '???'}]\n")
    with pytest.raises(ConfigError, match=r"drafted\.yaml: name, parts\[0\]\.learning_rate: \?\?\? stands where you"):
        load_yaml(file)
    chosen = load_yaml(file, ["parts.0.learning_rate=0.2", "name=a"])
    assert chosen == {"name": "a", "parts": [{"learning_rate": 0.2}]}


def test_the_package_runs_out_of_an_archive_as_spark_ships_it(tmp_path: Path) -> None:
    archive = tmp_path / "ledgerlm.zip"
    package = REPOSITORY / "lib" / "ledgerlm"
    with zipfile.ZipFile(archive, "w") as file:
        for folder, _, names in os.walk(package, followlinks=True):
            for name in names:
                if not name.endswith(".pyc"):
                    path = Path(folder) / name
                    file.write(path, Path("ledgerlm") / path.relative_to(package))
    code = (
        "from ledgerlm.config import find_file, load_yaml, shipped; from ledgerlm.runs.registry import SHIPPED\n"
        "print(shipped.__code__.co_filename, load_yaml(find_file('nightly.yaml'))['pipeline'], 'rosbank' in "
        "{one.stem for one in shipped('heads').glob('*.yaml')}, SHIPPED.about('embed')[:6], shipped('x').parent)"
    )
    environment = {**os.environ, "PYTHONPATH": str(archive)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported, *found, unpacked = done.stdout.split()
    assert imported.startswith(str(archive)) and found == ["nightly", "True", "Embeds"]
    assert not Path(unpacked).exists(), "nothing is left behind"
