"""Vectors of histories: in memory, and on Spark by `mapInArrow` with one opened encoder per Python worker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import functions as F

from ledgerlm.baselines.sequence.settings import EncoderCard
from ledgerlm.engines.session import setting
from ledgerlm.files import here, share

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.baselines.sequence.batches import Histories
    from ledgerlm.baselines.sequence.encoder import Encoder

_ROWS_AT_ONCE = 512
_CARRIED = ("client_id", "as_of", "event_count_used", "event_count_cut")


def encode_histories(encoder: Encoder, histories: Histories, *, events_at_once: int = 16_384) -> NDArray[np.float32]:
    """Vectors of histories; those of like length share a batch.

    Args:
        encoder: opened encoder.
        histories: of one event or more each.
        events_at_once: most events of a batch, padding included; a longer history has a batch of its own.

    Returns:
        Histories x width, in their order.
    """
    import torch

    from ledgerlm.baselines.sequence.batches import whole

    device = str(next(encoder.parameters()).device)
    order = np.argsort(-histories.lengths, kind="stable")
    vectors = np.empty((len(histories), encoder.conf.width), np.float32)
    start = 0
    encoder.eval()
    with torch.inference_mode():
        while start < len(order):
            count = max(1, events_at_once // int(histories.lengths[order[start]]))
            members = order[start : start + count]
            vectors[members] = encoder.embed(whole(histories, members).to(device)).cpu().numpy()
            start += count
    return vectors


def encode(rows: DataFrame, folder: Path, card: EncoderCard) -> DataFrame:
    """Encodes histories on Spark.

    Args:
        rows: from `histories.assemble`.
        folder: the encoder's; its name is the encoder's id.
        card: its card.

    Returns:
        Rows of the `embeddings` table without run_id, in no stated order; `parts` holds one vector under the name of
        the method, token_count the codes and numbers that were read.
    """
    task_cpus = int(setting(rows.sparkSession, "spark.task.cpus", "1"))
    slim = rows.select(*_CARRIED, "codes", "numbers")
    carried = ", ".join(f"{name} {slim.schema[name].dataType.simpleString()}" for name in _CARRIED)
    work = partial(_encode_partition, folder=share(folder), threads=task_cpus)
    found = slim.mapInArrow(work, schema=f"{carried}, vector array<float>, input_hash string")
    places = len(card.fields.codes) + len(card.fields.numbers)
    return found.select(
        *_CARRIED,
        F.lit(folder.name).alias("backbone_id"),
        F.lit(card.definition_id).alias("definition_id"),
        F.create_map(F.lit(card.objective.method), "vector").alias("parts"),
        (F.col("event_count_used") * F.lit(places)).alias("token_count"),
        "input_hash",
        F.lit(card.definition).alias("definition"),
    )


def _encode_partition(batches: Iterator[pa.RecordBatch], *, folder: str, threads: int) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker; the encoder stays open for the worker's next tasks."""
    encoder = _opened(folder, threads)
    from ledgerlm.baselines.sequence.batches import Histories

    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            rows = batch.slice(start, _ROWS_AT_ONCE)
            histories = Histories.from_arrow(rows, encoder.fields)
            vectors = encode_histories(encoder, histories)
            width = vectors.shape[1]
            flat = pa.ListArray.from_arrays(
                pa.array(np.arange(0, (len(vectors) + 1) * width, width), pa.int32()), pa.array(vectors.reshape(-1))
            )
            columns = [*(rows.column(name) for name in _CARRIED), flat, pa.array(_hashes(histories), pa.string())]
            yield pa.RecordBatch.from_arrays(columns, names=[*_CARRIED, "vector", "input_hash"])


def _hashes(histories: Histories) -> list[str]:
    """SHA-256 of what the encoder reads of each history."""
    runs = zip(histories.starts[:-1], histories.starts[1:], strict=True)
    return [
        hashlib.sha256(histories.codes[one:end].tobytes() + histories.numbers[one:end].tobytes()).hexdigest()
        for one, end in runs
    ]


@lru_cache(maxsize=1)
def _opened(folder: str, threads: int) -> Encoder:
    # Before torch starts its threads: those that spin while they wait slow down every other worker of the machine.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from ledgerlm.baselines.sequence.store import load_encoder

    torch.set_num_threads(threads)
    return load_encoder(here(folder))
