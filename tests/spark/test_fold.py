"""States and their fold through Spark: each text once, the engine's vectors, many times at once, the same bytes."""

from __future__ import annotations

import datetime as dt
import hashlib
from datetime import UTC
from pathlib import Path

import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder, resolve_definition
from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.backbone.states import NO_STATE, fold, state_rows
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.lake import conform
from ledgerlm.lake.schemas import EMBEDDINGS, STATES
from ledgerlm.text.serialize import DocumentConf, serialize
from ledgerlm.text.tokenizer import train_tokenizer
from ledgerlm.text.windows import WindowConf, before_asked, windows

SPEC = DataSetSpec.model_validate({"name": "small", "fields": [{"name": "what"}]})
CONF = DocumentConf(fields=("days", "what"))
PARTS = ("mean", "std", "recent", "last_event", "max", "surprise")


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    """Five clients, of 4 to 400 events in two years."""
    return (
        spark.range(600)
        .selectExpr(
            "concat('c', floor(log2(1 + pmod(xxhash64(id), 31)))) AS client_id",
            "concat('e', id) AS event_id",
            "timestamp_seconds(1672531200 + pmod(xxhash64(id, 3), 730 * 24) * 3600) AS event_time",
            "id AS event_seq",
            "concat('w', pmod(xxhash64(id, 5), 7)) AS what",
        )
        .cache()
    )


@pytest.fixture(scope="module")
def asked(spark: SparkSession) -> DataFrame:
    times = [dt.datetime(2023 + month // 12, month % 12 + 1, 10, 12, tzinfo=UTC) for month in range(2, 24, 2)]
    rows = [(f"c{client}", time) for client in range(5) for time in times]
    return spark.createDataFrame([*rows, ("c0", times[0]), ("nobody", times[0])], "client_id string, as_of timestamp")


@pytest.fixture(scope="module")
def cut(events: DataFrame, asked: DataFrame) -> DataFrame:
    return windows(events, SPEC, CONF, WindowConf(period="quarter", events=8), cuts=asked).cache()


@pytest.fixture(scope="module")
def backbone(cut: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer([row.text for row in cut.select("text").collect()], vocabulary_size=300)
    model = new_llama(LlamaShape(width=32, layers=2, ffn=64, init_std=0.3), tokenizer, context=64, seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def definition(backbone: Path) -> EmbeddingDefinition:
    wanted = EmbeddingDefinition(dtype="fp32", parts=PARTS)
    return resolve_definition(backbone, wanted, text_format="compact@quarter:8", fields=("days", "what"))


@pytest.fixture(scope="module")
def states(spark: SparkSession, cut: DataFrame, backbone: Path, definition: EmbeddingDefinition) -> DataFrame:
    texts = cut.dropDuplicates(["client_id", "text_hash"])
    made = state_rows(texts, folder=str(backbone), backbone_id=backbone_id(backbone), definition=definition)
    # A model reads again what is evaluated again, and then rounds in another way: kept once and for all.
    return spark.createDataFrame(made.collect(), made.schema).cache()


def test_states_are_those_of_the_engine_in_the_columns_of_their_table(
    cut: DataFrame, states: DataFrame, backbone: Path, definition: EmbeddingDefinition
) -> None:
    frame = states.drop("reason").withColumn("run_id", F.lit("r"))
    assert conform(STATES, frame).columns[:-1] == frame.columns[:-1]
    rows = {(row.client_id, row.text_hash): row for row in states.collect()}
    texts = {(row.client_id, row.text_hash): row for row in cut.collect()}
    assert rows.keys() == texts.keys()
    keys = sorted(texts)
    direct = Embedder(backbone, definition).states([texts[key].text for key in keys])
    for place, key in enumerate(keys):
        row = rows[key]
        assert row.reason is None and row.bucket == texts[key].bucket
        assert row.event_count == texts[key].event_count == direct.event_count[place]
        assert row.token_count == direct.token_count[place]
        np.testing.assert_allclose(row.sums, direct.sums[place], rtol=1e-4, atol=1e-4)


def folded(windows: DataFrame, states: DataFrame, asked: DataFrame, definition: EmbeddingDefinition) -> list[Row]:
    rows = fold(windows, states, asked, definition=definition, backbone_id="b").collect()
    return sorted(rows, key=lambda row: (row.client_id, row.as_of))


def test_all_times_are_answered_from_the_events_before_them(
    events: DataFrame, asked: DataFrame, cut: DataFrame, states: DataFrame, definition: EmbeddingDefinition
) -> None:
    found = fold(cut, states, asked, definition=definition, backbone_id="b")
    frame = found.drop("reason").withColumn("run_id", F.lit("r"))
    assert conform(EMBEDDINGS, frame).columns[:-1] == frame.columns[:-1]
    rows = folded(cut, states, asked, definition)
    documents = serialize(events, asked, dt.datetime(2025, 1, 1), SPEC, CONF).collect()
    expected = {(row.client_id, row.as_of): row.event_count_used for row in documents}
    expected = {key: count for key, count in expected.items() if key[1] < dt.datetime(2025, 1, 1)}
    assert {(row.client_id, row.as_of): row.event_count_used for row in rows} == expected
    assert len(rows) == len(expected) > 40
    assert all(row.reason is None and set(row.parts) == set(PARTS) for row in rows)
    assert any(row.event_count_used > 100 for row in rows)
    hashes = [row.text_hash for row in before(cut, rows[-1])]
    assert rows[-1].input_hash == hashlib.sha256("".join(f"{one}\n" for one in hashes).encode()).hexdigest()


def before(cut: DataFrame, asked: Row) -> list[Row]:
    """The windows that a time's embedding is made of, in order."""
    own = cut.where(F.col("client_id") == asked.client_id)
    as_of = F.lit(asked.as_of)
    told = own.where((F.col("cut_at").isNull() & (F.col("last_event_time") < as_of)) | (F.col("cut_at") == as_of))
    return told.orderBy("period", "place").collect()


def test_twelve_times_share_their_states(cut: DataFrame, asked: DataFrame) -> None:
    """Eleven backtests a client cost few tokens more than one: what grows is the cut windows."""
    needed = before_asked(cut, asked)
    newest = asked.groupBy("client_id").agg(F.max("as_of").alias("as_of"))
    one = before_asked(cut, newest)
    assert one.where("cut_at IS NOT NULL").count() <= 5
    assert needed.where("cut_at IS NULL").count() == one.where("cut_at IS NULL").count()
    events = {name: frame.agg(F.sum("event_count")).collect()[0][0] for name, frame in (("all", needed), ("one", one))}
    assert events["one"] < events["all"] < 1.5 * events["one"]


def test_the_same_states_give_the_same_bytes_whatever_the_partitions(
    spark: SparkSession, cut: DataFrame, asked: DataFrame, states: DataFrame, definition: EmbeddingDefinition
) -> None:
    first = folded(cut, states, asked, definition)
    settings = {"spark.sql.shuffle.partitions": "7", "spark.sql.execution.arrow.maxRecordsPerBatch": "5"}
    before = {name: kept for name in settings if (kept := spark.conf.get(name)) is not None}
    adaptive = "spark.sql.adaptive.enabled"
    try:
        spark.conf.set(adaptive, "false")
        for name, value in settings.items():
            spark.conf.set(name, value)
        mixed = folded(cut.repartition(5, "text"), states.orderBy("text_hash"), asked.repartition(3), definition)
    finally:
        spark.conf.set(adaptive, "true")
        for name, kept in before.items():
            spark.conf.set(name, kept)
    assert mixed == first


def test_what_lacks_a_state_or_a_cut_is_told(
    cut: DataFrame, asked: DataFrame, states: DataFrame, definition: EmbeddingDefinition
) -> None:
    (lost,) = cut.where("client_id = 'c4' AND cut_at IS NULL").orderBy("period", "place").limit(1).collect()
    part = states.where(F.col("text_hash") != lost.text_hash)
    rows = folded(cut, part, asked, definition)
    assert {row.reason for row in rows if row.client_id == "c4"} == {NO_STATE}
    assert {row.reason for row in rows if row.client_id != "c4"} == {None}
    assert all(row.parts is None for row in rows if row.client_id == "c4")
    newest = asked.groupBy("client_id").agg(F.max("as_of").alias("as_of"))
    for times in (asked, newest):
        with pytest.raises(PythonException, match="is not cut there"):
            folded(cut.where("cut_at IS NULL"), states, times, definition)
