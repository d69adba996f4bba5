"""Scoring in Spark: the networks of a stage in one pass, with late fusions of them, and the reasons of each score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyspark.sql import types as T

from ledgerlm.files import here, share
from ledgerlm.heads.alimn.batches import Clients, clients_of
from ledgerlm.heads.alimn.late import late_logit, probability
from ledgerlm.heads.alimn.network import Alimn
from ledgerlm.heads.alimn.settings import FusionCard
from ledgerlm.heads.alimn.store import load_fusion, load_network
from ledgerlm.heads.scoring import SCORED
from ledgerlm.heads.tasks import Floats, Ints
from ledgerlm.heads.vectors import KEY, Block

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

FUSED = T.StructType([T.StructField("head_id", T.StringType(), nullable=False), *SCORED.fields])
_REASON = pa.struct([pa.field("feature", pa.string()), pa.field("contribution", pa.float32())])
_CLIENTS_AT_ONCE = 1024
_SENTENCE_LENGTH = 80  # characters of a sentence that a reason quotes


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Heads that are scored together."""

    cards: Mapping[str, FusionCard]
    networks: Mapping[str, Alimn]


def score_fusion(joined: DataFrame, folder: Path, heads: Sequence[str], *, reasons: int = 3) -> DataFrame:
    """Scores clients with several ALIMN heads.

    Args:
        joined: the sources' columns (`join_sources`) and `sentences`, for all heads alike.
        folder: the artefacts' `heads` folder.
        heads: head ids; the members of a late fusion stand before it.
        reasons: features and sentences named for each client, 0 for none.

    Returns:
        One row a client and head: head_id, client_id, as_of, margin, probabilities, prediction, reasons: what moved the
        log-odds most, gradient times input (Shrikumar et al. 2016) from the mean training client; none for a late
        fusion.
    """
    work = partial(_score_batches, heads=tuple(share(folder / one) for one in heads), reasons=reasons)
    return joined.mapInArrow(work, FUSED)


@lru_cache(maxsize=2)
def _opened(heads: tuple[str, ...]) -> Opened:
    torch.set_num_threads(1)
    homes = [here(one) for one in heads]
    cards = {home.name: load_fusion(home.parent, home.name) for home in homes}
    networks = {one.name: load_network(one.parent, one.name)[1] for one in homes if cards[one.name].kind == "alimn"}
    return Opened(cards=cards, networks=networks)


def _score_batches(
    batches: Iterator[pa.RecordBatch], *, heads: tuple[str, ...], reasons: int
) -> Iterator[pa.RecordBatch]:
    opened = _opened(heads)
    for batch in batches:
        for start in range(0, batch.num_rows, _CLIENTS_AT_ONCE):
            yield from score_batch(batch.slice(start, _CLIENTS_AT_ONCE), opened, reasons=reasons)


def score_batch(batch: pa.RecordBatch, opened: Opened, *, reasons: int = 3) -> Iterator[pa.RecordBatch]:
    """Scores the clients of one Arrow batch; yields one batch for each head."""
    first = next(card for card in opened.cards.values() if card.kind == "alimn")
    width = max(card.shape.state for card in opened.cards.values() if card.shape is not None)
    clients = clients_of(batch, first.blocks, first.domains, width)
    raw: dict[str, Floats] = {}
    calibrated: dict[str, Floats] = {}
    for head_id, card in opened.cards.items():
        if card.kind == "alimn":
            raw[head_id], named = explained(opened.networks[head_id], clients, card.blocks, reasons)
        else:
            members = card.members
            p, z = (np.stack([one[member] for member in members], axis=1) for one in (calibrated, raw))
            raw[head_id], named = late_logit(p, z, card.weights), _none(len(clients))
        calibrated[head_id] = (
            card.calibration.apply(raw[head_id][:, None], card.task)[:, 1]
            if card.calibration.method != "none"
            else probability(raw[head_id])
        )
        yield _rows(batch, head_id, card, raw=raw[head_id], p=calibrated[head_id], reasons=named)


def explained(network: Alimn, clients: Clients, blocks: Sequence[Block], count: int) -> tuple[Floats, pa.ListArray]:
    """Log-odds of clients, and what moved each most.

    A structured feature's contribution is its standardised number times the gradient of the log-odds, a sentence's the
    same over its standardised state: zero is the mean training client.

    Args:
        network: the network.
        clients: whom to score.
        blocks: columns of the matrix, for the features' names.
        count: reasons a client; 0 for none.

    Returns:
        Log-odds `[N]`, and a list array of (feature, contribution), largest first.
    """
    batch = clients.batch(np.arange(len(clients)))
    if not count:
        with torch.no_grad():
            return network(batch).logit.double().numpy(), _none(len(clients))
    sides = network.conf
    features = network.standardised_features(batch.x).requires_grad_() if sides.structured else None
    states = network.standardised_states(batch.states).requires_grad_() if sides.text else None
    logit = network(batch, features, states).logit
    logit.sum().backward()
    of_features = np.zeros(tuple(batch.x.shape)) if features is None else _moved(features)
    of_sentences = np.zeros(0) if states is None else _moved(states).sum(axis=1)
    names = [name for block in blocks for name in block.features]
    found = _top(of_features, names, of_sentences, clients, count)
    return logit.detach().double().numpy(), found


def _moved(values: torch.Tensor) -> Floats:
    """Number times gradient; zero where the network does not look."""
    if values.grad is None:
        return np.zeros(tuple(values.shape))
    moved: Floats = (values.detach() * values.grad).double().numpy()
    return moved


def _top(of_features: Floats, names: Sequence[str], of_sentences: Floats, clients: Clients, count: int) -> pa.ListArray:
    """The largest contributions of each client by absolute value; zero ones are no reasons."""
    kept_features = min(count, of_features.shape[1])
    places: Ints = np.argpartition(-np.abs(of_features), max(kept_features - 1, 0), axis=1)[:, :kept_features]
    owner = [np.repeat(np.arange(len(clients)), kept_features), clients.owners[: len(of_sentences)]]
    value = [np.take_along_axis(of_features, places, axis=1).ravel(), of_sentences]
    label = [np.asarray(names, dtype=object)[places].ravel(), _quoted(clients.texts, len(of_sentences))]
    owners, values, labels = np.concatenate(owner), np.concatenate(value), np.concatenate(label)
    order = np.lexsort((-np.abs(values), owners))
    order = order[values[order] != 0]
    starts = np.searchsorted(owners[order], np.arange(len(clients)))
    rank = np.arange(len(order)) - starts[owners[order]]
    order = order[rank < count]
    sizes = np.bincount(owners[order], minlength=len(clients))
    offsets = np.r_[0, np.cumsum(sizes)].astype(np.int32)
    structs = pa.StructArray.from_arrays(
        [pa.array(labels[order], pa.string()), pa.array(values[order].astype(np.float32))], fields=list(_REASON)
    )
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


def _quoted(texts: pa.Array, count: int) -> NDArray[np.object_]:
    return np.array([f'"{text[:_SENTENCE_LENGTH]}"' for text in texts[:count].to_pylist()], dtype=object)


def _none(rows: int) -> pa.ListArray:
    return pa.array([[] for _ in range(rows)], pa.list_(_REASON))


def _rows(
    batch: pa.RecordBatch, head_id: str, card: FusionCard, *, raw: Floats, p: Floats, reasons: pa.ListArray
) -> pa.RecordBatch:
    both = np.stack([1 - p, p], axis=1).astype(np.float32)
    offsets = pa.array(np.arange(len(p) + 1, dtype=np.int32) * 2)
    prediction = np.asarray(card.task.classes)[(p > 0.5).astype(int)]
    columns = {
        "head_id": pa.array([head_id] * len(p), pa.string()),
        **{name: batch.column(name) for name in KEY},
        "margin": pa.array(raw),
        "probabilities": pa.ListArray.from_arrays(offsets, pa.array(both.ravel())),
        "prediction": pa.array(prediction),
        "reasons": reasons,
    }
    return pa.RecordBatch.from_pydict(columns)
