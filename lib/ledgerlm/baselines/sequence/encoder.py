"""The encoder that all sequence baselines share: events to vectors, vectors to states, states to one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.settings import PAD, EncoderConf, Fields


class EventEmbedding(nn.Module):
    """An event as a vector: an embedding of each code, and batch-normalised numbers.

    Attributes:
        width: numbers of the vector.
    """

    def __init__(self, fields: Fields, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.tables = nn.ModuleList(
            nn.Embedding(size, fields.embeddings[name], padding_idx=PAD) for name, size in fields.sizes.items()
        )
        self.norm = nn.BatchNorm1d(len(fields.numbers))
        self.register_buffer("mean", torch.tensor(fields.mean))
        self.register_buffer("std", torch.tensor(fields.std))
        self.width = sum(fields.embeddings[name] for name in fields.sizes) + len(fields.numbers)

    def scaled(self, numbers: Tensor) -> Tensor:
        """Numbers with mean 0 and deviation 1 over the training events."""
        return (numbers - self.get_buffer("mean")) / self.get_buffer("std")

    def forward(self, batch: Batch) -> Tensor:
        """Sequences x events x width."""
        coded = torch.cat([table(batch.codes[..., place]) for place, table in enumerate(self.tables)], dim=-1)
        if self.training and self.noise:
            coded = coded + self.noise * torch.randn_like(coded)
        # Padding is left out of the batch's moments, so that they do not depend on the longest sequence.
        mask = batch.mask
        scaled = self.scaled(batch.numbers)
        numbers = torch.zeros_like(scaled)
        numbers[mask] = self.norm(scaled[mask])
        return torch.cat([coded, numbers], dim=-1)


class Recurrent(nn.Module):
    """GRU or LSTM with a trained start state."""

    def __init__(self, conf: EncoderConf, width: int) -> None:
        super().__init__()
        kind = nn.GRU if conf.kind == "gru" else nn.LSTM
        self.cell = kind(width, conf.width, conf.layers, batch_first=True, dropout=conf.dropout)
        self.start = nn.Parameter(torch.zeros(conf.layers, 1, conf.width))

    def forward(self, events: Tensor) -> Tensor:
        """Sequences x events x state; a state knows its own and earlier events only."""
        start = self.start.expand(-1, len(events), -1).contiguous()
        first = start if isinstance(self.cell, nn.GRU) else (start, torch.zeros_like(start))
        states: Tensor = self.cell(events, first)[0]
        return states


class Transformer(nn.Module):
    """Causal transformer with sinusoidal places, normalised before each layer."""

    def __init__(self, conf: EncoderConf, width: int) -> None:
        super().__init__()
        self.width = conf.width
        self.project = nn.Linear(width, conf.width)
        layer = nn.TransformerEncoderLayer(
            conf.width, conf.heads, 4 * conf.width, conf.dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, conf.layers, norm=nn.LayerNorm(conf.width), enable_nested_tensor=False
        )

    def forward(self, events: Tensor) -> Tensor:
        """Sequences x events x state; a state knows its own and earlier events only."""
        places = self._places(events.shape[1], events.device)
        mask = nn.Transformer.generate_square_subsequent_mask(events.shape[1], device=events.device)
        states: Tensor = self.layers(self.project(events) + places, mask=mask, is_causal=True)
        return states

    def _places(self, length: int, device: torch.device) -> Tensor:
        rates = torch.exp(torch.arange(0, self.width, 2, device=device) * (-math.log(10_000.0) / self.width))
        angles = torch.arange(length, device=device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Encoder(nn.Module):
    """Histories to vectors.

    Sequences are padded on the right and every layer looks back only, so a vector does not depend on its batch.

    Attributes:
        events: the event embedding.
        body: the recurrent net or transformer.
    """

    def __init__(self, fields: Fields, conf: EncoderConf) -> None:
        super().__init__()
        self.fields, self.conf = fields, conf
        self.events = EventEmbedding(fields, conf.noise)
        kind = Transformer if conf.kind == "transformer" else Recurrent
        self.body = kind(conf, self.events.width)

    def forward(self, batch: Batch) -> Tensor:
        """States: sequences x events x width."""
        states: Tensor = self.body(self.events(batch))
        return states

    def pool(self, states: Tensor, batch: Batch) -> Tensor:
        """One vector a sequence, by the rule of the configuration."""
        if self.conf.pooling == "mean":
            return (states * batch.mask[..., None]).sum(1) / batch.lengths[:, None]
        return states[torch.arange(len(states), device=states.device), batch.lengths - 1]

    def embed(self, batch: Batch) -> Tensor:
        """Vectors: sequences x width."""
        return self.pool(self(batch), batch)
