"""What `ledgerlm check` and `ledgerlm quarantine` tell of a data set's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from ledgerlm.events.checking import look_at, reasons_of
from ledgerlm.events.spec import load_spec
from ledgerlm.jobs.cli import main

SPEC = """
name: small
source: {path: data, files: [{glob: events.csv, separator: ";", decimal: ","}]}
client: client
time: {column: time}
event_id: {columns: [id]}
amount: {column: amount}
fields: [{name: mcc}]
"""
ROWS = ["1;a;2024-05-01 10:00:00;12,50;5411;x", "2;a;2024-05-01 11:00:00;12.50;5411;x", "3;b;never;1;5812;x",
        "4;b;2024-05-01 12:00:00;1.5;5812;x"]  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "events.csv").write_text("id;client;time;amount;mcc;memo\n" + "\n".join(ROWS))
    (tmp_path / "small.yaml").write_text(SPEC)
    return tmp_path / "small.yaml"


def test_an_entry_is_told_with_rows_before_and_after(spark: SparkSession, spec: Path) -> None:
    [entry] = look_at(spark, load_spec(spec), rows=100)
    assert entry.columns == ("id", "client", "time", "amount", "mcc", "memo")
    assert entry.rows == 4
    [(row, event)] = entry.shown
    assert row == ROWS[0]
    assert (event["client_id"], str(event["amount"]), event["mcc"]) == ("a", "12.5000", "5411")
    found = {one.reason: (one.rows, [example.detail for example in one.examples]) for one in entry.reasons}
    assert found == {"bad_amount": (2, ["amount: 12.50", "amount: 1.5"]), "bad_time": (1, ["time: never"])}
    assert [one.reason for one in entry.reasons] == ["bad_amount", "bad_time"], "the most frequent first"


def test_the_command_says_it_in_lines(spark: SparkSession, spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec)]) == 1
    said = capsys.readouterr().out
    assert "events.csv: 4 rows looked at" in said
    assert "bad_amount: 2 rows" in said
    assert f"amount: 12.50 | {ROWS[1]}" in said
    assert main(["check", str(spec), "--set", "source.path=nowhere"]) == 1
    assert "nothing is there" in capsys.readouterr().err


def test_quarantine_is_listed_by_reason(spark: SparkSession) -> None:
    rows = [("ingest", "bad_time", f"time: {place}", "f.csv", f"row {place}") for place in range(5)]
    rows += [("ingest", "bad_utf8", None, "f.csv", "base64:xx")]
    found = reasons_of(
        spark.createDataFrame(rows, "stage string, reason string, detail string, source_file string, payload string"),
        examples=2,
    )
    assert [(one.stage, one.reason, one.rows, len(one.examples)) for one in found] == [
        ("ingest", "bad_time", 5, 2),
        ("ingest", "bad_utf8", 1, 1),
    ]
