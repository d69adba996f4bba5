"""Records on a real lake: done is what is there, whatever happened to inputs, records and tables between runs."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from ledgerlm.config import load_yaml, parse, shipped
from ledgerlm.engines.settings import SparkConf
from ledgerlm.engines.spark import Session, open_session
from ledgerlm.errors import ConfigError, LedgerError
from ledgerlm.jobs.erase import erase_clients
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.hashes import Hashes
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
client: client
time: {column: time, format: yyyy-MM-dd}
event_id: {columns: [id]}
fields: [{name: mcc}]
as_of: 2025-01-01
labels: [{name: churn, kind: binary, file: {glob: labels.csv}, id: client, column: flag}]
"""


class Small:
    """Twelve rows, ingest, a split of one's own and documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "spec.yaml").write_text(SPEC)
        labels = "".join(f"c{number},{number % 2}\n" for number in range(6))
        (folder / "labels.csv").write_text(f"client,flag\n{labels}")
        self.say("grocery")

    def say(self, mcc: str) -> None:
        rows = [f"{number},c{number % 6},2024-01-{number + 1:02d},{mcc}" for number in range(12)]
        (self.folder / "events.csv").write_text("\n".join(["id,client,time,mcc", *rows]) + "\n")

    def run(self, only: str | None = None, *, fresh: bool = False, **settings: Any) -> list[str]:
        """The stages that worked."""
        stages: dict[str, Any] = {"ingest": {}, "split": {"share": 0.5}, "serialize": {"format": "compact"}}
        for name, values in settings.items():
            stages[name] |= values
        file = self.folder / "p.yaml"
        content = {"pipeline": "small", "out": str(self.folder / "out"), "data": "spec.yaml", "stages": stages}
        file.write_text(json.dumps(content))
        runner = Runner(load_pipeline(file), Progress())
        try:
            run = runner.run(only=only, fresh=fresh)
        finally:
            runner.engines.stop()
        return [stage.record.name for stage in run.stages if not stage.skipped]

    def texts(self, spark: SparkSession) -> str:
        rows = Lake(str(self.folder / "out" / "lake"), spark).read("documents").select("text").collect()
        return "\n".join(row["text"] for row in rows)


@pytest.fixture
def small(spark: SparkSession, tmp_path: Path) -> Small:  # `spark`: runs join the session that is there
    return Small(tmp_path)


def test_documents_follow_the_input_whatever_ran_alone_between(small: Small, spark: SparkSession) -> None:
    assert small.run() == ["ingest", "split", "serialize"]
    assert small.run() == []
    small.say("fuel")
    small.run(only="serialize", fresh=True)
    assert small.run() == ["ingest", "split", "serialize"]
    assert "fuel" in small.texts(spark)
    assert "grocery" not in small.texts(spark)


def test_an_early_stage_done_again_undoes_no_later_one(small: Small, spark: SparkSession) -> None:
    """The split lies in a table of its own: ingest cannot write over it, and its readers are done again."""
    small.run()
    lake = Lake(str(small.folder / "out" / "lake"), spark)
    before = {row["client_id"]: row["split"] for row in lake.read("splits").collect()}
    assert set(before.values()) == {"train", "test"}
    small.run(only="ingest", fresh=True)
    assert small.run() == ["split", "serialize"]
    assert {row["client_id"]: row["split"] for row in lake.read("splits").collect()} == before


def test_lost_records_and_a_mended_input_give_the_new_rows(small: Small, spark: SparkSession) -> None:
    small.run()
    shutil.rmtree(small.folder / "out" / "runs")
    small.say("travel")
    assert small.run() == ["ingest", "split", "serialize"]
    assert "travel" in small.texts(spark)


def test_a_table_changed_by_hand_is_made_again(small: Small, spark: SparkSession) -> None:
    small.run()
    spark.sql(f"DELETE FROM delta.`{small.folder}/out/lake/documents` WHERE client_id = 'c1'")
    assert small.run() == ["serialize"]
    assert len(Lake(str(small.folder / "out" / "lake"), spark).read("documents").collect()) == 6


def test_compaction_is_no_reason_to_work(small: Small, spark: SparkSession) -> None:
    small.run()
    for table in ("events", "documents", "labels"):
        spark.sql(f"OPTIMIZE delta.`{small.folder}/out/lake/{table}`")
    assert small.run() == []


def test_the_session_that_is_there_is_used_and_left_as_it_was(small: Small, spark: SparkSession) -> None:
    spark.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    spark.conf.set("spark.sql.shuffle.partitions", "3")
    try:
        small.run()
        assert spark.range(3).count() == 3
        assert spark.conf.get("spark.sql.session.timeZone") == "Europe/Berlin"
        assert spark.conf.get("spark.sql.shuffle.partitions") == "3"
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    events = Lake(str(small.folder / "out" / "lake"), spark).read("events")
    assert events.selectExpr("cast(min(event_time) AS string) AS first").collect()[0]["first"] == "2024-01-01 00:00:00"


def test_the_session_of_another_thread_is_used_and_left(spark: SparkSession) -> None:
    """Spark calls a session active in the thread that made it, and a program's workers are other threads."""
    profile = parse(SparkConf, load_yaml(shipped("engines/laptop.yaml"))["spark"], source="engines/laptop.yaml")

    def joined() -> Session:
        session = open_session(profile)
        session.close()
        return session

    with ThreadPoolExecutor(1) as workers:
        assert not workers.submit(joined).result().own
    assert spark.range(3).count() == 3


def test_another_key_of_pseudonyms_is_refused_before_anything_is_read(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small.folder / "spec.yaml"
    spec.write_text(spec.read_text() + "pseudonymise: {key_env: BANK_KEY}\n")
    monkeypatch.setenv("BANK_KEY", "a key that is wrong, and finds no file")
    (small.folder / "events.csv").rename(small.folder / "kept")
    with pytest.raises(LedgerError):
        small.run()
    (small.folder / "kept").rename(small.folder / "events.csv")
    monkeypatch.setenv("BANK_KEY", "the key of this bank")
    assert small.run() == ["ingest", "split", "serialize"], "nothing was made under the wrong one"
    record = (small.folder / "out" / "runs" / "stages" / "ingest.json").read_text()
    assert '"pseudonyms"' in record and "the key of this bank" not in record
    monkeypatch.setenv("BANK_KEY", "the key of another")
    small.say("fuel")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="BANK_KEY holds another key than the one under which stage ingest"):
            small.run(fresh=fresh)
    assert run_pipeline(str(small.folder / "p.yaml"), dry_run=True) == 2
    assert "holds another key" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match="holds another key"):
        erase_clients(str(small.folder / "p.yaml"), clients=["c1"])
    monkeypatch.delenv("BANK_KEY")
    assert run_pipeline(str(small.folder / "p.yaml"), dry_run=True) == 2
    assert "the environment variable BANK_KEY is not set" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("BANK_KEY", "the key of this bank")
    assert small.run() == ["ingest", "split", "serialize"]

    hidden = spec.read_text()
    spec.write_text(hidden.replace("pseudonymise: {key_env: BANK_KEY}\n", ""))
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="the spec has no key, and there is the one under which stage ingest"):
            small.run(fresh=fresh)
    with pytest.raises(ConfigError, match="the spec has no key"):
        erase_clients(str(small.folder / "p.yaml"), clients=["c1"])
    spec.write_text(hidden)

    shutil.rmtree(small.folder / "out" / "runs")  # the tables know it as well, whoever wrote to them last
    for erased in (False, True):
        if erased:
            erase_clients(str(small.folder / "p.yaml"), clients=["c1"])
        with monkeypatch.context() as wrong:
            wrong.setenv("BANK_KEY", "the key of another")
            with pytest.raises(ConfigError, match="holds another key"):
                small.run()
            with pytest.raises(ConfigError, match="holds another key"):
                erase_clients(str(small.folder / "p.yaml"), clients=["c1"])


def test_files_of_another_file_system_are_known_by_what_it_tells_of_them(spark: SparkSession, tmp_path: Path) -> None:
    hashes = Hashes(tmp_path / "hashes.json", lambda: spark)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1\n")
    url = (tmp_path / "data").as_uri()
    first = hashes._listed(url)
    assert hashes._listed(url) == first
    (tmp_path / "data" / "a.csv").write_text("12\n")
    assert hashes._listed(url) != first
    assert hashes._listed((tmp_path / "nothing").as_uri()) == "not there"
