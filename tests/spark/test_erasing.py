"""A person is removed: from every table, from what readers see, from later deliveries, and in the end from the disk."""

from __future__ import annotations

import base64
import datetime as dt
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.frames import Keeper
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.batch_rules import Held
from ledgerlm.events.erased import empty_payloads, named_aside, patterns_of
from ledgerlm.events.ingesting import IngestConf, ingest_files
from ledgerlm.jobs.cli import main
from ledgerlm.jobs.erase import erase_clients
from ledgerlm.jobs.rescore import rescore
from ledgerlm.lake import erasures
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.latest import latest
from ledgerlm.lake.publications import published, shown_before
from ledgerlm.lake.schemas import TABLES
from ledgerlm.lake.upkeep import kept, remove_old
from ledgerlm.progress import Progress
from ledgerlm.runs import erasing
from ledgerlm.runs.erasing import ids_of
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import StageRecord
from ledgerlm.runs.runner import Runner

SPEC: dict[str, Any] = {
    "name": "bank",
    "client": "who",
    "time": {"column": "at", "format": "yyyy-MM-dd"},
    "event_id": {"columns": ["id"], "conflicts": "last"},
    "fields": [{"name": "mcc"}],
    "as_of": "2024-02-01",
    "clients": [{"file": {"glob": "people.csv"}, "id": "who", "attributes": {"town": "town"}}],
    "labels": [{"name": "churn", "kind": "binary", "file": {"glob": "labels.csv"}, "id": "who", "column": "left"}],
    "split": {"rule": "shuffle", "share": 0.5},
}
EVENTS = ["1,anna-7,2024-01-01,x", "2,anna-7,never,x", "3,ben,2024-01-02,y", "4,cara,2024-01-03,y", "5,ben,never,z"]


class Bank:
    """A folder of deliveries and its pipeline: a study first, then nights."""

    def __init__(self, root: Path, spark: SparkSession, **spec: Any) -> None:
        self.root, self.spark, self.file = root, spark, root / "nightly.yaml"
        (root / "people.csv").write_text("who,town\nanna-7,Bern\nben,Oslo\ncara,Rome\n")
        (root / "labels.csv").write_text("who,left\nanna-7,1\nben,0\ncara,1\n")
        self.deliver("1", *EVENTS)
        source = {"path": str(root), "files": [{"glob": "night-*.csv"}]}
        (root / "bank.yaml").write_text(yaml.safe_dump(SPEC | {"source": source} | spec))
        stages = {"ingest": {"append": True, "max_quarantined_share": 1.0}, "aggregate": {}, "publish": {}}
        told = {"pipeline": "nightly", "out": str(root / "out"), "data": str(root / "bank.yaml"), "stages": stages}
        self.file.write_text(yaml.safe_dump(told, sort_keys=False))
        self.lake = Lake(str(root / "out" / "lake"), spark)

    def deliver(self, name: str, *rows: str) -> None:
        (self.root / f"night-{name}.csv").write_text("\n".join(["id,who,at,mcc", *rows, ""]))

    def run(self, night: int | None = None, *settings: str) -> dict[str, StageRecord]:
        """The records of the stages that worked."""
        time = None if night is None else dt.datetime(2024, 2, night, tzinfo=dt.UTC)
        done = Runner(load_pipeline(str(self.file), settings), Progress(), time).run().stages
        return {one.record.name: one.record for one in done if not one.skipped}

    def named(self, text: str) -> list[str]:
        """Tables in whose newest rows a text stands."""
        there = [name for name in TABLES if self.lake.exists(name)]
        return [name for name in there if any(text in str(row) for row in self.lake.read(name).collect())]

    def readers_see(self) -> set[str]:
        return {row["client_id"] for row in latest(self.lake, "features").collect()}


def test_nothing_of_a_client_is_left_and_nothing_comes_back(
    tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank(tmp_path, spark)
    bank.run()
    # A night that was begun and not published: readers cannot be shown its rows, with or without anybody.
    bank.deliver("2", "6,cara,2024-01-09,x")
    rescore(str(bank.file), as_of=dt.datetime(2024, 2, 2), publish=False)
    with pytest.raises(DataError, match=r"events holds rows that publication 1.*a night was begun.*nothing was erased"):
        erase_clients(str(bank.file), clients=["anna-7"])
    assert erasures.erased(bank.lake) is None
    bank.run(2)

    (bank.root / "out" / "note.txt").write_text("we wrote to anna-7\n")
    had = ["changes", "clients", "events", "features", "labels", "partials", "quarantine"]
    assert sorted(bank.named("anna-7")) == had
    before = {name: bank.lake.version(name) for name in had}
    capsys.readouterr()
    assert main(["erase", str(bank.file), "--client", "anna-7", "--client", "nobody", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "events: 1 rows to take away" in said and "quarantine: 1 rows name them" in said
    assert "1 of 2 clients are in no table of clients: nobody;" in said
    assert {name: bank.lake.version(name) for name in had} == before, "nothing is done"

    dies_at_the_third_table(bank, monkeypatch)
    assert published(bank.lake).number == 2 and "anna-7" in bank.readers_see(), "whole until the end"
    assert main(["erase", str(bank.file), "--client", "anna-7"]) == 0
    said = capsys.readouterr().out
    assert "readers see publication 3; those before it are read no more" in said
    assert "ids stand in files: note.txt" in said
    assert bank.named("anna-7") == []
    aside = {(row["reason"], row["payload"]) for row in bank.lake.read("quarantine").collect()}
    assert aside == {("bad_time", None), ("bad_time", "5,ben,never,z")}, "the row stays, and says no more than why"
    assert bank.readers_see() == {"ben", "cara"}
    assert published(bank.lake).as_of == dt.datetime(2024, 2, 2, tzinfo=dt.UTC)
    with pytest.raises(DataError, match="publication 2 shows clients who were erased since"):
        published(bank.lake, 2)
    with pytest.raises(DataError, match="before publication 3 show clients who were erased since"):
        shown_before(bank.lake, 3)
    assert [one.number for one in kept(bank.lake, 30, 30)] == [3], "their files need not stay"

    # Whom nobody has: nothing was shown of them, so what is published stays.
    assert main(["erase", str(bank.file), "--client", "somebody"]) == 0
    assert "read no more" not in capsys.readouterr().out and published(bank.lake).number == 3
    with pytest.raises(ConfigError, match="'who' is the name of the column"):
        erase_clients(str(bank.file), clients=["who"])

    bank.deliver("3", "7,anna-7,2024-01-09,x", "8,anna-7,never,x", "9,dora,2024-01-09,x")
    record = bank.run(3)["ingest"]
    assert record.since == 2, "what stood stands"
    assert (record.rows_in, record.rows_out, record.quarantined) == (1, 1, 0)
    assert record.facts["choices"] == {"rows of clients who were erased": 2}
    assert record.facts["label_rows"]["quarantined"] == 0, "her label is none without a history: it is none"
    assert bank.named("anna-7") == [] and bank.readers_see() == {"ben", "cara", "dora"}

    remove_all_old(bank.lake, had)
    data = [one for one in (bank.root / "out" / "lake").rglob("*.parquet") if "_delta_log" not in one.parts]
    assert data and [one for one in data if b"anna-7" in one.read_bytes()] == []


def remove_all_old(lake: Lake, tables: list[str]) -> None:
    """As upkeep does after a week."""
    lake.spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    try:
        for name in tables:
            remove_old(lake, name, 0)
    finally:
        lake.spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")


def dies_at_the_third_table(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dies(lake: Lake, table: str, *rest: Any, **more: Any) -> None:
        calls.append(table)
        if len(calls) == 3:
            raise KeyboardInterrupt
        erasures.take_away(lake, table, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasing, "take_away", dies)
        erase_clients(str(bank.file), clients=["anna-7"])
    assert sorted(set(bank.named("anna-7")) & set(calls)) == calls[2:]


def test_ids_that_the_lake_hides_are_given_as_the_files_have_them(
    tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where everything is read anew, an erased client's rows, label and attributes are none."""
    monkeypatch.setenv("BANK_KEY", "a secret")
    bank = Bank(tmp_path, spark, pseudonymise={"key_env": "BANK_KEY"})
    spec = load_pipeline(str(bank.file)).spec
    ids = erasing.known_as(spark, spec, ["anna-7"]).select("client_id")
    held = Held(erased=ids.select(erasures.digest(F.col("client_id")).alias("digest")))
    keeper = Keeper()
    try:
        made = ingest_files(spark, spec, IngestConf(max_quarantined_share=1.0), held=held, keep=keeper.keep).made
        assert (made.rows_in, made.rows_out, made.quarantined) == (3, 2, 1)
        assert made.facts["choices"] == {"rows of clients who were erased": 2}
        assert made.facts["label_rows"] == {"in": 2, "out": 2, "quarantined": 0, "duplicates": 0}
        assert made.tables["clients"].frame.select("town").orderBy("town").collect() == [("Oslo",), ("Rome",)]
    finally:
        keeper.release()


@pytest.mark.parametrize(
    ("client", "row"),
    [
        ("anna maria", "base64:" + base64.b64encode("anna maria,latin \xdf".encode("latin-1")).decode()),
        ("café77", "base64:" + base64.b64encode("café77,x".encode() + b"\xff").decode()),
        ("café77", json.dumps({"who": "café77"})),
        ("café77", unicodedata.normalize("NFD", "café77,x")),
        ('quo"te', '"quo""te",x'),
        ('quo"te', json.dumps({"who": 'quo"te'})),
        ("zero1234", "zero\u200b1234,x"),
        ("dbl two", "dbl\u00a0 two,x"),
        ("a.b+c", "a.b+c,x"),
    ],
)
def test_an_id_is_found_however_a_file_writes_it(spark: SparkSession, tmp_path: Path, client: str, row: str) -> None:
    lake, by = Lake(str(tmp_path), spark), Author(attempt="1", stage="bank/ingest", run_id="r")
    rows = spark.createDataFrame([(row,), ("aXb+c,annamaria",)], "payload string").selectExpr(
        "'ingest' stage", "'bad' reason", "NULL detail", "'f' source_file", "payload", "now() quarantined_at"
    )
    lake.write("quarantine", rows, by=by)
    assert named_aside(lake, patterns_of(client)) == 1


@pytest.mark.parametrize("session", ["spark", "serverless"])
def test_rows_and_texts_go_whatever_the_session_takes(
    request: pytest.FixtureRequest, tmp_path: Path, session: str
) -> None:
    """Serverless compute signs no SQL, so there a table is written anew."""
    spark = request.getfixturevalue(session)
    lake, by = Lake(str(tmp_path), spark), Author(attempt="1", stage="bank/ingest", run_id="r")
    people = spark.createDataFrame([("ann", "train"), ("anna", "test")], "client_id string, split string")
    lake.write("clients", people, by=by)
    rows = [("1,ann,x", "at: x"), ("2,anna,x", None), (None, "task churn: ann"), (None, None), ("ann", "both ann")]
    aside = spark.createDataFrame(rows, "payload string, detail string").selectExpr(
        "'ingest' stage", "'bad_time' reason", "detail", "'f' source_file", "payload", "now() quarantined_at"
    )
    lake.write("quarantine", aside, by=by)
    states = {name: lake.history.state(name) for name in ("clients", "quarantine")}
    other = Author(attempt="2", stage="bank/erase", run_id="e")
    erasures.take_away(lake, "clients", people.limit(1).select("client_id"), by=other)
    empty_payloads(lake, patterns_of("ann"), by=other)
    assert [row["client_id"] for row in lake.read("clients").collect()] == ["anna"]
    left = [(row["payload"], row["detail"]) for row in lake.read("quarantine").collect()]
    assert sorted(left, key=str) == sorted([("2,anna,x", None), *[(None, None)] * 4], key=str)
    assert {name: lake.history.state(name) for name in states} == states, "the stages that wrote them stand"


def test_who_is_to_be_erased_is_said_exactly(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("\ufeffanna-7\r\n\nben\nanna-7\n", encoding="utf-8")
    assert ids_of(["cara"], str(file)) == ["cara", "anna-7", "ben"]
    for text, says in (
        ("anna \n", "'anna ' is no id"),
        ("\n", "nobody to erase"),
        ("\n".join(map(str, range(10_001))), "at most"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            ids_of([], str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        ids_of([], str(tmp_path / "none.txt"))
