"""The ingest job on the shipped data sets, through the runner and into Delta tables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from ledgerlm.engines.session import change, put_back
from ledgerlm.errors import DataError
from ledgerlm.events.ingest import ingest_events
from ledgerlm.events.labels import client_attributes, first_events, labels_of
from ledgerlm.events.spec import load_spec
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records
from ledgerlm.runs.runner import Runner

BERKA = Path(os.environ.get("LEDGERLM_BERKA") or Path(__file__).parents[3] / "shared" / "data" / "berka")

PIPELINE = """
pipeline: small
out: {out}
data: {data}
stages:
  ingest: {{max_quarantined_share: {share}}}
"""
SPEC = """
name: small
source: {path: data, files: [{glob: events.csv}]}
client: client
time: {column: time, far_future: 2030-01-01}
amount: {column: amount}
event_id: {columns: [id]}
as_of: 2025-01-01
fields: [{name: mcc, dictionary: {5411: Grocery}}]
labels:
  - {name: churn, kind: binary, file: {glob: labels.csv}, id: client, column: flag}
split: {rule: shuffle, share: 0.5}
"""
EVENTS = "id,client,time,amount,mcc\n1,a,2024-01-01,5,5411\n1,a,2024-01-01,5,5411\n2,b,2024-01-02,6,7\n3,b,never,6,7\n"


def small_pipeline(folder: Path, share: float) -> Runner:
    if not (folder / "data").exists():  # written again, the files would be new ones to the runner
        (folder / "data").mkdir()
        (folder / "data" / "events.csv").write_text(EVENTS)
        (folder / "data" / "labels.csv").write_text("client,flag\na,0\nb,1\nc,1\n")
    (folder / "small.yaml").write_text(SPEC)
    (folder / "run.yaml").write_text(PIPELINE.format(out=folder / "out", data="small.yaml", share=share))
    return Runner(load_pipeline(folder / "run.yaml"), Progress())


def test_tables_and_facts_and_a_rerun_after_a_kill_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    record = small_pipeline(tmp_path, 0.5).run().stages[0].record
    assert (record.rows_in, record.rows_out, record.quarantined, record.duplicates) == (4, 2, 1, 1)
    assert record.facts["quarantined_by_reason"] == {"bad_time": 1}
    assert record.facts["label_rows"] == {"in": 3, "out": 2, "quarantined": 1, "duplicates": 0}
    assert record.facts["labels"] == {"churn": {"0": 1, "1": 1}}
    assert record.facts["unknown_codes"] == {"mcc": {"7": 1}}

    def table(name: str) -> list[tuple[object, ...]]:
        rows = spark.read.format("delta").load(f"{tmp_path}/out/lake/{name}").drop("quarantined_at").collect()
        return sorted(tuple(row) for row in rows)

    before = {name: table(name) for name in ("events", "clients", "labels", "dictionaries", "quarantine")}
    assert [row[:2] for row in before["clients"]] == [("a", "test"), ("b", "train")]
    assert [row[1] for row in before["quarantine"]] == ["bad_time", "label_without_history"]
    # As if killed after its last commit: every write is there, none may be repeated, and the counts are made again.
    Records(tmp_path / "out").save(replace(record, done=False))
    again = small_pipeline(tmp_path, 0.5).run().stages[0].record
    assert again.facts == record.facts
    assert (again.rows_in, again.rows_out, again.tables) == (record.rows_in, record.rows_out, record.tables)
    assert before == {name: table(name) for name in before}


def test_a_spec_that_does_not_fit_leaves_the_tables_as_they_were(spark: SparkSession, tmp_path: Path) -> None:
    record = small_pipeline(tmp_path, 0.5).run().stages[0].record
    assert list(record.tables) == ["quarantine", "dictionaries", "clients", "labels", "events"], "events come last"
    with pytest.raises(DataError, match=r"1 of 4 rows are bad \(bad_time: 1\)"):
        small_pipeline(tmp_path, 0.1).run()
    lake = Lake(str(tmp_path / "out" / "lake"), spark)
    for table, written in record.tables.items():
        assert lake.version(table) == written.version + (table == "quarantine")
    assert lake.read("quarantine").where("reason = 'bad_time'").count() == 1


def test_files_of_bad_rows_alone_are_told_as_such(spark: SparkSession, tmp_path: Path) -> None:
    small_pipeline(tmp_path, 0.5)
    (tmp_path / "data" / "events.csv").write_text(EVENTS.replace("2024-01", "01/2024"))
    with pytest.raises(DataError, match=r"4 of 4 rows are bad \(bad_time: 4\), so that there is no event"):
        small_pipeline(tmp_path, 0.5).run()
    (tmp_path / "data" / "events.csv").write_text("id,client,time,amount,mcc\n1,a,2024-01-01,5,1\n1,a,2024-01-01,6,1\n")
    with pytest.raises(DataError, match=r"2 of 2 rows are bad \(conflicting_event: 2\)"):
        small_pipeline(tmp_path, 0.5).run()
    assert Lake(str(tmp_path / "out" / "lake"), spark).read("quarantine").where("reason LIKE '%event'").count() == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("x,0\ny,1\n", "task churn has no label: of its labels 2 belong to clients without an event before"),
        pytest.param(
            "a,0\na,1\n",
            "task churn has no label: of its labels 2 bad or contradict each other",
            marks=pytest.mark.slow,
        ),
        ("a,0\nb,7\n", "1 of 2 label rows of task churn are bad, more than max_quarantined_share 0.4"),
    ],
)
def test_labels_that_are_set_aside_stop_the_run_by_task(
    spark: SparkSession, tmp_path: Path, wrong: str, says: str
) -> None:
    small_pipeline(tmp_path, 0.4)
    (tmp_path / "data" / "labels.csv").write_text("client,flag\n" + wrong)
    with pytest.raises(DataError, match=says):
        small_pipeline(tmp_path, 0.4).run()
    lake = Lake(str(tmp_path / "out" / "lake"), spark)
    assert not lake.exists("labels")
    if "7" not in wrong:
        small_pipeline(tmp_path, 1).run()
        assert lake.read("labels").isEmpty(), "a share of 1 never stops"
    assert lake.read("quarantine").where("reason LIKE '%label%'").count() == wrong.count("\n") - ("b,7" in wrong)


def test_a_join_that_finds_nothing_stops_the_run(spark: SparkSession, tmp_path: Path) -> None:
    small_pipeline(tmp_path, 0.5)
    (tmp_path / "data" / "codes.csv").write_text("mcc,group\n05411,shop\n")
    join = "joins:\n  - {file: {glob: codes.csv}, key: mcc, columns: [group]}\nclient: client"
    (tmp_path / "small.yaml").write_text(
        SPEC.replace("client: client", join, 1).replace("{name: mcc,", "{name: group}, {name: mcc,")
    )
    runner = Runner(load_pipeline(tmp_path / "run.yaml"), Progress())
    with pytest.raises(DataError, match="4 of 4 rows do not find their 'mcc' in its join file"):
        runner.run()
    settings = ["stages.ingest.max_unmatched_share=1"]
    runner = Runner(load_pipeline(tmp_path / "run.yaml", settings), Progress())
    assert runner.run().stages[0].record.facts["unmatched"] == {"mcc": 4}


def test_a_data_set_without_labels_leaves_labels_to_others_and_without_dictionaries_none_of_before(
    spark: SparkSession, tmp_path: Path
) -> None:
    small_pipeline(tmp_path, 0.5)
    told = re.sub("labels:\n.*\n", "", SPEC)
    plain = told.replace(", dictionary: {5411: Grocery}", "")
    lake = Lake(str(tmp_path / "out" / "lake"), spark)
    for spec, descriptions in ((plain, None), (told, ["Grocery"]), (plain, [])):
        (tmp_path / "small.yaml").write_text(spec)
        record = Runner(load_pipeline(tmp_path / "run.yaml"), Progress()).run().stages[0].record
        assert (record.rows_out, record.facts["labels"]) == (2, {})
        assert record.facts["label_rows"] == {"in": 0, "out": 0, "quarantined": 0, "duplicates": 0}
        assert lake.exists("dictionaries") == (descriptions is not None)
        if descriptions is not None:
            assert [row["description"] for row in lake.read("dictionaries").collect()] == descriptions
    assert not lake.exists("labels")
    assert {row["split"] for row in lake.read("clients").collect()} == {"train"}


@pytest.fixture
def compiled(spark: SparkSession) -> Iterator[SparkSession]:
    """The session, with expressions compiled as a user's are: tens of thousands of rows pay for that."""
    as_users = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}
    before = change(spark, as_users)
    yield spark
    put_back(spark, before)


def test_complete_journey(compiled: SparkSession) -> None:
    spark = compiled
    spec = load_spec("datasets/complete_journey.yaml")
    result = ingest_events(spark, spec)
    events = result.events.cache()
    assert events.count() == 75_000
    counts = result.counts()
    counts.check(spec.name)
    assert (counts.rows_in, counts.quarantined, counts.duplicates) == (75_000, 0, 0)
    assert counts.unmatched == {"product_id": 222}
    firsts = first_events(events)
    assert firsts.count() == 2_377
    labels = {
        (row["task"], int(row["label"])): row["count"]
        for row in labels_of(spark, spec, firsts).labels.groupBy("task", "label").count().collect()
    }
    assert labels == {
        ("income", 0): 384,
        ("income", 1): 417,
        ("age", 0): 188,
        ("age", 1): 194,
        ("age", 2): 288,
        ("age", 3): 131,
    }
    events.unpersist()


@pytest.mark.skipif(
    not (BERKA / "trans.asc").exists(),
    reason="the Berka files state no licence, so they are not shipped: set LEDGERLM_BERKA to a folder that has "
    "them; test_datasets.py reads small files of their form",
)
def test_berka(compiled: SparkSession) -> None:
    spark = compiled
    spec = load_spec("datasets/berka.yaml", [f"source.path={BERKA}"])
    result = ingest_events(spark, spec)
    events = result.events.cache()
    assert events.count() == 49_102 + 30_200
    counts = result.counts()
    counts.check(spec.name)
    assert counts.reasons == {"unclosed_quote": 1}
    kinds = {row["type"]: row["sign"] for row in events.selectExpr("type", "sign(amount) sign").distinct().collect()}
    assert kinds == {"credit": 1, "withdrawal": -1, "withdrawal in cash": -1}
    firsts = first_events(events)
    labelled = labels_of(spark, spec, firsts)
    joined = labelled.labels.join(client_attributes(spark, spec, firsts), "client_id")
    found = {
        (row["sample"], row["label_text"]): row["count"]
        for row in joined.groupBy("sample", "label_text").count().collect()
    }
    assert found == {("course", "good"): 324, ("course", "bad"): 30, ("trans", "good"): 135, ("trans", "bad"): 25}
    of_labels = labelled.counts()
    assert (of_labels.rows, of_labels.out, of_labels.quarantined, of_labels.duplicates) == (682, 514, 168, 0)
    events.unpersist()
