"""The network: events as vectors, LSTM or convolutions over them, metadata joined behind, a dense softmax."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import EventEmbedding, Recurrent
from ledgerlm.baselines.sequence.settings import FIRST_CODE, PAD, EncoderConf
from ledgerlm.heads.recurrent.settings import NetworkConf, RowsShape

_METADATA_WIDTH = 4


@dataclass(frozen=True, slots=True)
class Inputs:
    """Padded rows.

    Attributes:
        events: histories, padded on the right.
        metadata: rows x attributes, int64.
        context: rows x numbers, float32, scaled.
    """

    events: Batch
    metadata: Tensor
    context: Tensor


class Convolutions(nn.Module):
    """1-D convolutions over successive events, each with ReLU; padding is kept at zero, so it is never seen."""

    def __init__(self, conf: NetworkConf, width: int) -> None:
        super().__init__()
        sizes = [width, *[conf.width] * conf.layers]
        self.layers = nn.ModuleList(
            nn.Conv1d(one, other, conf.kernel, padding="same") for one, other in pairwise(sizes)
        )
        self.dropout = nn.Dropout(conf.dropout)

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Rows x events x channels."""
        there = mask[:, None, :]
        states = events.transpose(1, 2) * there
        for place, layer in enumerate(self.layers):
            states = torch.relu(layer(self.dropout(states) if place else states)) * there
        return states.transpose(1, 2)


def age(batch: Batch) -> Tensor:
    """How long before the newest event each one was: rows x events, ln(1 + days) / 3, which is about 0 to 2."""
    days = batch.days
    newest = days.gather(1, batch.lengths[:, None] - 1)
    return torch.log1p((newest - days).clamp(min=0.0)) / 3


class Network(nn.Module):
    """Rows to raw scores: one for each class.

    Attributes:
        events: the event embedding.
        body: recurrent layers or convolutions.
        classes: how many scores a row gets.
    """

    def __init__(self, shape: RowsShape, conf: NetworkConf, classes: int) -> None:
        super().__init__()
        self.conf, self.classes = conf, classes
        self.events = EventEmbedding(shape.fields, noise=0.0)
        self.metadata = nn.ModuleList(
            nn.Embedding(len(codes) + FIRST_CODE, _METADATA_WIDTH, padding_idx=PAD)
            for codes in shape.context.codes.values()
        )
        if conf.kind == "cnn":
            self.body: Recurrent | Convolutions = Convolutions(conf, self.events.width + 1)
        else:
            dropout = conf.dropout if conf.layers > 1 else 0.0
            layers = EncoderConf(kind=conf.kind, width=conf.width, layers=conf.layers, dropout=dropout)
            self.body = Recurrent(layers, self.events.width + 1)
        beside = _METADATA_WIDTH * len(shape.context.codes) + len(shape.context.numbers)
        parts = 2 if conf.kind == "cnn" or conf.pooling == "both" else 1
        self.dense = nn.Sequential(
            nn.Dropout(conf.dropout),
            nn.Linear(parts * conf.width + beside, conf.dense),
            nn.ReLU(),
            nn.Dropout(conf.dropout),
            nn.Linear(conf.dense, classes),
        )

    def forward(self, rows: Inputs) -> Tensor:
        """Raw scores (logits): rows x classes."""
        pooled = self._pooled(rows.events)
        coded = [table(rows.metadata[:, place]) for place, table in enumerate(self.metadata)]
        scores: Tensor = self.dense(torch.cat([*pooled, *coded, rows.context], dim=1))
        return scores

    def _pooled(self, batch: Batch) -> list[Tensor]:
        mask = batch.mask
        events = torch.cat([self.events(batch), age(batch)[..., None]], dim=2)
        if isinstance(self.body, Convolutions):
            states = self.body(events, mask)
            # ReLU leaves nothing below zero, so padding cannot be the maximum where any event is above it.
            return [states.sum(1) / batch.lengths[:, None], states.amax(1)]
        states = self.body(events)
        last = states[torch.arange(len(states), device=states.device), batch.lengths - 1]
        mean = (states * mask[..., None]).sum(1) / batch.lengths[:, None]
        return {"last": [last], "mean": [mean], "both": [last, mean]}[self.conf.pooling]
