"""Scoring on Spark by `mapInArrow`, with one opened head for each Python worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ledgerlm.engines.session import setting
from ledgerlm.files import here, share
from ledgerlm.heads.recurrent.settings import RecurrentCard
from ledgerlm.heads.scoring import SCORED

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.heads.recurrent.model import Network
    from ledgerlm.heads.recurrent.rows import Rows
    from ledgerlm.heads.tasks import Floats

_KEY = ("client_id", "as_of")
_COLUMNS = (*_KEY, "codes", "numbers", "metadata", "context")
_REASONS = pa.list_(pa.struct([pa.field("feature", pa.string()), pa.field("contribution", pa.float32())]))


def score_recurrent(rows: DataFrame, folder: Path, head_id: str) -> DataFrame:
    """Scores rows with a head that reads events; a score depends on its own row alone.

    Args:
        rows: from `inputs.head_rows`, with the head's own shape.
        folder: the artefacts' `heads` folder.
        head_id: the head, whose files are checked against it.

    Returns:
        client_id, as_of, margin, probabilities (in the order of the task's classes), prediction, reasons (none).
    """
    threads = int(setting(rows.sparkSession, "spark.task.cpus", "1"))
    work = partial(_score_batches, folder=share(folder / head_id), threads=threads)
    return rows.select(*_COLUMNS).mapInArrow(work, SCORED)


def _score_batches(batches: Iterator[pa.RecordBatch], *, folder: str, threads: int) -> Iterator[pa.RecordBatch]:
    network, card = _opened(folder, threads)
    from ledgerlm.heads.recurrent.rows import Rows

    for batch in batches:
        p = probabilities(network, card, Rows.from_arrow(batch, card.shape))
        prediction = np.asarray(card.task.classes)[p.argmax(axis=1)]
        margin = np.log(p[:, 1] / p[:, 0]) if card.task.kind == "binary" else p.max(axis=1)
        offsets = np.arange(len(p) + 1, dtype=np.int32) * p.shape[1]
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(p.astype(np.float32).ravel()))
        reasons = pa.array([[] for _ in range(len(p))], _REASONS)
        columns = [*(batch.column(name) for name in _KEY), pa.array(margin), lists, pa.array(prediction), reasons]
        yield pa.RecordBatch.from_arrays(columns, names=SCORED.fieldNames())


def probabilities(network: Network, card: RecurrentCard, rows: Rows) -> Floats:
    """Calibrated probabilities of rows, rows x classes; also for one row at a time, outside Spark."""
    from ledgerlm.heads.recurrent.training import as_raw, raw_scores

    p = card.calibration.apply(as_raw(raw_scores(network, rows), card.task), card.task)
    # Float32 may call a class impossible; the margin of two classes needs both.
    tiny = 1e-7
    return np.asarray(np.clip(p, tiny, 1.0) / np.clip(p, tiny, 1.0).sum(axis=1, keepdims=True))


@lru_cache(maxsize=2)
def _opened(folder: str, threads: int) -> tuple[Network, RecurrentCard]:
    # Before torch starts its threads: those that spin while they wait slow down every other worker of the machine.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from ledgerlm.heads.recurrent.store import load_recurrent

    torch.set_num_threads(threads)
    return load_recurrent(here(folder))
