"""NSP: a part of a history tells whether another part follows it or is another client's.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019, on event sequences as in the CoLES
paper's comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective, Outcome, ranking_auc
from ledgerlm.baselines.sequence.settings import NspConf


class Nsp(Objective):
    """Binary cross-entropy over pairs of parts: each once with what follows, once with another client's part."""

    def __init__(self, encoder: Encoder, conf: NspConf) -> None:
        super().__init__(encoder)
        self.head = nn.Sequential(
            nn.Linear(2 * encoder.conf.width, conf.head_width),
            nn.ReLU(),
            nn.Dropout(conf.head_dropout),
            nn.Linear(conf.head_width, 1),
        )

    def forward(self, batch: Batch) -> Outcome:
        """Loss, and the ROC-AUC of telling true pairs from false ones."""
        left, right = cut(batch)
        one, other = self.encoder.embed(left), self.encoder.embed(right)
        # Slices of a client stand together: half a batch on is another client's, if there are two.
        wrong = other.roll(len(other) // 2, dims=0)
        scores = torch.cat([self.head(torch.cat([one, each], dim=1)) for each in (other, wrong)])[:, 0]
        labels = torch.cat([torch.ones(len(one)), torch.zeros(len(one))]).to(scores.device)
        loss = functional.binary_cross_entropy_with_logits(scores, labels)
        return Outcome(loss, {"auc": ranking_auc(scores, labels)})


def cut(batch: Batch) -> tuple[Batch, Batch]:
    """Cuts each sequence of two events or more at a random place into an earlier and a later part."""
    kept = batch.lengths >= 2
    codes, numbers, lengths = batch.codes[kept], batch.numbers[kept], batch.lengths[kept]
    drawn = torch.rand(len(lengths), device=lengths.device)
    first = 1 + (drawn * (lengths - 1)).long().clamp(max=lengths - 2)
    rest = lengths - first
    clients = batch.clients[kept]
    left = Batch(_run(codes, 0 * first, first), _run(numbers, 0 * first, first), first, clients)
    return left, Batch(_run(codes, first, rest), _run(numbers, first, rest), rest, clients)


def _run(values: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """The events from `starts` on, padded with zeros behind `lengths`."""
    steps = torch.arange(int(lengths.max()), device=values.device)
    places = (starts[:, None] + steps).clamp(max=values.shape[1] - 1)
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, places] * (steps < lengths[:, None])[..., None]
