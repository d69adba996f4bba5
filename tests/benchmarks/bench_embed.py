"""Embedding: the engine against a padded Hugging Face loop, Spark against a bare loop, memory at k = 8 against k = 1.

Each figure is the ratio of two ways in this run: the median over turns in which the two take their turn side by side.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoModelForCausalLM

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder, resolve_definition
from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.backbone.spark_embed import EmbedSettings, embed
from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer

SHAPE = LlamaShape(width=128, layers=8, heads=4, ffn=384)
CONTEXT = 512
HEADER = "days|weekday|hour|category|store|amount"
TURNS = 3


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures; returns rows of what, against, ratio, target, better and detail."""
    texts = histories(200, seed=1)
    folder = make_backbone(workdir / "backbone", texts)
    return [
        *engine_against_padded_loop(folder, texts),
        spark_against_bare_loop(spark, folder, workdir, texts),
        memory_flat_in_k(folder, texts),
    ]


def histories(count: int, *, seed: int) -> list[str]:
    """Compact documents of a long-tailed length mix: median 12 events, a tenth beyond 50, newest 64 at most."""
    draw = np.random.default_rng(seed)
    sizes = np.clip(np.exp(draw.normal(np.log(12), 1.1, count)).astype(int), 1, 64)
    return [_history(draw, int(size)) for size in sizes]


def _history(draw: np.random.Generator, events: int) -> str:
    columns = (
        [f"+{days}d" for days in draw.geometric(0.2, events) - 1],
        draw.choice(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], events),
        [f"{hour}h" for hour in draw.integers(6, 23, events)],
        [f"CATEGORY {kind}" for kind in draw.zipf(1.4, events) % 300],
        [f"s{store}" for store in draw.zipf(1.6, events) % 500],
        draw.choice(["1", "1.2", "1.5", "1.8", "2.2", "2.7", "3.3", "3.9", "4.7", "5.6", "6.8", "8.2"], events),
    )
    return "\n".join([HEADER, *("|".join(map(str, values)) for values in zip(*columns, strict=True))])


def make_backbone(folder: Path, texts: Sequence[str]) -> Path:
    """A Llama with random weights and a tokenizer trained on the texts: speed does not depend on what it learnt."""
    tokenizer = train_tokenizer(texts, vocabulary_size=4096)
    model = new_llama(SHAPE, tokenizer, context=CONTEXT, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def engine_against_padded_loop(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Real tokens a second of both, on one thread: the mean alone, then with std and surprise beside it."""
    torch.set_num_threads(1)
    settings = (("auto", ("mean",)), ("auto", ("mean", "std", "surprise")), ("fp32", ("mean",)))
    engines = [Embedder(folder, _definition(folder, dtype=kind, parts=parts), threads=1) for kind, parts in settings]
    loop, *times = turns(_padded_loop(folder, texts), *(partial(engine.embed, texts) for engine in engines))
    tokens = _tokens(folder, texts)
    return [
        {
            "what": f"embedding engine, real tokens/s ({'+'.join(engine.definition.parts)}, {engine.definition.dtype})",
            "against": "padded Hugging Face loop with output_hidden_states, batches in arrival order",
            "ratio": loop / seconds,
            "target": 2.5,
            "better": "higher",
            "detail": f"{tokens / seconds:,.0f} against {tokens / loop:,.0f} tokens/s",
        }
        for engine, seconds in zip(engines, times, strict=True)
    ]


def _padded_loop(folder: Path, texts: list[str], batch: int = 32) -> Callable[[], object]:
    """The common way: batches as they arrive, padded, all hidden states of all layers, logits included."""
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def loop() -> list[torch.Tensor]:
        vectors = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True)
            inputs.pop("token_type_ids", None)
            states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states[-8:]).mean(0)
            mask = inputs["attention_mask"][:, :, None]
            vectors.append((states * mask).sum(1) / mask.sum(1))
        return vectors

    return loop


def spark_against_bare_loop(spark: SparkSession, folder: Path, workdir: Path, texts: list[str]) -> dict[str, Any]:
    """Both with as many threads as Spark has cores; Spark's workers are warm, as in a long run."""
    cores = spark.sparkContext.defaultParallelism
    many = texts * (8 * cores)
    table = str(workdir / "documents")
    frame = spark.createDataFrame(pa.table({"client_id": [str(place) for place in range(len(many))], "text": many}))
    frame = frame.select(
        "client_id",
        "text",
        F.lit("2025-01-01").cast("timestamp").alias("as_of"),
        F.lit(1).alias("event_count_used"),
        F.lit(0).alias("event_count_cut"),
        F.lit("").alias("input_hash"),
    )
    frame.repartition(4 * cores).write.mode("overwrite").parquet(table)
    definition = _definition(folder, dtype="auto", parts=("mean", "std", "surprise"))
    out = embed(
        spark.read.parquet(table),
        folder=str(folder),
        backbone_id=backbone_id(folder),
        definition=definition,
        settings=EmbedSettings(threads=1),
    )
    bare = Embedder(folder, definition, threads=cores)
    batches = pa.table({"text": many}).to_batches(max_chunksize=1024)

    def through_spark() -> None:
        out.write.format("noop").mode("overwrite").save()

    def bare_loop() -> None:
        for _ in bare.embed_batches(batches):
            pass

    spark_seconds, bare_seconds = turns(through_spark, bare_loop)
    total = _tokens(folder, many)
    return {
        "what": "embedding through Spark, tokens/s",
        "against": f"the same engine in a bare loop with {cores} threads",
        "ratio": bare_seconds / spark_seconds,
        "target": 0.85,
        "better": "higher",
        "detail": f"{total / spark_seconds:,.0f} against {total / bare_seconds:,.0f} tokens/s",
    }


def memory_flat_in_k(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Peak memory of a fresh process that embeds with k = 8 in packs of 16,384 tokens, against one with k = 1."""
    (peak_8, growth_8), (peak_1, growth_1) = (_peak(folder, texts, k) for k in (8, 1))
    return {
        "what": "peak memory of embedding, k = 8",
        "against": "k = 1",
        "ratio": peak_8 / peak_1,
        "target": 1.05,
        "better": "lower",
        "detail": f"{peak_8} against {peak_1} MiB; of these {growth_8} and {growth_1} above the opened backbone",
    }


def _peak(folder: Path, texts: list[str], k: int) -> tuple[int, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_embed_and_measure, (folder, texts, k))


def _embed_and_measure(folder: Path, texts: list[str], k: int) -> tuple[int, int]:
    """Peak memory of this process, and how much embedding added to it, in MiB."""
    definition = _definition(folder, dtype="fp32", parts=("mean",), last_k=k)
    embedder = Embedder(folder, definition, threads=1, pack_tokens=16_384)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embedder.embed(texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024, (peak - before) // 1024


def _definition(folder: Path, **settings: object) -> EmbeddingDefinition:
    definition = EmbeddingDefinition.model_validate(settings)
    return resolve_definition(folder, definition, text_format="compact", fields=tuple(HEADER.split("|")))


def _tokens(folder: Path, texts: Sequence[str]) -> int:
    tokenizer = load_tokenizer(folder)
    return sum(len(code.ids) for code in tokenizer.backend_tokenizer.encode_batch(list(texts)))


def turns(*ways: Callable[[], object]) -> list[float]:
    """Median seconds of each way; they take turns, after a warm-up."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(TURNS + 1):
        for way, seconds in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            if turn:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]
