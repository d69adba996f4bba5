"""DeTPP: each state predicts a set of events within a horizon, matched with the true ones whatever their order.

Karpukhin, Savchenko, "DeTPP: Leveraging Object Detection for Robust Long-Horizon Event Prediction", 2024
(arXiv 2408.13131).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import EventDecoder, Events, Objective, Outcome
from ledgerlm.baselines.sequence.settings import DetppConf


class Detpp(Objective):
    """Matching loss: the cheapest pairing of predicted and true events, and whether a prediction has a partner."""

    def __init__(self, encoder: Encoder, conf: DetppConf) -> None:
        super().__init__(encoder)
        self.conf = conf
        width = encoder.conf.width
        self.queries = nn.Parameter(torch.randn(conf.queries, width) / width**0.5)
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())
        self.decoder = EventDecoder(width, encoder)
        self.present = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Outcome:
        """Loss at random places, its two parts and the share of true events whose first code was predicted."""
        rows, places = _places(batch, self.conf.positions)
        true, there = self._future(batch, rows, places)
        states = self.encoder(batch)[rows, places]
        each = self.mix(
            torch.cat(
                [states[:, None].expand(-1, self.conf.queries, -1), self.queries.expand(len(states), -1, -1)], dim=-1
            )
        )
        logits, numbers = self.decoder(each)
        event, presence = matching_loss(logits, numbers, self.present(each)[..., 0], true, there)
        hit = (logits[0].argmax(-1)[:, :, None] == true.codes[:, None, :, 0]).any(1)[there].float().mean()
        metrics = {"hits": float(hit), "event_loss": float(event.detach()), "presence_loss": float(presence.detach())}
        return Outcome(event + presence, metrics)

    def _future(self, batch: Batch, rows: Tensor, places: Tensor) -> tuple[Events, Tensor]:
        """The next events of each place; their last number is the time from there, as a share of the horizon."""
        steps = places[:, None] + torch.arange(1, self.conf.queries + 1, device=places.device)
        inside = steps < batch.lengths[rows][:, None]
        steps = steps.clamp(max=batch.codes.shape[1] - 1)
        days = batch.days
        ahead = (days[rows[:, None], steps] - days[rows, places][:, None]) / self.conf.horizon_days
        numbers = self.encoder.events.scaled(batch.numbers[rows[:, None], steps])
        numbers = torch.cat([numbers[..., :-1], ahead[..., None]], dim=-1)
        return Events(batch.codes[rows[:, None], steps], numbers), inside & (ahead < 1.0)


def _places(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Random places that have a next event, `count` in each sequence with repeats."""
    kept = torch.nonzero(batch.lengths >= 2)[:, 0].repeat_interleave(count)
    drawn = torch.rand(len(kept), device=kept.device) * (batch.lengths[kept] - 1)
    return kept, drawn.long().clamp(max=batch.lengths[kept] - 2)


def matching_loss(
    logits: list[Tensor], numbers: Tensor, presence: Tensor, true: Events, there: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of the cheapest one-to-one pairing; it does not depend on the order of predictions or of true events.

    Args:
        logits: for each field places x predictions x codes.
        numbers: places x predictions x numbers.
        presence: places x predictions, logit of having a partner.
        true: places x true events.
        there: places x true events, whether the event is real.

    Returns:
        Mean loss of paired events, mean cross-entropy of presence.
    """
    cost = (numbers[:, :, None] - true.numbers[:, None]).abs().sum(-1)
    for place, each in enumerate(logits):
        wanted = true.codes[:, None, :, place].expand(-1, each.shape[1], -1)
        cost = cost - each.log_softmax(-1).gather(-1, wanted)
    total = (cost - presence[:, :, None]).detach().cpu().numpy()
    real = there.cpu().numpy()
    where: list[int] = []
    predicted: list[int] = []
    partner: list[int] = []
    for place in np.flatnonzero(real.any(1)).tolist():
        columns = np.flatnonzero(real[place])
        chosen, of_columns = linear_sum_assignment(total[place][:, columns])
        where += [place] * len(chosen)
        predicted += chosen.tolist()
        partner += columns[of_columns].tolist()
    labels = torch.zeros_like(presence)
    labels[where, predicted] = 1.0
    event = cost[where, predicted, partner].sum() / max(len(where), 1)
    return event, functional.binary_cross_entropy_with_logits(presence, labels)
