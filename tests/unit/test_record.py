"""Completion records: attempts grow, a cut-off attempt goes on, half-written files never appear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ledgerlm.errors import ArtefactError
from ledgerlm.runs.record import Records, digest, write_json


def test_cut_off_attempt_goes_on_under_its_number(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = records.begin("embed", "embed", "spark", "f1", "run1")
    again = records.begin("embed", "embed", "spark", "f1", "run2")
    assert (first.attempt, again.attempt) == (1, 1)
    assert again.run_id == "run2"


def test_finished_or_changed_stage_takes_the_next_number(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = records.begin("embed", "embed", "spark", "f1", "run1")
    records.save(replace(first, done=True))
    assert records.begin("embed", "embed", "spark", "f1", "run2").attempt == 2
    assert records.begin("embed", "embed", "spark", "f2", "run3").attempt == 3


def test_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    records = Records(tmp_path)
    saved = replace(
        records.begin("a", "a", "spark", "f", "r"), done=True, tables={"events": 3}, facts={"x": [1, None, "é"]}
    )
    records.save(saved)
    assert records.load("a") == saved
    assert records.load("b") is None


def test_spoilt_record_says_what_to_do(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.folder.mkdir(parents=True)
    (records.folder / "a.json").write_text('{"name": "a"')
    with pytest.raises(ArtefactError, match="delete it and run again"):
        records.load("a")


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_write_json_leaves_no_temporary_files(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
