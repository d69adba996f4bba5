"""Backtests over windows: what twelve monthly times of the same clients cost the model against one of them."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import resolve_definition
from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.backbone.states import fold, state_rows
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.serialize import DocumentConf
from ledgerlm.text.tokenizer import train_tokenizer
from ledgerlm.text.windows import WindowConf, before_asked, windows

CLIENTS, EVENTS = 300, 300  # events of each client, in a year
SPEC = DataSetSpec.model_validate(
    {"name": "bank", "amount": {"column": "amount"}, "fields": [{"name": "category"}, {"name": "store"}]}
)
WINDOWING = WindowConf(period="month", events=32)


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures; returns rows of what, against, ratio, target, better and detail."""
    times = [dt.datetime(2024, month, 15, 12) for month in range(1, 13)]
    clients = spark.range(CLIENTS).selectExpr("concat('c', id) AS client_id")
    asked = clients.crossJoin(spark.createDataFrame([(one,) for one in times], "as_of timestamp"))
    newest = clients.withColumn("as_of", F.lit(times[-1]))
    cut = windows(events(spark), SPEC, DocumentConf(), WINDOWING, cuts=asked)
    path = str(workdir / "windows")
    cut.write.mode("overwrite").parquet(path)
    cut = spark.read.parquet(path)
    folder, definition = backbone(cut, workdir / "backbone")
    # The first turn starts Python workers and opens the backbone in them; its time does not count.
    _, (many, long), (one, short) = (
        _embedded(cut, which, folder, definition, workdir) for which in (newest, asked, newest)
    )
    return [
        {
            "what": f"twelve monthly backtests of {CLIENTS} clients with {EVENTS} events in the year, {what}",
            "against": "the newest of them alone",
            "ratio": ratio,
            "target": 1.5,
            "better": "lower",
            "detail": detail,
        }
        for what, ratio, detail in (
            ("model tokens", many / one, f"{many:,} against {one:,} tokens"),
            ("states and fold, seconds", long / short, f"{long:.1f} against {short:.1f} s"),
        )
    ]


def events(spark: SparkSession, until: str = "2025-01-01", clients: int = CLIENTS) -> DataFrame:
    """As many events of each client, at any hour of the year that ends so."""
    return spark.range(clients * EVENTS).selectExpr(
        f"concat('c', id % {clients}) AS client_id",
        "concat('e', id) AS event_id",
        f"TIMESTAMP '{until}' - make_interval(0, 0, 0, 0, 0, 0, 1 + pmod(xxhash64(id, 1), 366 * 86400)) AS event_time",
        "0L AS event_seq",
        "CAST(pmod(xxhash64(id, 2), 500) AS decimal(18,4)) AS amount",
        "concat('CATEGORY ', pmod(xxhash64(id, 3), 40)) AS category",
        "concat('s', pmod(xxhash64(id, 4), 200)) AS store",
    )


def backbone(cut: DataFrame, folder: Path) -> tuple[Path, EmbeddingDefinition]:
    """A Llama with random weights: what it costs does not depend on what it learnt."""
    sample = cut.where("cut_at IS NULL").orderBy("text_hash").limit(300).select("text").collect()
    tokenizer = train_tokenizer([row["text"] for row in sample], vocabulary_size=2048)
    model = new_llama(LlamaShape(width=64, layers=4, heads=4, ffn=192), tokenizer, context=512, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = tuple(sample[0]["text"].split("\n", 1)[0].split("|"))
    name = f"compact@{WINDOWING.windowing}"
    return folder, resolve_definition(folder, EmbeddingDefinition(), text_format=name, fields=fields)


def _embedded(
    cut: DataFrame, asked: DataFrame, folder: Path, definition: EmbeddingDefinition, workdir: Path
) -> tuple[int, float]:
    """Tokens that the model read, and seconds from windows to vectors."""
    began, path = time.perf_counter(), str(workdir / "states")
    texts = before_asked(cut, asked).dropDuplicates(["client_id", "text_hash"]).repartition(4, "text_hash")
    identity = backbone_id(folder)
    made = state_rows(texts, folder=str(folder), backbone_id=identity, definition=definition)
    made.write.mode("overwrite").parquet(path)
    states = cut.sparkSession.read.parquet(path)
    fold(cut, states, asked, definition=definition, backbone_id=identity).write.mode("overwrite").format("noop").save()
    seconds = time.perf_counter() - began
    (tokens,) = states.agg(F.sum("token_count").alias("tokens")).collect()
    return tokens["tokens"], seconds
