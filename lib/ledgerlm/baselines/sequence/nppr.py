"""NPPR: each state predicts the next event and gives back earlier ones.

Skalski et al., "Towards a Foundation Purchasing Model: Pretrained Generative Autoregression on Transaction Sequences",
ICAIF 2023 (arXiv 2401.01641). Its code is not public: that earlier events are drawn at random, decoded from the state
and the time elapsed, and weighted by exp(-elapsed / decay) is our reading.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import EventDecoder, Objective, Outcome, events_at, successive
from ledgerlm.baselines.sequence.settings import NpprConf


class Nppr(Objective):
    """Next-event loss plus a weighted loss of reconstructing the past."""

    def __init__(self, encoder: Encoder, conf: NpprConf) -> None:
        super().__init__(encoder)
        self.conf = conf
        width = encoder.conf.width
        self.next_event = EventDecoder(width, encoder)
        self.back = nn.Sequential(nn.Linear(width + 2, width), nn.ReLU())
        self.past_event = EventDecoder(width, encoder)

    def forward(self, batch: Batch) -> Outcome:
        """Loss, its two parts, and how often the likeliest next code of the first field is the true one."""
        states = self.encoder(batch)
        rows, places = successive(batch)
        true = events_at(self.encoder, batch, rows, places + 1)
        ahead = self.next_event.loss(states[rows, places], true).mean()
        # The places behind `successive` are those that have an event before them.
        back = self._past(states, batch, rows, places + 1)
        accuracy = self.next_event.accuracy(states[rows, places].detach(), true)
        metrics = {"accuracy": accuracy, "next_loss": float(ahead.detach()), "past_loss": float(back.detach())}
        return Outcome(ahead + self.conf.weight * back, metrics)

    def _past(self, states: Tensor, batch: Batch, rows: Tensor, places: Tensor) -> Tensor:
        rows, places = rows.repeat(self.conf.past), places.repeat(self.conf.past)
        earlier = (torch.rand(len(places), device=places.device) * places).long().clamp(max=places - 1)
        days = batch.days
        elapsed = days[rows, places] - days[rows, earlier]
        asked = torch.stack([torch.log1p(elapsed), torch.log1p((places - earlier).float())], dim=1)
        decoded = self.back(torch.cat([states[rows, places], asked], dim=1))
        losses = self.past_event.loss(decoded, events_at(self.encoder, batch, rows, earlier))
        weights = torch.exp(-elapsed / self.conf.decay_days)
        return (weights * losses).sum() / weights.sum().clamp(min=1e-6)
