"""Embedding through Spark: the same vectors as the engine's, nothing lost, and the job's tables and facts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder, resolve_definition
from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.backbone.spark_embed import EmbedSettings, embed
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records, StageRecord
from ledgerlm.runs.runner import Runner
from ledgerlm.text.tokenizer import train_tokenizer
from tests.small_lake import BEFORE

HEADER = "days|category|amount"
AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = (
    "client_id string, as_of timestamp, format string, text string, event_count_used int, event_count_cut int, "
    "token_estimate int, input_hash string, serializer string"
)
PIPELINE = """
pipeline: small
out: {out}
data: {out}/spec.yaml
stages:
  embed: {{backbone: {backbone}, partitions: 3, definition: {{last_k: 2, dtype: fp32, parts: [mean, surprise]}}}}
"""
SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
client: client
time: {column: time}
as_of: 2025-01-01
fields: [{name: category}]
"""


def text(client: int) -> str:
    lines = [f"+{place % 7}d|{'AB'[(place + client) % 2]}|{(place * client) % 50}" for place in range(1 + 3 * client)]
    return "\n".join([HEADER, *lines])


TEXTS = {f"c{client:02d}": text(client) for client in range(20)} | {"empty": "", "bare": HEADER}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer(TEXTS.values(), vocabulary_size=300)
    model = new_llama(LlamaShape(width=32, layers=2, ffn=64, init_std=0.3), tokenizer, context=64, seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def documents(spark: SparkSession) -> DataFrame:
    rows = [
        (client, AS_OF, "compact", body, body.count("\n"), 2, 9, f"hash of {client}", "compact 1")
        for client, body in TEXTS.items()
    ]
    return spark.createDataFrame(rows, SCHEMA)


def resolved(backbone: Path, **settings: object) -> EmbeddingDefinition:
    definition = EmbeddingDefinition.model_validate({"dtype": "fp32", "parts": ("mean", "surprise"), **settings})
    return resolve_definition(backbone, definition, text_format="compact", fields=tuple(HEADER.split("|")))


def test_workers_that_see_no_folder_of_the_driver_fetch_the_backbone_by_its_content(
    spark: SparkSession,
    documents: DataFrame,
    backbone: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not hasattr(spark, "sparkContext") or os.environ.get("LEDGERLM_TEST_CONNECT") == "1":
        pytest.skip("a Connect client cannot give its server's workers another environment")
    folder = place / "artefacts" / "backbones" / backbone_id(backbone)
    shutil.copytree(backbone, folder)
    monkeypatch.setitem(spark.sparkContext.environment, "LEDGERLM_CACHE", str(tmp_path / "executor"))
    given = {"folder": str(folder), "backbone_id": backbone_id(backbone), "definition": resolved(backbone)}
    there = embed(documents.repartition(2), **given)  # type: ignore[arg-type]
    shutil.move(tmp_path / "driver", tmp_path / "unplugged")
    assert there.where("reason IS NULL").count() == len(TEXTS) - 2
    (fetched,) = (tmp_path / "executor" / "content").glob(f"*/{backbone_id(backbone)}")
    assert backbone_id(fetched) == backbone_id(backbone)
    assert not (tmp_path / "driver").exists()


def test_spark_gives_the_engines_vectors_and_keeps_every_row(documents: DataFrame, backbone: Path) -> None:
    definition = resolved(backbone, max_tokens=40)
    rows = embed(
        documents.repartition(3, "client_id"),
        folder=str(backbone),
        backbone_id=backbone_id(backbone),
        definition=definition,
        settings=EmbedSettings(buffer_rows=4),
    ).collect()
    found = {row["client_id"]: row for row in rows}
    assert len(rows) == len(TEXTS)
    assert found.keys() == TEXTS.keys()
    direct = Embedder(backbone, definition).embed(list(TEXTS.values()))
    for place, (client, body) in enumerate(TEXTS.items()):
        row = found[client]
        assert row["input_hash"] == f"hash of {client}"
        assert row["event_count_used"] + row["event_count_cut"] == body.count("\n") + 2
        assert row["event_count_cut"] == 2 + direct.events_dropped[place]
        assert row["token_count"] == direct.token_count[place]
        assert (row["backbone_id"], row["definition_id"]) == (backbone_id(backbone), definition.definition_id)
        if client in ("empty", "bare"):
            assert (row["parts"], row["reason"]) == (None, "nothing_to_pool")
            continue
        assert row["reason"] is None
        for part in ("mean", "surprise"):
            np.testing.assert_allclose(row["parts"][part], direct.parts[part][place], rtol=1e-4, atol=1e-5)
    assert direct.events_dropped.max() > 0


def test_a_backbone_that_was_changed_is_refused(documents: DataFrame, backbone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    rows = embed(documents, folder=str(other), backbone_id=backbone_id(backbone), definition=resolved(backbone))
    with pytest.raises(PythonException, match="the files hash to"):
        rows.collect()


def test_workers_that_would_share_a_gpu_are_refused_before_anything_is_read(
    documents: DataFrame, backbone: Path
) -> None:
    given = {"folder": str(backbone), "backbone_id": backbone_id(backbone), "definition": resolved(backbone)}
    with pytest.raises(ConfigError, match=r"each would open its copy.*set spark.master to local\[1\]"):
        embed(documents, **given, settings=EmbedSettings(device="cuda"))  # type: ignore[arg-type]


def run_job(folder: Path, backbone: Path, *settings: str) -> Runner:
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "run.yaml").write_text(PIPELINE.format(out=folder, backbone=backbone))
    return Runner(load_pipeline(folder / "run.yaml", settings), Progress())


def test_only_histories_that_end_at_a_label_where_reading_is_dear(
    spark: SparkSession, documents: DataFrame, backbone: Path, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("documents", documents, by=BEFORE)
    with pytest.raises(DataError, match="no table labels"):
        run_job(tmp_path, backbone, "stages.embed.labelled=true").run()
    told = [("c05", AS_OF, "churn"), ("c05", AS_OF, "default"), ("c06", AS_OF - timedelta(days=1), "churn")]
    labels = spark.createDataFrame(told, "client_id string, as_of timestamp, task string")
    lake.write("labels", labels.selectExpr("*", "1D AS label"), by=BEFORE)
    record = run_job(tmp_path, backbone, "stages.embed.labelled=true").run().stages[0].record
    assert (record.rows_in, record.rows_out) == (1, 1)
    assert [row["client_id"] for row in lake.read("embeddings").collect()] == ["c05"]


def test_job_writes_vectors_quarantine_facts_and_component_names(
    spark: SparkSession, documents: DataFrame, backbone: Path, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("documents", documents, by=BEFORE)
    record = run_job(tmp_path, backbone).run().stages[0].record
    assert (record.rows_in, record.rows_out, record.quarantined) == (len(TEXTS), len(TEXTS) - 2, 2)
    facts = record.facts
    assert facts["backbone_id"] == backbone_id(backbone)
    assert facts["definition"]["layers"] == [1, 2]
    assert facts["definition"]["fields"] == ["days", "category", "amount"]
    assert facts["widths"] == {"mean": 32, "surprise": 12}
    assert facts["tokens"] > 0
    assert facts["tokens_per_second"] > 0
    names = json.loads(Path(facts["components"]).read_text())["components"]
    assert {part: len(each) for part, each in names.items()} == facts["widths"]
    assert names["surprise"][4] == "surprise:category:mean"
    vectors = lake.read("embeddings").collect()
    assert len({row["client_id"] for row in vectors}) == len(vectors) == len(TEXTS) - 2
    assert {json.loads(row["definition"])["context"] for row in vectors} == {64}
    assert {row["definition_id"] for row in vectors} == {facts["definition_id"]}
    aside = lake.read("quarantine").collect()
    assert {json.loads(row["payload"])["client_id"] for row in aside} == {"empty", "bare"}
    assert run_job(tmp_path, backbone).run().stages[0].skipped


def test_only_a_changed_document_is_embedded_again(
    spark: SparkSession, documents: DataFrame, backbone: Path, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("documents", documents, by=BEFORE)
    first = run_job(tmp_path, backbone).run().stages[0].record.facts
    assert (first["reused"], first["embedded"]) == (0, len(TEXTS) - 2)
    before = {row["client_id"]: row for row in lake.read("embeddings").collect()}

    # One text is another, one client is gone, and of one it is known that more events came before the same text.
    c03 = F.col("client_id") == "c03"
    c05 = F.col("client_id") == "c05"
    later = (
        documents.where("client_id <> 'c04'")
        .withColumn("text", F.when(c03, F.concat("text", F.lit("\n+1d|B|7"))).otherwise(F.col("text")))
        .withColumn("input_hash", F.when(c03, "another").otherwise(F.col("input_hash")))
        .withColumn("event_count_used", F.col("event_count_used") + c03.cast("int"))
        .withColumn("event_count_cut", F.col("event_count_cut") + c05.cast("int"))
    )
    lake.write("documents", later, by=replace(BEFORE, attempt="later"))
    record = run_job(tmp_path, backbone).run().stages[0].record
    assert (record.facts["reused"], record.facts["embedded"]) == (len(TEXTS) - 5, 2)
    assert (record.rows_in, record.rows_out, record.quarantined) == (len(TEXTS) - 1, len(TEXTS) - 3, 2)
    assert record.facts["widths"] == first["widths"]
    after = {row["client_id"]: row for row in lake.read("embeddings").collect()}
    assert set(before) - set(after) == {"c04"}
    assert after["c03"]["input_hash"] == "another"
    assert after["c03"]["parts"]["mean"] != before["c03"]["parts"]["mean"]
    assert after["c05"]["event_count_cut"] == before["c05"]["event_count_cut"] + 1
    for client in set(after) - {"c03", "c05"}:
        assert after[client].asDict() | {"run_id": ""} == before[client].asDict() | {"run_id": ""}
    assert {json.loads(row["payload"])["client_id"] for row in lake.read("quarantine").collect()} == {"empty", "bare"}
    # Done again by force, nothing is left to embed but what can have no vector.
    forced = run_job(tmp_path, backbone).run(fresh=True).stages[0].record
    assert (forced.facts["reused"], forced.facts["embedded"], forced.quarantined) == (len(TEXTS) - 3, 0, 2)
    assert forced.facts["widths"] == first["widths"]


REWRITES = (
    "client_id string, as_of timestamp, stage string, variant int, format string, engine string, prompt_id string, "
    "seed long, text string, input_hash string"
)


def rewrites(spark: SparkSession, *stages: str) -> DataFrame:
    """Two variants of five clients' documents by each stage."""
    rows = [
        (
            f"c{n:02d}",
            AS_OF,
            stage,
            variant,
            "json",
            "engine-1",
            "prompt-1",
            1,
            f'{{"{stage}": {n}}}',
            f"hash of c{n:02d}",
        )
        for stage in stages
        for n in range(1, 6)
        for variant in range(2)
    ]
    return spark.createDataFrame(rows, REWRITES)


def run_on_rewrites(folder: Path, backbone: Path, *stages: str, **settings: object) -> StageRecord:
    """Runs an embed stage on what enrich stages have written, which are recorded as finished."""
    facts = {"max_events": 3, "engine": "engine-1", "prompt": "prompt-1"}
    for stage in stages:
        Records(folder).save(
            StageRecord(name=stage, job="enrich", engine="ray", definition="", attempt=stage, done=True, facts=facts)
        )
    definition = {"last_k": 2, "dtype": "fp32"}
    embed_stage = {"source": "enriched", "variant": 1, "backbone": str(backbone), "partitions": 1}
    wanted: dict[str, dict[str, object]] = {stage: {"job": "enrich"} for stage in stages}
    wanted["embed"] = {**embed_stage, "definition": definition, **settings}
    (folder / "spec.yaml").write_text(SPEC)
    content = {"pipeline": "small", "out": str(folder), "data": str(folder / "spec.yaml"), "stages": wanted}
    (folder / "run.yaml").write_text(json.dumps(content))
    return Runner(load_pipeline(folder / "run.yaml"), Progress()).run(only="embed").stages[0].record


def test_rewrites_are_embedded_under_a_definition_of_their_own(
    spark: SparkSession, documents: DataFrame, backbone: Path, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("documents", documents, by=BEFORE)
    lake.write("enriched_documents", rewrites(spark, "enrich"), by=BEFORE)
    record = run_on_rewrites(tmp_path, backbone, "enrich")
    assert (record.rows_in, record.rows_out) == (5, 5)
    assert record.facts["definition"]["text_format"] == "enriched/engine-1/prompt-1/1"
    assert record.facts["definition"]["header"] and record.facts["definition"]["fields"] == ["text"]
    made = {row["client_id"]: row for row in lake.read("embeddings").collect()}
    assert set(made) == {f"c{client:02d}" for client in range(1, 6)}
    for client, row in made.items():
        events = TEXTS[client].count("\n")
        assert row["event_count_used"] == min(3, events)
        assert row["event_count_used"] + row["event_count_cut"] == events + 2
    # Another text of the same document is another text, though the document's hash is the same.
    changed = F.when(F.col("client_id") == "c02", F.lit("another rewrite")).otherwise(F.col("text"))
    again = rewrites(spark, "enrich").withColumn("text", changed)
    lake.write("enriched_documents", again, by=replace(BEFORE, attempt="later"))
    record = run_on_rewrites(tmp_path, backbone, "enrich")
    assert (record.facts["reused"], record.facts["embedded"]) == (4, 1)


def test_rewrites_of_two_stages_are_never_mixed(
    spark: SparkSession, documents: DataFrame, backbone: Path, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("documents", documents, by=BEFORE)
    lake.write("enriched_documents", rewrites(spark, "enrich_json", "enrich_yaml"), by=BEFORE)
    stages = ("enrich_json", "enrich_yaml")
    with pytest.raises(ConfigError, match="enrich_json, enrich_yaml wrote rewrites; choose one of them with enrich"):
        run_on_rewrites(tmp_path, backbone, *stages)
    one = run_on_rewrites(tmp_path, backbone, *stages, enrich="enrich_json")
    assert (one.rows_in, one.rows_out) == (5, 5)
    # The other stage wrote with the same engine and prompt: its vectors stand beside these.
    other = run_on_rewrites(tmp_path, backbone, *stages, enrich="enrich_yaml")
    assert (other.rows_out, other.facts["reused"]) == (5, 0)
    assert lake.read("embeddings").groupBy("definition_id").count().collect()[0]["count"] == 5
    assert lake.read("embeddings").count() == 10
