"""Records: they come back as they were saved, half-written files never appear, and no secret stands in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ledgerlm.config import load_yaml, message_without_secrets, without_secrets
from ledgerlm.errors import ArtefactError, ConfigError
from ledgerlm.lake.history import State
from ledgerlm.runs.record import Inputs, Records, StageRecord, TableRecord, digest, write_json

RECORD = StageRecord(
    name="a",
    job="a",
    engine="a",
    definition="d",
    attempt="0a",
    done=True,
    tables={"events": TableRecord(version=3, rows=5, slice={"task": ("x", "y")}, state=State(version=3, attempt="0a"))},
    inputs=Inputs(
        tables={"labels": [State(version=1, attempt="1b"), None]}, stages={"b": "b@2c"}, files={"f.csv": "hash"}
    ),
    facts={"x": [1, None, "é"]},
)


def test_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.save(RECORD)
    assert records.load("a") == RECORD
    assert records.load("b") is None


@pytest.mark.parametrize("text", ['{"name": "a"', '{"name": "a", "form": 2}', "[]"])
def test_spoilt_record_says_what_to_do(tmp_path: Path, text: str) -> None:
    records = Records(tmp_path)
    records.folder.mkdir(parents=True)
    (records.folder / "a.json").write_text(text)
    with pytest.raises(ArtefactError, match="delete it: the stage is then done again"):
        records.load("a")


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_write_json_leaves_no_temporary_files(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/x\.json.*--set out="):
        write_json(tmp_path / "file" / "x.json", {})


def test_what_the_environment_gave_is_written_as_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANK_KEY", "s3cr3t-value")
    (tmp_path / "p.yaml").write_text("options: {key: '${oc.env:BANK_KEY}', url: 'https://x/?k=${oc.env:BANK_KEY}'}\n")
    content = load_yaml(tmp_path / "p.yaml")
    assert content["options"]["key"] == "s3cr3t-value"
    monkeypatch.setenv("OTHER_KEY", "another-value")
    told = load_yaml(tmp_path / "p.yaml", ["title=by ${oc.env:OTHER_KEY}", "n=[1, 2]", "none=null"])
    assert (told["title"], told["n"], told["none"]) == ("by another-value", [1, 2], None)
    write_json(tmp_path / "set.json", told)
    assert "another-value" not in (tmp_path / "set.json").read_text()
    write_json(tmp_path / "run.json", {"conf": content, "facts": ["failed with s3cr3t-value"]})
    text = (tmp_path / "run.json").read_text()
    assert "s3cr3t-value" not in text
    assert json.loads(text)["conf"]["options"]["key"] == "${oc.env:BANK_KEY}"


@pytest.mark.parametrize(
    ("key", "hidden"),
    [
        ("spark.hadoop.fs.s3a.secret.key", True),
        ("spark.hadoop.fs.s3a.access.key", True),
        ("password", True),
        ("api_key", True),
        ("auth.token", True),
        ("spark.hadoop.fs.azure.account.key.bank.dfs.core.windows.net", True),
        ("spark.hadoop.fs.azure.sas.fixed.token.bank.dfs.core.windows.net", True),
        ("token_format", False),
        ("sasquatch", False),
        ("tokenizer", False),
        ("batch_tokens", False),
        ("primary_key", False),
    ],
)
def test_secrets_in_the_clear_are_redacted(key: str, hidden: bool) -> None:
    shown = without_secrets({"spark": {key: "abc", "n": 1}})["spark"]
    assert (shown[key] != "abc") is hidden
    assert shown["n"] == 1


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sc://host:443/;token=dapi123;use_ssl=true", "sc://host:443/;token=*********(redacted);use_ssl=true"),
        ("https://a.blob/x?sv=1&sig=abc%3D&se=2", "https://a.blob/x?sv=1&sig=*********(redacted)&se=2"),
        ("hdfs://anna:hunter2@name:8020/bank", "hdfs://anna:*********(redacted)@name:8020/bank"),
        ("s3://bank/out?versionId=7", "s3://bank/out?versionId=7"),
        ("days|signature=none at 10:30", "days|signature=none at 10:30"),
    ],
)
def test_secrets_in_addresses_are_redacted(address: str, shown: str) -> None:
    assert without_secrets({"out": [address]}) == {"out": [shown]}


def test_messages_show_no_secret_and_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_PASSWORD", "hunter22")
    monkeypatch.setenv("BANK_FOLDER", "/srv/bank")
    (tmp_path / "p.yaml").write_text("options: {key: '${oc.env:LAKE_PASSWORD}', path: '${oc.env:BANK_FOLDER}'}\n")
    load_yaml(tmp_path / "p.yaml")
    said = message_without_secrets("/srv/bank: http://ann:s3cr3t@host/x refused hunter22")
    assert said == "/srv/bank: http://ann:*********(redacted)@host/x refused *********(redacted)"


def test_record_of_an_earlier_form_is_none(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.folder.mkdir(parents=True)
    (records.folder / "a.json").write_text('{"name": "a", "fingerprint": "f", "attempt": 1, "done": true}')
    assert records.load("a") is None


def test_facts_move_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    facts = {"backbone": str(tmp_path / "old" / "artefacts" / "b"), "more": [str(tmp_path / "elsewhere")]}
    Records(tmp_path / "old").save(replace(RECORD, facts=facts))
    assert str(tmp_path / "old") not in (tmp_path / "old" / "runs" / "stages" / "a.json").read_text()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Records(tmp_path / "new").load("a")
    assert moved is not None
    assert moved.facts == facts | {"backbone": str(tmp_path / "new" / "artefacts" / "b")}
