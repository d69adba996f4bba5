"""Files that arrive: a batch adds, corrects and takes away, and the tables are as if all files were read at once."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError, DataError, SpecError
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.publications import versions
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import StageRecord
from ledgerlm.runs.runner import Runner

SPEC: dict[str, Any] = {
    "name": "bank",
    "client": "who",
    "time": {"column": "at", "format": "yyyy-MM-dd HH:mm", "zone": "Europe/Berlin"},
    "event_id": {"columns": ["id"], "conflicts": "last", "deleted": {"op": ["D"]}, "kept": {"op": ["I"]}},
    "amount": {"column": "sum"},
    "fields": [{"name": "mcc"}],
}
HEAD = "id,who,at,sum,mcc,op\n"


class Bank:
    """A folder of deliveries, and a pipeline that takes them in."""

    def __init__(self, root: Path, spark: SparkSession, **spec: Any) -> None:
        self.root, self.spark = root, spark
        self.files = root / "files"
        self.files.mkdir()
        source = {"path": str(self.files), "files": [{"glob": "*.csv"}]}
        (root / "bank.yaml").write_text(yaml.safe_dump(SPEC | {"source": source} | spec))

    def deliver(self, name: str, *rows: str, head: str = HEAD) -> None:
        (self.files / name).write_text(head + "".join(f"{row}\n" for row in rows))

    def ingest(self, out: str = "out", *, fresh: bool = False, **conf: Any) -> StageRecord:
        file = self.root / f"{out}.yaml"
        stages = {"ingest": {"append": out == "out", "max_quarantined_share": 1.0, **conf}}
        content = {"pipeline": out, "out": str(self.root / out), "data": str(self.root / "bank.yaml"), "stages": stages}
        file.write_text(yaml.safe_dump(content))
        runner = Runner(load_pipeline(str(file)), Progress())
        return runner.run(fresh=fresh).stages[0].record

    def rows(self, table: str, out: str = "out", without: tuple[str, ...] = ("run_id", "quarantined_at")) -> list[Any]:
        frame = Lake(str(self.root / out / "lake"), self.spark).read(table)
        return sorted((tuple(row) for row in frame.drop(*without).collect()), key=repr)

    def versions(self) -> dict[str, int]:
        """Of all tables: what nobody wrote to stays."""
        return versions(Lake(str(self.root / "out" / "lake"), self.spark))

    def equals_a_run_from_nothing(self) -> None:
        name = f"whole{len(list(self.root.iterdir()))}"
        self.ingest(name)
        # Which of two deliveries of one event is named is no matter.
        without = ("run_id", "source_file")
        assert self.rows("events", without=without) == self.rows("events", name, without)
        assert self.rows("clients") == self.rows("clients", name)

    def changes(self, batch: int) -> dict[str, tuple[str, int, int, int]]:
        frame = Lake(str(self.root / "out" / "lake"), self.spark).read("changes").where(f"batch = {batch}")
        return {
            row["client_id"]: (str(row["earliest"]), row["appended"], row["corrected"], row["deleted"])
            for row in frame.selectExpr("*", "cast(earliest as string) as e").collect()
        }


@pytest.fixture
def bank(tmp_path: Path, spark: SparkSession) -> Iterator[Bank]:
    made = Bank(tmp_path, spark)
    made.deliver(
        "day1.csv", "1,a,2024-01-01 10:00,5,food,", "2,a,2024-01-02 10:00,6,fuel,", "3,b,2024-01-01 09:00,7,food,"
    )
    first = made.ingest()
    assert (first.rows_out, first.batch) == (3, 1)
    yield made


def test_a_batch_adds_corrects_and_takes_away_as_if_all_were_read_at_once(bank: Bank) -> None:
    bank.deliver(
        "day2.csv",
        "4,a,2024-01-03 10:00,8,food,",  # new
        "2,a,2024-01-02 10:00,66,fuel,",  # another amount
        "3,b,,,,D",  # taken away, without saying more
        "1,a,2024-01-01 10:00,5,food,",  # the same again
        "5,c,2023-06-01 10:00,1,food,",  # a new client, long ago
        "6,c,2023-06-31 10:00,1,food,",  # no such day
    )
    second = bank.ingest()
    assert (second.rows_in, second.rows_out, second.duplicates, second.withdrawn, second.quarantined) == (6, 3, 1, 1, 1)
    assert second.batch == 2
    facts = second.facts
    assert (facts["appended"], facts["corrected"], facts["deleted"], facts["repeated"]) == (2, 1, 1, 1)
    assert {client: one[1:] for client, one in bank.changes(2).items()} == {
        "a": (1, 1, 0),
        "b": (0, 0, 1),
        "c": (1, 0, 0),
    }
    assert bank.changes(2)["a"][0].startswith("2024-01-02 09:00"), "the earliest time that was touched, in UTC"
    assert bank.changes(2)["b"][0].startswith("2024-01-01 08:00"), "when the event was that went"
    bank.equals_a_run_from_nothing()


def test_files_are_known_by_their_content_and_one_may_hold_nothing_but_not_be_cut_off(bank: Bank) -> None:
    before = bank.rows("events")
    (bank.files / "copy.csv").write_bytes((bank.files / "day1.csv").read_bytes())
    copy = bank.ingest()
    assert (copy.rows_in, copy.rows_out, copy.facts["renamed"]) == (0, 0, 1)
    (bank.files / "day1.csv").unlink()
    (bank.files / "copy.csv").unlink()
    bank.deliver("day2.csv", "4,a,2024-01-03 10:00,8,food,")
    assert bank.ingest().rows_out == 1, "what was taken may be archived"
    assert len(bank.rows("events")) == len(before) + 1
    bank.deliver("day2.csv", "4,a,2024-01-03 10:00,9,food,")
    with pytest.raises(DataError, match=r"day2.csv was taken before with another content.*--fresh"):
        bank.ingest()
    (bank.files / "day2.csv").unlink()
    bank.deliver("day3.csv")
    empty = bank.ingest()
    assert (empty.rows_in, empty.rows_out, empty.batch) == (0, 0, 3)
    (bank.files / "day4.csv").touch()
    with pytest.raises(DataError, match=r"day4.csv has no content: a delivery that was cut off"):
        bank.ingest()
    bank.deliver("day4.csv", "5,a,2024-01-03 10:00,8,food,")
    (bank.files / "day5.csv").write_text("id;who;at;sum;mcc;op\n6;a;2024-01-03 10:00;8;food;\n")
    with pytest.raises(SpecError, match=r"day5.csv: its header is one column, 'id;who;at;sum;mcc;op', whose names ';'"):
        bank.ingest()
    (bank.files / "day5.csv").unlink()
    assert bank.ingest().rows_out == 1


def test_reading_anew_refuses_to_forget_what_is_gone(bank: Bank) -> None:
    (bank.files / "day1.csv").unlink()
    bank.deliver("day2.csv", "4,a,2024-01-03 10:00,8,food,")
    spec = (bank.root / "bank.yaml").read_text()
    (bank.root / "bank.yaml").write_text(spec.replace("- name: mcc", "- {name: mcc, short: code}"))
    with pytest.raises(DataError, match=r"1 files that were taken before are gone, such as .*day1.csv"):
        bank.ingest()
    assert len(bank.rows("events")) == 3
    (bank.root / "bank.yaml").write_text(spec)
    assert bank.ingest().rows_out == 1, "the change was taken back, so what stood stands"


def test_a_batch_that_was_refused_is_taken_when_more_is_allowed(bank: Bank) -> None:
    bank.deliver("day2.csv", "7,a,never,5,food,", "8,a,2024-01-09 10:00,5,food,")
    (bank.files / "day1.csv").unlink()
    with pytest.raises(DataError, match="1 of 2 rows are bad"):
        bank.ingest(max_quarantined_share=0.1)
    assert bank.ingest(max_quarantined_share=0.5).rows_out == 1
    bank.deliver("day3.csv", "9,a,nowhen,5,food,")
    with pytest.raises(DataError, match="1 of 1 rows are bad"):
        bank.ingest(max_quarantined_share=0.1)
    bank.deliver("day4.csv", "10,a,2024-01-09 10:00,5,food,")
    both = bank.ingest()
    assert (both.rows_in, both.rows_out, both.quarantined, both.duplicates) == (2, 1, 0, 1), "it was set aside before"
    assert [row[2] for row in bank.rows("quarantine")] == ["at: never", "at: nowhen"], "what was set aside stays"


def test_an_order_is_kept_over_batches(tmp_path: Path, spark: SparkSession) -> None:
    """What was taken away stays away from older rows; no order is older than any; ties go to the later."""
    bank = Bank(tmp_path, spark, time=SPEC["time"] | {"order": "seq"})
    columns = "id,who,at,sum,mcc,op,seq\n"

    def deliver(name: str, *rows: str) -> StageRecord:
        (bank.files / name).write_text(columns + "".join(f"{row}\n" for row in rows))
        return bank.ingest()

    at = "a,2024-01-02 10:00"
    deliver("day1.csv", *(f"{one},{at},1,food,I,30" for one in range(1, 7)))
    away = deliver("day2.csv", f"1,{at},1,food,D,700", f"2,{at},2,food,I,", f"3,{at},3,food,I,30", "9,a,,,,D,510")
    assert (away.facts["deleted"], away.facts["unknown_deletions"], away.facts["repeated"]) == (1, 1, 1)
    assert away.facts["corrected"] == 1, "of a tie, the later delivery holds"
    late = deliver(
        "day0.csv", f"1,{at},4,food,I,650", f"9,{at},4,food,I,509", f"4,{at},4,food,I,30", f"1,{at},4,food,I,"
    )
    assert (late.facts["outdated"], late.withdrawn, late.duplicates) == (2, 2, 1)
    sums = {row[1]: int(row[4]) for row in bank.rows("events")}
    assert sums == {"2": 1, "3": 3, "4": 4, "5": 1, "6": 1}
    newer = deliver("day4.csv", f"1,{at},5,food,I,701", "1,a,,,,D,600", f"9,{at},5,food,I,511")
    assert newer.facts["appended"] == 2
    again = deliver("copy-of-day4.csv", f"6,{at},6,food,I,31")
    (bank.files / "a-copy.csv").write_bytes((bank.files / "day0.csv").read_bytes())
    assert again.facts["corrected"] == 1
    nightly = bank.rows("events", without=("run_id", "source_file"))
    assert {row[1]: int(row[4]) for row in nightly} == {"1": 5, "2": 1, "3": 3, "4": 4, "5": 1, "6": 6, "9": 5}
    assert {row[1]: int(row[2]) for row in bank.rows("deletions")} == {"1": 700, "9": 510}
    assert bank.ingest(fresh=True).batch == 6
    assert bank.rows("events", without=("run_id", "source_file")) == nightly, "as the files came, whatever their names"


def test_an_event_of_an_instant_takes_its_place_among_the_others(tmp_path: Path, spark: SparkSession) -> None:
    time = SPEC["time"] | {"order": "nr"}
    bank = Bank(tmp_path, spark, time=time)
    head = "id,who,at,sum,mcc,op,nr\n"
    (bank.files / "1.csv").write_text(f"{head}1,a,2024-01-01 00:00,5,food,,2\n2,a,2024-01-01 00:00,6,food,,9\n")
    bank.ingest()
    (bank.files / "2.csv").write_text(f"{head}3,a,2024-01-01 00:00,7,food,,3\n4,a,2024-01-01 00:00,7,food,,1\n")
    bank.ingest()
    seats = {row[1]: row[3] for row in bank.rows("events")}
    assert seats == {"4": 0, "1": 1, "3": 2, "2": 3}
    bank.equals_a_run_from_nothing()
    (bank.files / "3.csv").write_text(f"{head}1,a,2024-01-01 00:00,,,D,2\n")
    bank.ingest()
    assert {row[1]: row[3] for row in bank.rows("events")} == {"4": 0, "3": 1, "2": 2}
    bank.equals_a_run_from_nothing()


def test_rows_without_an_id_are_counted_over_batches_as_over_files(tmp_path: Path, spark: SparkSession) -> None:
    bank = Bank(tmp_path, spark, event_id={})
    bank.deliver("1.csv", "1,a,2024-01-01 10:00,5,food,", "1,a,2024-01-01 10:00,5,food,")
    bank.ingest()
    bank.deliver("2.csv", *["1,a,2024-01-01 10:00,5,food,"] * 3, "2,a,2024-01-02 10:00,5,food,")
    record = bank.ingest()
    assert (record.rows_in, record.rows_out, record.duplicates) == (4, 2, 2)
    bank.equals_a_run_from_nothing()


def test_a_file_with_other_columns_and_a_delivery_of_what_was_there(bank: Bank) -> None:
    bank.deliver("day2.csv", "4,a,2024-01-03 10:00,8,food,,hello", head="id,who,at,sum,mcc,op,note\n")
    before = bank.versions()
    refused = (
        r"data set bank, batch 2: .*day2.csv has column 'note', which no delivery of \*.csv had before, and "
        r"batch.columns is refuse, so nothing of the batch was taken; .* set batch.columns to warn"
    )
    with pytest.raises(DataError, match=refused):
        bank.ingest(batch={"columns": "refuse"})
    assert bank.versions() == before
    taken = bank.ingest()
    assert (taken.batch, taken.rows_out) == (2, 1), "a rule is no reason to read everything anew"
    assert taken.facts["batch_rules"]["columns"]["action"] == "warn"
    assert "'note'" in taken.facts["report"][0]["blocks"][0]["rows"][0][2]
    bank.deliver("day3.csv", "5,a,2024-01-04 10:00,8,food,,hello", head="ID,who,at,sum,mcc,op,Note\n")
    assert bank.ingest().facts["batch_rules"] == {}, "known by now, in capitals too"
    bank.deliver("day4.csv", "6,a,2024-01-05 10:00,8,food,")
    missing = bank.ingest().facts["batch_rules"]["columns"]["said"]
    assert missing.endswith("day4.csv lacks column 'note', which the last delivery of *.csv had")
    bank.deliver("day5.csv", "2,a,2024-01-02 10:00,6,fuel,", "9,a,,,,D")
    before = bank.versions()
    with pytest.raises(DataError, match=r"nothing in it is new: 2 rows were there, .*; withdraw the file"):
        bank.ingest(batch={"repeated": "refuse"})
    assert bank.versions() == before
    assert bank.ingest().facts["batch_rules"]["repeated"]["action"] == "warn"
    bank.deliver("day6.csv", "2,a,2024-01-02 10:00,6,fuel,", "7,a,2024-01-03 10:00,6,fuel,")
    assert bank.ingest(batch={"repeated": "refuse"}).facts["batch_rules"] == {}


def in_hours(hours: float) -> str:
    """A time from now, on the clock of the bank."""
    return f"{dt.datetime.now(ZoneInfo('Europe/Berlin')) + dt.timedelta(hours=hours):%Y-%m-%d %H:%M}"


@pytest.mark.slow
def test_a_time_in_the_future(bank: Bank) -> None:
    rows = (f"4,a,{in_hours(0.7)},8,food,", f"5,a,{in_hours(3)},8,food,", f"6,b,{in_hours(30)},8,food,")
    bank.deliver("day2.csv", *rows)
    before = bank.versions()
    with pytest.raises(DataError, match=r"2 rows have a time in the future, up to .* in files/day2.csv, taken in at"):
        bank.ingest(batch={"future": "refuse"})
    assert bank.versions() == before
    taken = bank.ingest()
    assert (taken.rows_in, taken.rows_out, taken.quarantined) == (3, 1, 2), "an hour is for clocks that differ"
    assert taken.facts["quarantined_by_reason"] == {"time_in_future": 2}
    assert taken.facts["batch_rules"]["future"]["action"] == "quarantine"
    assert {(row[1], row[4]) for row in bank.rows("quarantine")} == {("time_in_future", row) for row in rows[1:]}
    bank.deliver("day3.csv", f"7,c,{in_hours(3)},8,food,", f"3,b,{in_hours(50)},,,D")
    warned = bank.ingest(batch={"future": "warn"})
    assert (warned.rows_out, warned.facts["deleted"]) == (1, 1), "a deletion is no event, whenever it is"
    assert warned.facts["batch_rules"]["future"]["said"].startswith("1 rows have a time in the future")


@pytest.mark.slow
def test_the_first_batch_is_held_against_the_clock_alone(tmp_path: Path, spark: SparkSession) -> None:
    bank = Bank(tmp_path, spark)
    bank.deliver("day1.csv", "1,a,2024-01-01 10:00,5,food,", f"2,a,{in_hours(3)},8,food,")
    with pytest.raises(DataError, match="batch 1: 1 rows have a time in the future"):
        bank.ingest(batch={"future": "refuse", "columns": "refuse", "currencies": "refuse", "rows": "refuse"})
    assert bank.versions() == {}
    first = bank.ingest()
    assert (first.rows_out, first.quarantined, first.batch) == (1, 1, 1)
    assert list(first.facts["batch_rules"]) == ["future"]


MONEY = {"amount": {"column": "sum", "currency_column": "cur"}}
WITH_CURRENCY = "id,who,at,sum,mcc,op,cur\n"


@pytest.mark.slow
def test_a_currency_that_was_never_seen(tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path, spark, **MONEY)
    bank.deliver("1.csv", "1,a,2024-01-01 10:00,5,food,,EUR", "2,a,2024-01-01 11:00,5,food,,", head=WITH_CURRENCY)
    assert bank.ingest(batch={"currencies": "refuse"}).facts["batch_rules"] == {}
    rows = ("3,a,2024-01-02 10:00,5,food,,EUR", "4,b,2024-01-02 11:00,5,food,,XBT", "5,a,2024-01-02 12:00,5,food,,")
    bank.deliver("2.csv", *rows, head=WITH_CURRENCY)
    before = bank.versions()
    with pytest.raises(DataError, match=r"1 rows have a currency that no event had before, such as XBT in files/2.csv"):
        bank.ingest(batch={"currencies": "refuse"})
    assert bank.versions() == before

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("LEDGERLM_FAILPOINT", "ingest:after_changes")
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", kill)
        with pytest.raises(KeyboardInterrupt):
            bank.ingest(batch={"currencies": "quarantine"})
    monkeypatch.delenv("LEDGERLM_FAILPOINT")
    taken = bank.ingest()  # by the rules under which it had begun to write
    assert (taken.rows_in, taken.rows_out, taken.quarantined) == (3, 2, 1)
    assert taken.facts["quarantined_by_reason"] == {"new_currency": 1}
    assert [(row[1], row[2]) for row in bank.rows("quarantine")] == [("new_currency", "currency: XBT")]
    assert set(bank.changes(2)) == {"a"}
    bank.deliver("3.csv", "6,b,2024-01-03 11:00,5,food,,XBT", head=WITH_CURRENCY)
    assert "XBT" in bank.ingest().facts["batch_rules"]["currencies"]["said"], "what was set aside is not known"
    bank.deliver("4.csv", "7,b,2024-01-04 11:00,5,food,,XBT", head=WITH_CURRENCY)
    assert bank.ingest(batch={"currencies": "refuse"}).facts["batch_rules"] == {}, "what was warned of is"


@pytest.mark.slow
def test_many_more_rows_or_fewer_than_on_other_nights(bank: Bank) -> None:
    def rows(first: int, count: int) -> list[str]:
        return [f"{first + place},a,2024-02-01 10:00,5,food," for place in range(count)]

    bank.deliver("day2.csv", *rows(100, 40))
    assert bank.ingest().facts["batch_rules"] == {}, "the history is no night to be held against"
    bank.deliver("day3.csv", *rows(200, 3))
    before = bank.versions()
    too_few = r"3 rows, 0.075 times the median 40 of the 1 batches before, less than batch.least 0.1, and batch.rows is"
    with pytest.raises(DataError, match=too_few):
        bank.ingest(batch={"rows": "refuse"})
    assert bank.versions() == before
    bank.deliver("day3.csv", *rows(200, 20))  # the rest has come
    assert bank.ingest(batch={"rows": "refuse"}).facts["batch_rules"] == {}
    bank.deliver("day4.csv", *rows(300, 70))
    warned = bank.ingest(batch={"most": 2}).facts["batch_rules"]["rows"]
    assert warned["said"] == "70 rows, 2.3 times the median 30 of the 2 batches before, more than batch.most 2.0"


def test_rules_for_batches_where_none_come_are_refused(tmp_path: Path, spark: SparkSession) -> None:
    bank = Bank(tmp_path, spark)
    with pytest.raises(ConfigError, match="batch: only files that arrive come in batches; say 'append: true'"):
        bank.ingest(append=False, batch={"future": "warn"})
