"""The enrich job as a stage: tables in, pool, tables out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.ray import RayEngine
from ledgerlm.enrich.engine import load_prompt
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Run, Runner
from tests.small_lake import BEFORE

TEXT = (
    "days|weekday|hour|department|amount|discount\n+0d|Sat|19h|FRZN ICE|3.9|r0.47\n+3d|Tue|17h|MEAT & FISH|{amount}|r0"
)


@pytest.fixture
def folder(spark: SparkSession, tmp_path: Path) -> Path:
    """A lake with documents of four training clients, one of them unreadable, and of two test clients."""
    lake = Lake(str(tmp_path / "lake"), spark)
    as_of = datetime(2018, 1, 1, tzinfo=UTC)
    texts = {f"c{n}": TEXT.format(amount=10 * n) for n in range(5)} | {"broken": "days|amount\n+0d|1|2"}
    rows = [
        (client, as_of, kind, text, f"hash-{client}") for client, text in texts.items() for kind in ("compact", "json")
    ]
    frame = spark.createDataFrame(
        rows, "client_id string, as_of timestamp, format string, text string, input_hash string"
    )
    known = {"event_count_used": 2, "event_count_cut": 0, "token_estimate": 20, "serializer": "compact/1"}
    documents = frame.select("*", *(F.lit(value).alias(name) for name, value in known.items()))
    write(lake, "documents", documents)
    splits = [(client, "test" if client in ("c3", "c4") else "train") for client in texts]
    write(lake, "clients", spark.createDataFrame(splits, "client_id string, split string"))
    return tmp_path


def write(lake: Lake, table: str, rows: DataFrame) -> None:
    lake.write(table, rows, by=BEFORE)


def runner(folder: Path, **stages: object) -> Runner:
    content = {"pipeline": "small", "out": str(folder), "data": "datasets/complete_journey.yaml", "stages": stages}
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(content))
    return Runner(load_pipeline(file), Progress())


def enrich(folder: Path, *, fresh: bool = False, **conf: object) -> Run:
    settings = {"variants": 2, "pool": {"workers": 1, "shard_rows": 2}, **conf}
    return runner(folder, enrich=settings).run(only="enrich", fresh=fresh)


def rows(spark: SparkSession, folder: Path, table: str) -> list[tuple[object, ...]]:
    frame = spark.read.format("delta").load(str(folder / "lake" / table)).drop("run_id", "quarantined_at")
    return sorted(tuple(row) for row in frame.collect())


def test_training_documents_are_enriched_and_none_is_lost(
    spark: SparkSession, ray_engine: RayEngine, folder: Path
) -> None:
    [stage] = enrich(folder).stages
    record, facts = stage.record, stage.record.facts
    assert (record.rows_in, record.rows_out, record.quarantined) == (8, 6, 2)
    first = rows(spark, folder, "enriched_documents")
    assert {(row[0], row[2], row[3]) for row in first} == {
        (f"c{n}", "enrich", variant) for n in range(3) for variant in range(2)
    }
    assert {row[9] for row in first} == {"hash-c0", "hash-c1", "hash-c2"}
    assert {row[1] for row in first} == {
        row.as_of for row in Lake(str(folder / "lake"), spark).read("documents").collect()
    }
    refused = rows(spark, folder, "quarantine")
    assert [row[:2] for row in refused] == [("enrich", "source_unreadable")] * 2
    assert all(json.loads(str(row[4]))["client_id"] == "broken" for row in refused)
    assert facts["kept_share"] == 0.75 and facts["refused"] == {"source_unreadable": 2}
    assert facts["example"]["source"].startswith("days|weekday") and len(facts["example"]["rewrites"]) == 2
    assert not (folder / "staging" / "enrich").exists()

    assert enrich(folder).stages[0].skipped
    assert not enrich(folder, fresh=True).stages[0].skipped
    assert rows(spark, folder, "enriched_documents") == first
    assert len(rows(spark, folder, "quarantine")) == 2


def test_a_stage_that_must_not_run_says_why(spark: SparkSession, ray_engine: RayEngine, folder: Path) -> None:
    with pytest.raises(DataError, match="no document of format 'lines'"):
        enrich(folder, source="lines")
    with pytest.raises(DataError, match=r"only 75\.0% of the rewrites passed"):
        enrich(folder, min_kept=0.9)
    assert len(rows(spark, folder, "quarantine")) == 2, "what was refused is there to be looked at"
    with pytest.raises(ConfigError, match="more than cost"):
        enrich(folder, cost={"output_million": 1e6, "at_most": 1})


def test_a_recipe_writes_documents_of_its_own_format_beside_the_others(
    spark: SparkSession, ray_engine: RayEngine, folder: Path
) -> None:
    before = rows(spark, folder, "documents")
    settings = {"recipe": "hkfr", "max_events": 1, "pool": {"workers": 1}}
    [stage] = runner(folder, summarize=settings).run().stages
    assert (stage.record.rows_in, stage.record.rows_out, stage.record.quarantined) == (6, 5, 1)
    made = spark.read.format("delta").load(str(folder / "lake" / "documents")).where("format = 'hkfr'").collect()
    assert {row["client_id"] for row in made} == {f"c{n}" for n in range(5)}
    assert {(row["event_count_used"], row["event_count_cut"]) for row in made} == {(1, 1)}
    assert all(row["text"].startswith("Profile from 1 events. By department: MEAT & FISH") for row in made)
    assert {row["serializer"] for row in made} == {"hkfr/1/template-1-compact"}
    assert len({row["input_hash"] for row in made}) == 5
    assert [row for row in rows(spark, folder, "documents") if row[2] != "hkfr"] == before
    [table] = stage.record.facts["report"][0]["blocks"]
    assert table["rows"] == [["template-1-compact", "template-1-compact", "hkfr", "5", "1", "83.3%"]]


def test_tokens_time_and_cost_are_known_before_anything_starts(spark: SparkSession, folder: Path) -> None:
    options = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    cost = {
        "characters_per_token": 1,
        "growth": 2,
        "tokens_per_second": 10,
        "input_million": 1e6,
        "output_million": 1e6,
    }
    priced = runner(folder, enrich={"engine": "openai", "options": options, "cost": cost, "pool": {"workers": 1}})
    [line] = priced.expectation(priced.pipeline.plans[0])
    told = sum(len(TEXT.format(amount=10 * n)) for n in range(3)) + len("days|amount\n+0d|1|2")
    prompt = load_prompt("prompts/fixed.yaml").characters
    read, written = told + 4 * prompt, 2 * told
    assert line == (
        f"openai: 4 texts, {read:,} tokens in, {written:,} out, about {written / 10:.0f} s, "
        f"cost {read + written:,.2f}, {(read + written) / 4:.3g} a client"
    )
    assert not (folder / "runs").exists() and not (folder / "lake" / "enriched_documents").exists()
    (folder / "empty").mkdir()
    early = runner(folder / "empty", enrich={})
    assert "once the stage that writes documents has run" in early.expectation(early.pipeline.plans[0])[0]
