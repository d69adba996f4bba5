"""One run at a time on a lake: a second one leaves, a dead one's lease is taken over, a lost one stops its run."""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.jobs.maintain import maintain
from ledgerlm.jobs.rollback import roll_back
from ledgerlm.jobs.status import tell_status
from ledgerlm.lake import upkeep
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.leases import Holder, Lease, leased
from ledgerlm.lake.publications import publications
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import write_bank

MINUTES = 60.0
FIRST = Holder(pipeline="bank", run_id="one", host="a", process=1, folder="f1")
SECOND = replace(FIRST, run_id="two", host="b", process=2, folder="f2")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), spark)


def holders(lake: Lake) -> list[str]:
    rows = lake.spark.sql(f"SELECT run_id FROM {lake.home.identifier('leases')}").collect()
    return [row["run_id"] for row in rows]


def test_a_lease_keeps_others_out_until_it_runs_out(lake: Lake, clock: Clock) -> None:
    one, two = Lease(lake, FIRST, MINUTES, clock), Lease(lake, SECOND, MINUTES, clock)
    one.take()
    clock.now += 59
    with pytest.raises(ConfigError, match=r"in use by run one of pipeline bank on a \(process 1\) since .* 22:13:20"):
        two.take()
    one.renew()
    clock.now += 59
    with pytest.raises(ConfigError, match="in use by run one"):
        two.take()
    assert holders(lake) == ["one"]
    clock.now += 2
    two.take()
    assert holders(lake) == ["two"]
    with pytest.raises(DataError, match=r"was lost to run two of pipeline bank on b .*lease_minutes: 1\); it writes"):
        one.check()
    one.give_back()
    assert holders(lake) == ["two"], "what is another's is not given back"
    two.check()
    two.give_back()
    assert holders(lake) == []


def test_a_lease_that_ran_out_and_nobody_took_goes_on(lake: Lake, clock: Clock) -> None:
    one = Lease(lake, FIRST, MINUTES, clock)
    one.take()
    clock.now += 600
    one.check()
    clock.now += 59
    with pytest.raises(ConfigError):
        Lease(lake, SECOND, MINUTES, clock).take()


def test_a_dead_run_of_the_same_folder_keeps_nobody_out(lake: Lake, clock: Clock) -> None:
    Lease(lake, FIRST, MINUTES, clock).take()
    again = replace(FIRST, run_id="again", process=7)
    with pytest.raises(ConfigError):
        Lease(lake, replace(again, host="b"), MINUTES, clock).take()
    with pytest.raises(ConfigError):
        Lease(lake, replace(again, folder=""), MINUTES, clock).take()
    Lease(lake, again, MINUTES, clock).take()
    assert holders(lake) == ["again"]


def test_of_many_at_once_one_wins(lake: Lake) -> None:
    Lease(lake, FIRST, MINUTES).take()
    Lease(lake, FIRST, MINUTES).give_back()
    won: list[str] = []

    def take(number: int) -> None:
        try:
            Lease(lake, replace(SECOND, run_id=f"r{number}", folder=f"f{number}"), MINUTES).take()
        except ConfigError:
            return
        won.append(f"r{number}")

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(won) == 1
    assert holders(lake) == won


def test_a_lease_is_renewed_while_its_run_works_and_given_back_where_it_fails(lake: Lake) -> None:
    with pytest.raises(RuntimeError, match="broken"), leased(lake, FIRST, 3.0):
        before = lake.history.newest("leases")
        assert before is not None
        for _ in range(300):
            newest = lake.history.newest("leases")
            if newest is not None and newest.version > before.version:
                break
            threading.Event().wait(0.1)
        else:
            pytest.fail("nobody renewed it")
        raise RuntimeError("broken")
    assert holders(lake) == []


def operations(lake: Lake) -> list[str]:
    """What was committed to the table of leases, oldest first."""
    rows = lake.spark.sql(f"DESCRIBE HISTORY {lake.home.identifier('leases')}").orderBy("version").collect()
    return [row["operation"] for row in rows]


class Two:
    """Two pipelines with folders of their own and one lake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_bank(root)

    def file(self, out: str) -> Path:
        file = self.root / f"{out}.yaml"
        content: dict[str, Any] = {
            "pipeline": "nightly",
            "out": str(self.root / out),
            "lake": str(self.root / "lake"),
            "lease_minutes": 60,
            "data": str(self.root / "bank.yaml"),
            "stages": {"ingest": {"append": True}, "publish": {}},
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def runner(self, out: str) -> Runner:
        return Runner(load_pipeline(str(self.file(out))), Progress())


@pytest.fixture
def two(spark: SparkSession, tmp_path: Path) -> Iterator[Two]:  # `spark`: runs join the session that is there
    yield Two(tmp_path)


def test_a_second_run_on_one_lake_leaves_while_the_first_works(
    two: Two, lake: Lake, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def meanwhile(*_: object) -> None:
        """The first run stands still between two commits, and another machine's begins."""
        monkeypatch.setenv("LEDGERLM_FAILPOINT", "")
        for attempt in (two.runner("b").run, lambda: roll_back(str(two.file("b")))):
            with pytest.raises(ConfigError) as error:
                attempt()
            said.append(str(error.value))
        # Removal goes on beside a night; compaction waits for its end.
        assert maintain(str(two.file("b"))) == 0
        monkeypatch.setattr(upkeep, "_MANY", 1)
        with pytest.raises(ConfigError, match="in use by run"):
            maintain(str(two.file("b")))
        monkeypatch.setattr(upkeep, "_MANY", 8)

    monkeypatch.setenv("LEDGERLM_FAILPOINT", "ingest:after_changes")
    monkeypatch.setattr(os, "kill", meanwhile)
    run = two.runner("a").run()
    assert [stage.record.name for stage in run.stages] == ["ingest", "publish"]
    assert len(said) == 2
    assert all(f"in use by run {run.run_id} of pipeline nightly on " in line for line in said)
    assert holders(lake) == [], "a run leaves no lease behind"
    commits = ["CREATE TABLE", "MERGE", "VACUUM START", "VACUUM END", "DELETE"]
    assert operations(lake) == commits, "two of a run, beside those of the upkeep meanwhile"
    two.runner("a").run()
    assert operations(lake) == commits, "a run with nothing to do asks for none"
    assert [one.number for one in publications(lake)] == [1]
    assert "leases" not in publications(lake)[0].tables
    assert roll_back(str(two.file("b")), to=1) == 0
    assert holders(lake) == []


def test_a_run_that_lost_its_lease_writes_nothing_more(
    two: Two, lake: Lake, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slept(*_: object) -> None:
        """For so long that another machine's run has taken the lake over."""
        monkeypatch.setenv("LEDGERLM_FAILPOINT", "")
        table = lake.home.identifier("leases")
        spark.sql(f"UPDATE {table} SET run_id = 'other', host = 'elsewhere'")
        assert runner._lease is not None
        runner._lease._renewed = 0.0

    runner = two.runner("a")
    monkeypatch.setenv("LEDGERLM_FAILPOINT", "ingest:after_changes")
    monkeypatch.setattr(os, "kill", slept)
    with pytest.raises(DataError, match=r"was lost to run other of pipeline nightly on elsewhere .* run it again"):
        runner.run()
    assert lake.exists("changes") and not lake.exists("events")
    assert holders(lake) == ["other"]


def test_a_pipeline_that_does_not_publish_needs_no_lease(two: Two, lake: Lake) -> None:
    file = two.file("a")
    content = yaml.safe_load(file.read_text())
    del content["stages"]["publish"]
    file.write_text(yaml.safe_dump(content))
    Runner(load_pipeline(str(file)), Progress()).run()
    assert lake.history.newest("leases") is None


def test_status_tells_who_is_at_work_and_whether_its_lease_ran_out(
    two: Two, lake: Lake, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    def status() -> tuple[str, dict[str, Any] | None]:
        file = str(two.file("a"))
        assert tell_status(file) == 0
        text = capsys.readouterr().out
        assert tell_status(file, as_json=True) == 0
        return text, json.loads(capsys.readouterr().out)["lease"]

    text, found = status()
    assert "nobody is at work" in text and found is None
    two.runner("a").run()
    assert status()[1] is None, "a run leaves no lease behind"
    with leased(lake, FIRST, MINUTES):
        text, found = status()
        assert "at work: run one of pipeline bank on a (process 1) since 2" in text
        assert "unless it is renewed" in text and "ran out" not in text
        assert found is not None
        assert {name: found[name] for name in ("pipeline", "run_id", "host", "process", "ran_out")} == {
            "pipeline": "bank",
            "run_id": "one",
            "host": "a",
            "process": 1,
            "ran_out": False,
        }
        since, until = (dt.datetime.fromisoformat(found[name]) for name in ("since", "until"))
        assert until - since == dt.timedelta(seconds=MINUTES)
        assert abs(since - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)
    Lease(lake, FIRST, MINUTES, lambda: 1_700_000_000.0).take()
    text, found = status()
    assert "its lease ran out at 2023-11-14 22:14:20 UTC" in text and "takes the lake over" in text
    assert found is not None and found["ran_out"]


def test_the_lease_of_a_catalogs_schema(spark: SparkSession, clock: Clock) -> None:
    lake = Lake("spark_catalog.leased_bank", spark)
    try:
        one = Lease(lake, FIRST, MINUTES, clock)
        one.take()
        with pytest.raises(ConfigError, match=r"spark_catalog.leased_bank is in use by run one"):
            Lease(lake, SECOND, MINUTES, clock).take()
        one.renew()
        one.give_back()
        assert holders(lake) == []
    finally:
        spark.sql("DROP SCHEMA IF EXISTS leased_bank CASCADE")
