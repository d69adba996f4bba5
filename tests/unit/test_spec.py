"""Data set specs: what a user may write, and what the error says when it is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ledgerlm.errors import SpecError
from ledgerlm.events.sources import source_places
from ledgerlm.events.spec import load_spec
from ledgerlm.events.splits import shuffled_test_ids

SMALL = """
name: small
source: {path: data, files: [{glob: events.csv, separator: ";"}]}
client: cl_id
time: {column: date, format: yyMMdd}
event_id: {columns: [id]}
amount: {column: amount}
as_of: 2020-01-01
fields:
  - {name: mcc, dictionary: {5411: Grocery, "0742": Vets}}
  - {name: note, kind: text}
labels:
  - {name: churn, kind: binary, file: {glob: labels.csv}, id: cl_id, column: flag}
"""


def write(folder: Path, text: str = SMALL) -> Path:
    file = folder / "small.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_filled_in_and_the_path_is_found_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec = load_spec(write(tmp_path))
    assert spec.source is not None
    assert spec.source.path == str(tmp_path / "data")
    assert spec.title == "small"
    assert (spec.field("mcc").column, spec.field("mcc").title, spec.field("mcc").kind) == ("mcc", "mcc", "categorical")
    assert spec.field("mcc").dictionary == {"5411": "Grocery", "0742": "Vets"}
    assert spec.task("churn").class_names == ("0", "1")
    assert not spec.time.has_clock


def test_override_and_environment_name_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, SMALL.replace("path: data", "path: '${oc.env:SMALL_DATA,\"\"}'"))
    spec = load_spec(file)
    assert spec.source is not None
    assert not spec.source.path
    monkeypatch.setenv("SMALL_DATA", str(tmp_path))
    assert load_spec(file).source.path == str(tmp_path)  # type: ignore[union-attr]
    assert load_spec(file, ["source.path=s3://bank/events"]).source.path == "s3://bank/events"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("tiem:", "time:", "unknown key 'tiem': did you mean 'time'"),
        ("separater:", "separator:", "unknown key 'source.files.0.separater': did you mean 'separator'"),
        ("kind: txet", "kind: text", "'fields.1.kind'"),
        ("client: [a]", "client: cl_id", "'client'"),
        ("name: amount, dict", "name: mcc, dict", "amount"),
        ("", "client: cl_id\ntime: {column: date, format: yyMMdd}", None),
        ("kind: multiclass", "kind: binary", "task churn: name the classes"),
        ("time: {column: date, format: days}", "time: {column: date, format: yyMMdd}", "give 'origin'"),
        ("", "as_of: 2020-01-01", "give 'as_of'"),
        ("header: false, separator:", "separator:", "name its columns"),
    ],
)
def test_error_names_file_key_and_nearest_key(tmp_path: Path, wrong: str, right: str, says: str | None) -> None:
    assert right in SMALL
    file = write(tmp_path, SMALL.replace(right, wrong))
    if says is None:
        assert load_spec(file).client == "client_id"
        return
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert str(file) in str(caught.value)
    assert says in str(caught.value)


def test_missing_file_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no file nowhere\.yaml: looked at"):
        load_spec("nowhere.yaml")


def test_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'churn'"):
        load_spec(write(tmp_path)).task("chrun")


@pytest.mark.parametrize(
    ("form", "clock"),
    [("timestamp", True), ("yyyy-MM-dd", False), ("ddMMMyy:HH:mm:ss", True), ("epoch", True), ("yyMMdd", False)],
)
def test_time_of_day_follows_the_format(tmp_path: Path, form: str, clock: bool) -> None:
    assert load_spec(write(tmp_path, SMALL.replace("yyMMdd", f"'{form}'"))).time.has_clock is clock


def test_shuffle_rule_is_the_published_one() -> None:
    ids = [str(number) for number in range(1, 802)]
    order = sorted(ids)  # as strings: 1, 10, 100, 101, …
    random.Random(42).shuffle(order)
    chosen = shuffled_test_ids(reversed(ids), 0.1)
    assert chosen == order[-80:]
    # Written down once, so that a change of Python's shuffle would be noticed.
    assert chosen[:5] == ["435", "685", "517", "784", "91"]
    assert shuffled_test_ids(ids, 0.0) == []


def test_all_files_that_a_spec_reads_are_known(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec = load_spec(write(tmp_path))
    assert source_places(spec) == [str(tmp_path / "data" / "events.csv"), str(tmp_path / "data" / "labels.csv")]


@pytest.mark.parametrize("name", ["complete_journey", "berka"])
def test_shipped_specs_are_valid(name: str) -> None:
    spec = load_spec(f"datasets/{name}.yaml")
    assert spec.name == name
    assert spec.labels
