"""What `ledgerlm check` and `ledgerlm quarantine` tell of a data set's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from ledgerlm.events.checking import look_at, reasons_of
from ledgerlm.events.spec import load_spec
from ledgerlm.jobs.cli import main
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

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
    assert entry.bad == 0.75
    assert entry.figures == {
        "clients": "1",
        "span": "2024-05-01 10:00 to 2024-05-01 10:00",
        "amounts": "12.5 to 12.5, 0% below zero",
    }


def test_attributes_dictionaries_and_labels_are_looked_at_as_well(spark: SparkSession, spec: Path) -> None:
    data = spec.parent / "data"
    (data / "clients.csv").write_text("client,city\na,Köln\nb\n", encoding="utf-8")
    (data / "codes.csv").write_text("mcc,name,group\n5411,Grocery,food\n")
    (data / "labels.csv").write_text(
        "client,y,when,kind\na,1,2024-06-01,k\nb,7,2024-06-01,k\n,1,2024-06-01,k\nc,1,x,l\n"
    )
    spec.write_text(
        SPEC.replace(
            "[{name: mcc}]", "[{name: mcc, dictionary: {file: {glob: CODES}, code: mcc, description: name}}]"
        ).replace("CODES", str(data / "codes.csv"))
        + "joins: [{file: {glob: codes.csv}, key: mcc, columns: [group]}]\n"
        + "clients: [{file: {glob: clients.csv}, id: client, attributes: {town: city}}]\n"
        + "labels: [{name: y, kind: binary, file: {glob: labels.csv}, id: client, column: 'y', "
        + "only: {kind: [k]}, as_of: {column: when}}]\n"
    )
    _, join, clients, book, labels = look_at(spark, load_spec(spec), rows=100)
    assert (join.glob, join.shown) == ("codes.csv", (("5411,Grocery,food", {"mcc": "5411", "group": "food"}),))
    assert (clients.columns, clients.rows) == (("client", "city"), 2)
    assert clients.shown == (("a,Köln", {"client": "a", "city": "Köln"}),)
    assert [(one.reason, one.rows) for one in clients.reasons] == [("wrong_column_count", 1)]
    assert book.shown == (("5411,Grocery,food", {"mcc": "5411", "name": "Grocery"}),)
    assert labels.rows == 3, "`only` passes over the last"
    told = {"client_id": "a", "task": "y", "as_of": "2024-06-01 00:00:00", "label": "1.0", "label_text": "1"}
    assert labels.shown == (("a,1,2024-06-01,k", told),)
    assert labels.figures == {"labels": "1 1"}
    assert clients.figures == {}
    assert {one.reason: one.examples[0].detail for one in labels.reasons} == {
        "bad_label": "task y: 7",
        "no_client": "task y",
    }


def test_the_command_says_it_in_lines(spark: SparkSession, spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec)]) == 3
    said = capsys.readouterr().out
    assert "events.csv: 4 rows looked at" in said
    assert "  clients: 1\n  span: 2024-05-01 10:00 to 2024-05-01 10:00\n" in said
    assert "bad_amount: 2 rows" in said
    assert f"amount: 12.50 | {ROWS[1]}" in said
    assert main(["check", str(spec), "--set", "source.path=nowhere"]) == 2
    assert "nothing is there" in capsys.readouterr().err


def test_what_a_run_set_aside_is_listed(
    spark: SparkSession, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to the command's lines, through the ingest job and its table."""
    (tmp_path / "run.yaml").write_text(
        f"pipeline: small\nout: {tmp_path / 'out'}\ndata: small.yaml\n"
        "stages: {ingest: {max_quarantined_share: 0.9}}\n"
    )
    pipeline = load_pipeline(tmp_path / "run.yaml")
    assert main(["quarantine", str(tmp_path / "run.yaml")]) == 0
    assert "nothing is set aside" in capsys.readouterr().out
    Runner(pipeline, Progress()).run()
    capsys.readouterr()
    assert main(["quarantine", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "bad_amount: 2 rows by ingest" in said
    assert f"data/events.csv: amount: 12.50 | {ROWS[1]}" in said
    assert "bad_time: 1 rows by ingest" in said
    assert main(["quarantine", str(tmp_path / "run.yaml"), "--reason", "bad_time", "--examples", "1"]) == 0
    said = capsys.readouterr().out
    assert f"time: never | {ROWS[2]}" in said
    assert "bad_amount" not in said


def test_quarantine_is_listed_by_reason(spark: SparkSession) -> None:
    rows: list[tuple[str | None, ...]] = [
        ("ingest", "bad_time", f"time: {place}", "f.csv", f"row {place}") for place in range(5)
    ]
    rows += [("ingest", "bad_utf8", None, "f.csv", "base64:xx")]
    found = reasons_of(
        spark.createDataFrame(rows, "stage string, reason string, detail string, source_file string, payload string"),
        examples=2,
    )
    assert [(one.stage, one.reason, one.rows, len(one.examples)) for one in found] == [
        ("ingest", "bad_time", 5, 2),
        ("ingest", "bad_utf8", 1, 1),
    ]
