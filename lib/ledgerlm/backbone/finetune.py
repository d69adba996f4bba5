"""A finetune from the driver's side: windows out of documents by Spark, ranks by Ray Train, progress and result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.backbone.settings import BackboneRankConf
from ledgerlm.files import bring, url_of
from ledgerlm.training.launch import train
from ledgerlm.training.settings import WorkersConf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WINDOWS = T.StructType(
    [
        T.StructField("kind", T.StringType(), False),
        T.StructField("split", T.StringType(), False),
        T.StructField("client", T.LongType(), False),
        T.StructField("input_ids", T.ArrayType(T.IntegerType(), False), False),
    ]
)
_ARROW = pa.schema(
    [("kind", pa.string()), ("split", pa.string()), ("client", pa.int64()), ("input_ids", pa.list_(pa.int32()))]
)
ENRICHED = "enriched"
WINDOWED = "windows"
"""Among the formats of a finetune: rewrites of documents, and the windows of a serialize stage."""
_TOKENISED_AT_ONCE = 64  # documents


def training_texts(
    clients: DataFrame,
    documents: DataFrame | None,
    rewrites: DataFrame | None,
    windows: DataFrame | None = None,
    *,
    formats: Sequence[str],
    variants: int | None = None,
    enriched_formats: Sequence[str] = (),
) -> DataFrame:
    """The texts of training clients that a backbone learns from.

    Args:
        clients: the `clients` table.
        documents: the `documents` table; None when none are wanted.
        rewrites: the `enriched_documents` table; None when none are wanted.
        windows: rows of the `windows` table; None when none are wanted.
        formats: document formats; `enriched` and `windows` among them are no formats of documents.
        variants: rewrites of a document, the first ones; None for all.
        enriched_formats: formats of the rewrites; none for all.

    Returns:
        client_id, kind (format, `enriched` or `windows`), text.
    """
    train = clients.where("split = 'train'").select("client_id")
    found = []
    if documents is not None:
        chosen = documents.where(F.col("format").isin([name for name in formats if name not in (ENRICHED, WINDOWED)]))
        found.append(chosen.select("client_id", F.col("format").alias("kind"), "text"))
    if windows is not None:
        found.append(windows.select("client_id", F.lit(WINDOWED).alias("kind"), "text"))
    if rewrites is not None:
        some = rewrites if variants is None else rewrites.where(F.col("variant") < variants)
        some = some.where(F.col("format").isin(list(enriched_formats))) if enriched_formats else some
        found.append(some.select("client_id", F.lit(ENRICHED).alias("kind"), "text"))
    texts = reduce(lambda left, right: left.unionByName(right), found)
    return texts.join(train, "client_id", how="left_semi")


def split_by_client(texts: DataFrame, *, held_out: float, seed: int) -> DataFrame:
    """Adds `split`: `heldout` for a share of the clients, chosen by a hash of their id, else `train`.

    A client's documents and rewrites of them stand on one side, so nothing held out was seen in other words.

    Args:
        texts: with `client_id`.
        held_out: share of clients, 0 to 1.
        seed: another seed chooses other clients.
    """
    bucket = F.pmod(F.xxhash64("client_id", F.lit(seed)), F.lit(10_000))
    return texts.withColumn("split", F.when(bucket < round(held_out * 10_000), "heldout").otherwise("train"))


def sample_texts(texts: DataFrame, *, documents: int, characters: int, seed: int) -> Iterator[str]:
    """A repeatable sample of texts for the tokenizer; the driver holds `documents` texts at the most.

    Args:
        texts: with `client_id`, `kind` and `text`.
        documents: most texts.
        characters: where the sample ends even if there are more texts.
        seed: of the sample.
    """
    chosen = texts.orderBy(F.xxhash64("client_id", "kind", F.lit(seed)), "client_id", "kind").limit(documents)
    taken = 0
    for row in chosen.select("text").toLocalIterator():
        taken += len(row["text"])
        yield row["text"]
        if taken >= characters:
            return


def in_order(rows: DataFrame, files: int, *keys: str) -> DataFrame:
    """Spreads rows over files by client, those of each file in the order of their keys: what a rank reads, and in which
    order, depends on what the rows are and on nothing that a shuffle does.

    Args:
        rows: with `client_id`.
        files: how many.
        keys: columns after `client_id` that tell rows apart.
    """
    return rows.repartition(files, "client_id").sortWithinPartitions("client_id", *keys)


def staged_by_split(windows: DataFrame, folder: Path) -> None:
    """Writes windows as Parquet below `split=train` and `split=heldout`, in the order in which they come."""
    numbered = windows.withColumn("_place", F.monotonically_increasing_id())
    in_their_order = numbered.sortWithinPartitions("split", "_place").drop("_place")
    in_their_order.write.mode("overwrite").partitionBy("split").parquet(url_of(folder))
    bring(folder)


def cut_windows(texts: DataFrame, tokenizer: Path, *, context: int) -> DataFrame:
    """Tokenises texts and cuts them into windows, on the executors.

    Args:
        texts: with `client_id`, `kind`, `split` and `text`.
        tokenizer: folder of the tokenizer; it travels with the task.
        context: tokens of a window with the token that starts it.

    Returns:
        `WINDOWS`: one row a window, those of a text oldest first; `client` is a hash of the client_id.
    """
    from ledgerlm.text.tokenizer import load_tokenizer, window_start

    loaded = load_tokenizer(tokenizer)
    content, start_id = loaded.backend_tokenizer.to_str(), window_start(loaded)

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from ledgerlm.backbone.finetune import window_batches

        return window_batches(batches, content, start_id, context)

    return texts.select("kind", "split", F.xxhash64("client_id").alias("client"), "text").mapInArrow(cut, WINDOWS)


def window_batches(
    batches: Iterator[pa.RecordBatch], tokenizer: str, start_id: int, context: int
) -> Iterator[pa.RecordBatch]:
    """The work of `cut_windows` on one executor: `kind`, `split`, `client`, `text` in, windows out."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)
    backend.encode_special_tokens = True  # text never makes special tokens; the setting is not part of the JSON
    backend.no_truncation()
    backend.no_padding()
    for batch in batches:
        for start in range(0, batch.num_rows, _TOKENISED_AT_ONCE):
            yield _window_batch(batch.slice(start, _TOKENISED_AT_ONCE), backend, start_id, context)


def _window_batch(batch: pa.RecordBatch, backend: Any, start_id: int, context: int) -> pa.RecordBatch:
    from ledgerlm.backbone.windows import windows
    from ledgerlm.text.tokenizer import token_events

    texts = [text.rstrip("\n") for text in batch.column("text").to_pylist()]
    rows, flat, lengths = [], [], []
    start = np.array([start_id], np.int32)
    for row, code in enumerate(backend.encode_batch(texts, add_special_tokens=False)):
        ids = np.array(code.ids, np.int32)
        for cut in windows(token_events(texts[row], code.offsets), context - 1):
            rows.append(row)
            flat += [start, ids[cut]]
            lengths.append(cut.stop - cut.start + 1)
    offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)))
    values = np.concatenate(flat) if flat else np.zeros(0, np.int32)
    named = batch.select(["kind", "split", "client"]).take(pa.array(rows, pa.int64()))
    ids_column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    return pa.RecordBatch.from_arrays([*named.columns, ids_column], schema=_ARROW)


def finetune(
    conf: BackboneRankConf, workers: WorkersConf, *, on_progress: Callable[[Mapping[str, float]], None]
) -> dict[str, Any]:
    """Trains by Ray Train and DeepSpeed; see `ledgerlm.training.launch.train`.

    Returns:
        What the ranks found: precision, steps, tokens, seconds, held-out losses.
    """
    return train("ledgerlm.backbone.worker:train_rank", conf, workers, on_progress=on_progress)
