"""CoLES: slices of one client lie near each other, those of two clients apart.

Babaev et al., "CoLES: Contrastive Learning for Event Sequences with Self-Supervision", SIGMOD 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch, drop_events
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective, Outcome
from ledgerlm.baselines.sequence.settings import ColesConf


class Coles(Objective):
    """Contrastive loss over all pairs of slices of a client and each slice's nearest slices of other clients."""

    def __init__(self, encoder: Encoder, conf: ColesConf) -> None:
        super().__init__(encoder)
        self.conf = conf

    def forward(self, batch: Batch) -> Outcome:
        """Loss, and recall: the share of a client's slices among as many nearest neighbours (batch recall@4 for 5)."""
        seen = drop_events(batch, self.encoder.conf.event_dropout) if self.training else batch
        vectors = functional.normalize(self.encoder.embed(seen), dim=1)
        distances = _distances(vectors)
        loss = contrastive_loss(distances, batch.clients, self.conf.margin, self.conf.negatives)
        return Outcome(loss, {"recall": recall(distances.detach(), batch.clients, self.conf.slices - 1)})


def _distances(vectors: Tensor) -> Tensor:
    """Euclidean distances of unit vectors; the small number keeps the root's gradient finite at equal ones."""
    return (2.0 - 2.0 * vectors @ vectors.T).clamp(min=0.0).add(1e-8).sqrt()


def contrastive_loss(distances: Tensor, clients: Tensor, margin: float, negatives: int) -> Tensor:
    """Mean over pairs of d² for one client and max(0, margin − d)² for two, of which the hardest count.

    Args:
        distances: slices x slices.
        clients: client of each slice.
        margin: distance at which two clients are far enough apart.
        negatives: nearest slices of other clients that count for each slice.
    """
    same = clients[:, None] == clients
    pairs = torch.triu(same, diagonal=1)
    hardest = distances.masked_fill(same, float("inf")).topk(min(negatives, len(clients) - 1), largest=False).values
    apart = (margin - hardest[torch.isfinite(hardest)]).clamp(min=0.0) ** 2
    together = distances[pairs] ** 2
    return (together.sum() + apart.sum()) / (len(together) + len(apart))


def recall(distances: Tensor, clients: Tensor, count: int) -> float:
    """Share of the `count` nearest other slices that are the same client's, averaged over slices."""
    apart = distances.clone().fill_diagonal_(float("inf"))
    nearest = apart.topk(min(count, len(clients) - 1), largest=False).indices
    return float((clients[nearest] == clients[:, None]).float().mean())
