"""Delta tables as sources: whatever way a night finds out what changed, the events are those of the newest version."""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.frames import Keeper
from ledgerlm.errors import DataError, SpecError
from ledgerlm.events import nightly, table_changes
from ledgerlm.events.appending import append
from ledgerlm.events.ingesting import IngestConf, ingest_files
from ledgerlm.events.spec import DataSetSpec, load_spec
from ledgerlm.events.table_changes import TakenTable, newest_versions
from ledgerlm.events.table_events import TableEvents, table_events
from ledgerlm.lake import source_tables
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.source_tables import newest_version
from ledgerlm.progress import Progress
from ledgerlm.runs import standing
from ledgerlm.runs.hashes import Hashes
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records
from ledgerlm.runs.runner import Finished, Runner

COLUMNS = "id BIGINT, who STRING, at STRING, sum DECIMAL(9,2), mcc STRING"
FED = "delta.enableChangeDataFeed = true"
SPEC: dict[str, Any] = {
    "name": "bank",
    "client": "who",
    "time": {"column": "at", "format": "yyyy-MM-dd HH:mm", "zone": "Europe/Berlin"},
    "event_id": {"columns": ["src", "id"]},
    "amount": {"column": "sum"},
    "fields": [{"name": "mcc"}, {"name": "note", "kind": "text", "optional": True}],
}


class Bank:
    """Delta tables, and a pipeline that takes them in."""

    def __init__(self, root: Path, spark: SparkSession, files: list[dict[str, Any]], **spec: Any) -> None:
        self.root, self.spark = root, spark
        source = {"path": str(root / "tables"), "files": files}
        (root / "bank.yaml").write_text(yaml.safe_dump(SPEC | {"source": source} | spec))

    def sql(self, statement: str, **tables: str) -> None:
        """Runs a statement in which `{NAME}` is a table."""
        names = {path.name: f"delta.`{path}`" for path in (self.root / "tables").glob("*")}
        self.spark.sql(statement.format(**(names | tables)))

    def make(self, name: str, *rows: str, properties: str = FED, columns: str = COLUMNS) -> None:
        table = {name: f"delta.`{self.root / 'tables' / name}`"}
        self.sql(f"CREATE TABLE {{{name}}} ({columns}) USING delta TBLPROPERTIES ({properties})", **table)
        self.sql(f"INSERT INTO {{{name}}} VALUES {', '.join(rows)}")

    def night(self, **conf: Any) -> Finished:
        stages = {"ingest": {"append": True, "max_quarantined_share": 1.0, **conf}}
        content = {"pipeline": "out", "out": str(self.root / "out"), "data": str(self.root / "bank.yaml")}
        (self.root / "out.yaml").write_text(yaml.safe_dump(content | {"stages": stages}))
        return Runner(load_pipeline(str(self.root / "out.yaml")), Progress()).run().stages[0]

    def way(self) -> tuple[str, str]:
        """Takes a night in: by which way, and why not by a cheaper one."""
        [told] = self.night().record.facts["tables"]
        return told["way"], told["why"]

    def table(self, name: str) -> Any:
        return Lake(str(self.root / "out" / "lake"), self.spark).read(name)

    def changes(self, batch: int) -> dict[str, tuple[str, int, int, int]]:
        """Client -> earliest time, events appended, corrected and deleted."""
        rows = self.table("changes").where(f"batch = {batch}").withColumn("time", F.col("earliest").cast("string"))
        return {
            one["client_id"]: (one["time"], one["appended"], one["corrected"], one["deleted"]) for one in rows.collect()
        }

    def equals_a_full_read(self) -> None:
        """The lake against all tables read at their newest versions."""
        spec, keeper = load_spec(self.root / "bank.yaml"), Keeper()
        made = ingest_files(self.spark, spec, IngestConf(max_quarantined_share=1.0), keep=keeper.keep).made
        for name in ("events", "clients"):
            told = made.tables[name].frame.drop("source_file")
            sides = (self.table(name).select(told.columns), told)
            there, whole = (Counter(map(repr, rows.collect())) for rows in sides)
            assert (there - whole, whole - there) == (Counter(), Counter()), name
        keeper.release()


@contextmanager
def setting(spark: SparkSession, key: str, value: str) -> Iterator[None]:
    spark.conf.set(key, value)
    try:
        yield
    finally:
        spark.conf.unset(key)


def row(number: int, who: str, day: int, amount: int = 5, mcc: str = "food", note: str | None = None) -> str:
    return f"({number}, '{who}', '2024-01-{day:02} 10:00', {amount}, '{mcc}'" + (f", '{note}')" if note else ")")


def entry(name: str) -> dict[str, Any]:
    return {"glob": name, "format": "delta", "constants": {"src": name}}


MERGE = """
MERGE INTO {tx} t USING (SELECT * FROM VALUES (2, 'a', '2024-01-02 10:00', 66, 'fuel', 'U'),
    (3, 'b', '', 0, '', 'D'), (4, 'c', '2023-06-01 10:00', 8, 'food', 'I') AS s(id, who, at, sum, mcc, op)) s
ON t.id = s.id WHEN MATCHED AND s.op = 'D' THEN DELETE
WHEN MATCHED THEN UPDATE SET sum = s.sum, mcc = s.mcc WHEN NOT MATCHED THEN INSERT (id, who, at, sum, mcc)
VALUES (s.id, s.who, s.at, s.sum, s.mcc)
"""
FIRST, SECOND = "2024-01-01 09:00:00", "2024-01-02 09:00:00"


def test_after_every_night_the_lake_is_the_newest_version(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank(tmp_path, spark, [entry("tx"), {"glob": str(tmp_path / "files" / "*.csv")}])
    bank.make("tx", row(1, "a", 1), row(2, "a", 2), row(3, "b", 1), "(6, NULL, 'x', 1, 'y')")
    (tmp_path / "files").mkdir()
    day = "src,id,who,at,sum,mcc\n{}\n".format
    (tmp_path / "files" / "1.csv").write_text(day("csv,1,f,2024-01-01 10:00,5,food"))
    assert bank.way() == ("whole", "")
    assert bank.night().skipped, "without a new version no stage works"

    bank.sql(MERGE)
    bank.sql("UPDATE {tx} SET id = 9 WHERE id = 1")
    bank.sql(f"INSERT INTO {{tx}} VALUES {row(77, 'd', 1)}, {row(78, 'd', 1)}")
    bank.sql("DELETE FROM {tx} WHERE id = 77")
    (tmp_path / "files" / "2.csv").write_text(day("csv,2,f,2024-01-01 10:00,7,food"))
    lake, hashes = Lake(str(tmp_path / "out" / "lake"), spark), Hashes(tmp_path / "hashes.json", lambda: spark)
    monkeypatch.setattr(standing, "sizes", lambda _: [])
    stands = standing.standing(load_pipeline(str(tmp_path / "out.yaml")), Records(tmp_path / "out"), lake, hashes.found)
    assert stands.untaken == [str(tmp_path / "files" / "2.csv"), f"{tmp_path / 'tables' / 'tx'} (version 5)"]
    reads = only_what_came(monkeypatch)
    assert bank.way() == ("feed", "")
    assert reads == [True], "no row of the table but those that came"
    assert bank.changes(2) == {
        "a": (FIRST, 1, 1, 1),  # an id that changed is an event less and one more
        "b": (FIRST, 0, 0, 1),
        "c": ("2023-06-01 08:00:00", 1, 0, 0),
        "d": (FIRST, 1, 0, 0),
        "f": (FIRST, 1, 0, 0),
    }

    bank.sql("ALTER TABLE {tx} ADD COLUMNS (note STRING)")
    again = [row(2, "a", 2, 9, note="a second row"), row(4, "c", 1, 8, note="a third"), "(6, NULL, 'x', 1, 'y', NULL)"]
    bank.sql(f"INSERT INTO {{tx}} VALUES {', '.join([*again, row(10, 'a', 5, note='hello')])}")
    done = bank.night().record
    assert (done.facts["tables"][0]["way"], reads[1:]) == ("feed", [False]), (
        "an id came again, so all its rows are read"
    )
    assert "tx has column 'note'" in done.facts["batch_rules"]["columns"]["said"]
    assert done.facts["report"][-1]["title"] == "How Delta tables were read"
    assert bank.changes(3) == {"a": (SECOND, 1, 0, 1), "c": ("2023-06-01 08:00:00", 0, 0, 1)}
    assert bank.table("quarantine").count() == 5, "two conflicts, and a row of nobody, which was set aside before"
    bank.equals_a_full_read()

    bank.sql("UPDATE {tx} SET sum = 7 WHERE id = 78")
    bank.sql("DELETE FROM {tx} WHERE note = 'a third'")
    with monkeypatch.context() as patch:
        patch.setenv("LEDGERLM_FAILPOINT", "ingest:after_events")
        patch.setattr(os, "kill", killed)
        with pytest.raises(KeyboardInterrupt):
            bank.night()
    bank.sql("RESTORE TABLE {tx} TO VERSION AS OF 7")
    bank.sql("DELETE FROM {tx} WHERE note = 'a second row'")
    assert bank.way() == ("lake", "a batch was killed that may have read a version in between")
    sums = {one["event_id"]: int(one["amount"]) for one in bank.table("events").collect()}
    assert sums == {"tx|2": 66, "tx|9": 5, "tx|10": 5, "tx|78": 5, "csv|1": 5, "csv|2": 7}
    told = [(one["way"], one["since"], one["version"]) for one in bank.table("batches").orderBy("batch").collect()]
    assert told[0][0] is None and told[-1] == ("lake", 7, 11)


def only_what_came(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each night to come, whether the rows that came are all that is read of the table."""
    found: list[bool] = []

    def noted(*args: Any) -> TableEvents:
        read = table_events(*args)
        found.append(read.change.net is not None and read.rows.rows is read.change.net.came)
        return read

    monkeypatch.setattr(nightly, "table_events", noted)
    return found


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_rows_without_ids_in_a_table_of_a_catalog(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal rows are counted over the whole table, whatever files they lie in."""
    monkeypatch.setenv("LEDGERLM_PSEUDONYM_KEY", "secret")
    name = "spark_catalog.sources.tx"
    bank = Bank(tmp_path, spark, [{"glob": name, "format": "delta"}], event_id={}, pseudonymise={})
    spark.sql("CREATE SCHEMA IF NOT EXISTS spark_catalog.sources")
    try:
        spark.sql(f"CREATE TABLE {name} ({COLUMNS}) USING delta TBLPROPERTIES ({FED})")
        coffee, tea = row(1, "a", 1), row(2, "b", 2, mcc="tea")
        for some in (f"{coffee}, {tea}", f"{coffee}, {tea}", f"{row(3, 'b', 1)}, {coffee}"):  # a file each
            spark.sql(f"INSERT INTO {name} VALUES {some}")
        assert bank.way() == ("whole", "")
        assert bank.table("events").count() == 6
        assert bank.night().skipped

        kept = [coffee, coffee, tea, tea, tea, row(3, "b", 1, 6), row(4, "c", 1)]
        spark.sql(f"INSERT OVERWRITE {name} VALUES {', '.join(kept)}")
        done = bank.night().record
        assert done.facts["tables"][0]["way"] == "feed"
        assert [done.facts[kind] for kind in ("appended", "corrected", "deleted")] == [3, 0, 2]
        bank.equals_a_full_read()
    finally:
        spark.sql("DROP SCHEMA spark_catalog.sources CASCADE")


class Looked:
    """What came and went in a table between two versions, and how it was found."""

    def __init__(self, bank: Bank) -> None:
        self.path = str(bank.root / "tables" / "tx")
        self.spark, self.keeper = bank.spark, Keeper()
        self.spec = load_spec(bank.root / "bank.yaml")
        at = newest_version(bank.spark, self.path)
        assert at is not None
        self.at = at

    def __call__(self, *, half: bool = False, **other: Any) -> Any:
        taken = {self.path: TakenTable(at=self.at.model_copy(update=other), once=True)}
        now = newest_versions(self.spark, self.spec)
        keep = self.keeper.keep
        found = table_changes.table_changes(self.spark, self.spec, taken, now, half=half, keep=keep)
        return found[0] if found else None

    def way(self, **other: Any) -> tuple[str, str]:
        found = self(**other)
        return found.way, found.why

    def rows(self) -> tuple[str, list[str], list[str]]:
        found = self()
        sides = (found.net.came, found.net.went)
        return found.way, *(sorted(map(repr, rows.drop("note").collect())) for rows in sides)


OFF = "its change data feed was not on all the while"


@pytest.mark.slow
def test_feed_and_versions_tell_the_same(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path, spark, [entry("tx")])
    bank.make("tx", row(1, "a", 1), row(1, "a", 1), row(2, "a", 2), row(3, "b", 1))
    start = Looked(bank)
    bank.sql(MERGE)
    bank.sql("ALTER TABLE {tx} ADD COLUMNS (note STRING)")
    bank.sql(f"INSERT INTO {{tx}} VALUES {row(1, 'a', 1, note='x')}, {row(8, 'a', 1, note='x')}")
    bank.sql("DELETE FROM {tx} WHERE id = 8")
    told = start.rows()
    with monkeypatch.context() as patch:
        patch.setattr(table_changes, "change_feed", lambda *_: spark.sql("SELECT no_such_column"))
        compared = start.rows()
    assert (told[0], compared[0]) == ("feed", "versions")
    assert told[1:] == compared[1:]
    assert [len(rows) for rows in told[1:]] == [3, 2]

    here = Looked(bank)
    bank.sql("OPTIMIZE {tx}")
    bank.sql("UPDATE {tx} SET sum = 7 WHERE id = 1")
    bank.sql(f"RESTORE TABLE {{tx}} TO VERSION AS OF {here.at.version}")
    assert here() is None, "what was compacted, or changed and changed back, brings nothing"


def test_what_cannot_be_believed_is_not(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(tmp_path, spark, [entry("tx")])
    bank.make("tx", row(1, "a", 1), row(2, "a", 2), row(3, "a", 3), properties="a = 1")
    before = Looked(bank)
    bank.sql("UPDATE {tx} SET sum = 6 WHERE id = 1")
    bank.sql(f"ALTER TABLE {{tx}} SET TBLPROPERTIES ({FED})")
    since = Looked(bank)
    bank.sql("DELETE FROM {tx} WHERE id = 2")
    assert (before.way(), since.way()) == (("versions", OFF), ("feed", ""))
    assert since.way(version=99) == ("lake", "its versions went back from 99")
    assert since.way(table_id="x") == ("lake", "it is another table than that of version 3")
    assert since.way(committed=1) == ("lake", "its log has not the commit of version 3 any more")
    assert since.way(half=True)[0] == "lake"
    with setting(spark, "spark.sql.files.ignoreMissingFiles", "true"):
        assert since.way()[0] == "lake"
    full = source_tables.change_feed
    with monkeypatch.context() as patch:
        patch.setattr(table_changes, "change_feed", lambda *a: full(*a).where("_change_type <> 'delete'"))
        assert since.way() == ("versions", "its feed tells of +0 rows, and it grew by -1")

    last = Looked(bank)
    renamed = spark.read.format("delta").load(since.path).withColumnRenamed("mcc", "code").localCheckpoint()
    renamed.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(since.path)
    assert last.way() == ("versions", "columns went, or are of another type")
    with setting(spark, "spark.databricks.delta.retentionDurationCheck.enabled", "false"):
        bank.sql("VACUUM {tx} RETAIN 0 HOURS")
    gone = since.way()
    assert gone == ("lake", "columns went, or are of another type; files of old versions are gone (VACUUM)"), "swept"
    bank.sql("DELETE FROM {tx}")
    with pytest.raises(SpecError, match="tx: no rows in the table; where it may have none"):
        since()


def test_an_event_of_a_table_and_of_a_file(spark: SparkSession) -> None:
    """Neither alone says what becomes of it."""
    columns = "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), "
    columns += "currency string, mcc string, note string, source_file string"
    first = ("a", "1", dt.datetime(2024, 1, 1), 0, None, None, "food", None, "tables/tx")
    standing = spark.createDataFrame([first], columns)
    delivered = spark.createDataFrame([(*first[:-1], "files/1.csv", False)], f"{columns}, _gone boolean")
    spec, keeper = DataSetSpec.model_validate(SPEC), Keeper()
    append(delivered, standing, None, spec, batch=2, keep=keeper.keep)
    with pytest.raises(DataError, match=r"event 1 of client a is in tables/tx and in files/1.csv, and what"):
        append(delivered, standing, None, spec, batch=2, tables=["tables/tx"], keep=keeper.keep)
    keeper.release()


def test_tables_that_cannot_be_told_apart_and_orders_that_are_none(tmp_path: Path) -> None:
    files = [{"glob": f"{place}/tx", "format": "delta"} for place in (tmp_path / "a" / "t", tmp_path / "b" / "t")]
    spec = SPEC | {"source": {"files": files}}
    with pytest.raises(SpecError, match="events tell by t/tx which table they come from"):
        table_changes.tables_of(DataSetSpec.model_validate(spec))
    with pytest.raises(ValueError, match=r"time\.order: file: rows of a Delta table have no order"):
        DataSetSpec.model_validate(spec | {"time": SPEC["time"] | {"order": "file"}})
