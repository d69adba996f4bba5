"""What the losses share: their interface, and a decoder from a state to an event."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss of a batch.

    Attributes:
        loss: to be minimised.
        metrics: numbers that say how well it goes, larger is better unless their name says loss.
    """

    loss: Tensor
    metrics: Mapping[str, float]


class Objective(nn.Module):
    """A loss that trains an encoder; what it needs beside the encoder is thrown away afterwards."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def forward(self, batch: Batch) -> Outcome:
        """Loss of drawn slices."""


@dataclass(frozen=True, slots=True)
class Events:
    """True events, one a row or in any other shape.

    Attributes:
        codes: ... x fields, int64.
        numbers: ... x numbers, float32, scaled.
    """

    codes: Tensor
    numbers: Tensor


class EventDecoder(nn.Module):
    """Predicts an event: the probability of each code of each field, and a point for each number."""

    def __init__(self, width: int, encoder: Encoder) -> None:
        super().__init__()
        self.sizes = list(encoder.fields.sizes.values())
        self.out = nn.Linear(width, sum(self.sizes) + len(encoder.fields.numbers))

    def forward(self, states: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of each field and the numbers: each in the shape of the states with another last dimension."""
        *logits, numbers = self.out(states).split([*self.sizes, self.out.out_features - sum(self.sizes)], dim=-1)
        return list(logits), numbers

    def loss(self, states: Tensor, true: Events) -> Tensor:
        """Cross-entropy summed over fields plus absolute errors summed over scaled numbers, for each row."""
        logits, numbers = self(states)
        loss: Tensor = (numbers - true.numbers).abs().sum(-1)
        for place, each in enumerate(logits):
            loss = loss + functional.cross_entropy(each, true.codes[..., place], reduction="none")
        return loss

    def accuracy(self, states: Tensor, true: Events) -> float:
        """Share of the first field's codes that are the likeliest ones."""
        logits, _ = self(states)
        return float((logits[0].argmax(-1) == true.codes[..., 0]).float().mean())


def events_at(encoder: Encoder, batch: Batch, rows: Tensor, places: Tensor) -> Events:
    """The events at `places` of the sequences `rows`, their numbers scaled."""
    return Events(batch.codes[rows, places], encoder.events.scaled(batch.numbers[rows, places]))


def successive(batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows and places of all events that have a next one."""
    rows, places = torch.nonzero(batch.mask[:, 1:], as_tuple=True)
    return rows, places


def ranking_auc(scores: Tensor, labels: Tensor) -> float:
    """ROC-AUC of scores for labels 0 and 1; a half without both."""
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return 0.5
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[scores.detach().cpu().argsort()] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    above = float(ranks[labels.cpu().bool()].sum()) - positive * (positive + 1) / 2
    return above / (positive * negative)
