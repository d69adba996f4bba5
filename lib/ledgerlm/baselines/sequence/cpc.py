"""CPC: each state tells the next events from events of other clients.

van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018 (arXiv 1807.03748).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective, Outcome
from ledgerlm.baselines.sequence.settings import CpcConf


class Cpc(Objective):
    """InfoNCE over event embeddings, with a linear map for each number of steps ahead."""

    def __init__(self, encoder: Encoder, conf: CpcConf) -> None:
        super().__init__(encoder)
        self.conf = conf
        self.ahead = nn.ModuleList(nn.Linear(encoder.conf.width, encoder.events.width) for _ in range(conf.steps))

    def forward(self, batch: Batch) -> Outcome:
        """Mean loss over steps, and how often the true event is the likeliest (1 of negatives + 1 by chance)."""
        events = self.encoder.events(batch)
        states = self.encoder.body(events)
        mask = batch.mask
        pool_rows, pool_places = torch.nonzero(mask, as_tuple=True)
        losses, right = [], []
        for step, predict in enumerate(self.ahead, 1):
            rows, places = torch.nonzero(mask[:, step:], as_tuple=True)
            if not len(rows):
                continue
            drawn = _others(rows, pool_rows, batch.clients, self.conf.negatives)
            candidates = torch.cat(
                [events[rows, places + step][:, None], events[pool_rows[drawn], pool_places[drawn]]], dim=1
            )
            scores = torch.einsum("nw,nkw->nk", predict(states[rows, places]), candidates)
            # A draw that fell on the same client is no negative.
            clash = batch.clients[pool_rows[drawn]] == batch.clients[rows][:, None]
            scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(clash, float("-inf"))], dim=1)
            losses.append(functional.cross_entropy(scores, torch.zeros_like(rows)))
            right.append((scores.detach().argmax(1) == 0).float().mean())
        return Outcome(torch.stack(losses).mean(), {"accuracy": float(torch.stack(right).mean())})


def _others(rows: Tensor, pool_rows: Tensor, clients: Tensor, count: int) -> Tensor:
    """Places in the pool of `count` random events for each row, of other clients wherever a second draw finds one."""
    drawn = torch.randint(len(pool_rows), (len(rows), count), device=rows.device)
    again = torch.randint(len(pool_rows), (len(rows), count), device=rows.device)
    own = clients[pool_rows[drawn]] == clients[rows][:, None]
    return torch.where(own, again, drawn)
