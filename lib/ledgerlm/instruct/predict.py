"""Bulk prediction on Spark: prompts through `mapInArrow`, one opened model per Python worker process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ledgerlm.engines.gpus import WorkerDevice, usable
from ledgerlm.files import here, share
from ledgerlm.heads.tasks import Floats
from ledgerlm.instruct.head import InstructCard
from ledgerlm.instruct.tokens import PromptTokens

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.instruct.scorer import Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a worker reads prompts.

    Attributes:
        model: folder of the model.
        adapter: folder of the adapter whose weights are added, if any.
        tokens: prompt and answers.
        device: where workers open the model.
        threads: torch's threads in a worker on CPUs.
        batch_tokens: most tokens of a forward pass.
    """

    model: str
    adapter: str | None
    tokens: PromptTokens
    device: WorkerDevice = field(default_factory=WorkerDevice)
    threads: int = 1
    batch_tokens: int = 8192


def log_likelihoods(prompts: DataFrame, reading: Reading) -> DataFrame:
    """Log-likelihood of every answer for each prompt.

    Args:
        prompts: `body` and columns that are kept.
        reading: the model, and how it is run.

    Returns:
        The columns of `prompts` without `body`, and `log_likelihoods` array<double> in the order of the answers.
    """
    kept = [name for name in prompts.columns if name != "body"]
    schema = ", ".join(f"`{name}` {prompts.schema[name].dataType.simpleString()}" for name in kept)
    work = partial(_read_batches, reading=_shared(reading), kept=tuple(kept))
    return prompts.mapInArrow(work, f"{schema}, log_likelihoods array<double>")


def score_prompts(prompts: DataFrame, reading: Reading, card: InstructCard) -> DataFrame:
    """Calibrated probabilities of every prompt; a client's do not depend on the rows beside it.

    Args:
        prompts: client_id, as_of, body.
        reading: the model, and how it is run.
        card: normalisation and calibration.

    Returns:
        client_id, as_of, margin (orders clients for the deciles), probabilities (in the order of the classes),
        prediction (label of the likeliest class), reasons (empty); see `ledgerlm.heads.scoring.SCORED`.
    """
    from ledgerlm.heads.scoring import SCORED

    work = partial(_score_batches, reading=_shared(reading), card=card.model_dump_json())
    return prompts.select("client_id", "as_of", "body").mapInArrow(work, SCORED)


def _shared(reading: Reading) -> Reading:
    """The same, as executors are told of its folders."""
    adapter = None if reading.adapter is None else share(Path(reading.adapter))
    return replace(reading, model=share(Path(reading.model)), adapter=adapter)


def _score_batches(batches: Iterator[pa.RecordBatch], *, reading: Reading, card: str) -> Iterator[pa.RecordBatch]:
    known = InstructCard.model_validate_json(card)
    for batch, found in _read(batches, reading):
        raw = known.raw(found, reading.tokens)
        p = known.calibration.apply(raw, known.task)
        margin = raw[:, 0] if known.task.kind == "binary" else p.max(axis=1)
        columns = {
            "client_id": batch.column("client_id"),
            "as_of": batch.column("as_of"),
            "margin": pa.array(margin),
            "probabilities": pa.array(list(p.astype(np.float32)), pa.list_(pa.float32())),
            "prediction": pa.array(np.asarray(known.task.classes)[p.argmax(axis=1)]),
            "reasons": pa.array([[]] * len(p), _REASONS),
        }
        yield pa.RecordBatch.from_pydict(columns)


_REASONS = pa.list_(pa.struct([pa.field("feature", pa.string()), pa.field("contribution", pa.float32())]))


def _read_batches(
    batches: Iterator[pa.RecordBatch], *, reading: Reading, kept: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    for batch, found in _read(batches, reading):
        columns = {name: batch.column(name) for name in kept}
        lists = pa.array(list(found), pa.list_(pa.float64()))
        yield pa.RecordBatch.from_pydict({**columns, "log_likelihoods": lists})


def _read(batches: Iterator[pa.RecordBatch], reading: Reading) -> Iterator[tuple[pa.RecordBatch, Floats]]:
    filled = (batch for batch in batches if batch.num_rows)
    first = next(filled, None)
    if first is None:  # no model is opened for nothing
        return
    with reading.device.model(_scorer, reading) as scorer:
        for batch in chain([first], filled):
            bodies = batch.column("body").to_pylist()
            yield batch, scorer.log_likelihoods(bodies, batch_tokens=reading.batch_tokens)


@lru_cache(maxsize=1)
def _scorer(reading: Reading, device: str) -> Scorer:
    # Before torch starts its threads: those that spin while they wait slow down every other worker of the machine.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = str(reading.threads)
    import torch

    from ledgerlm.instruct.scorer import Scorer

    torch.set_num_threads(reading.threads)
    adapter = None if reading.adapter is None else str(here(reading.adapter))
    return Scorer.open(str(here(reading.model)), adapter, reading.tokens, device=usable(device))
