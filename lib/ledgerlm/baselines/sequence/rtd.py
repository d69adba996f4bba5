"""RTD: each state tells whether its event was put in place of the true one.

Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators", ICLR 2020, with events of
the same batch as replacements, as in the CoLES paper's comparison.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective, Outcome, ranking_auc
from ledgerlm.baselines.sequence.settings import RtdConf


class Rtd(Objective):
    """Binary cross-entropy over all events but the first, which has no context."""

    def __init__(self, encoder: Encoder, conf: RtdConf) -> None:
        super().__init__(encoder)
        self.conf = conf
        self.head = nn.Linear(encoder.conf.width, 1)

    def forward(self, batch: Batch) -> Outcome:
        """Loss, and the ROC-AUC of finding replaced events."""
        corrupted, replaced = replace_events(batch, self.conf.share)
        asked = batch.mask.clone()
        asked[:, 0] = False
        scores = self.head(self.encoder(corrupted))[..., 0][asked]
        labels = replaced[asked].float()
        loss = functional.binary_cross_entropy_with_logits(scores, labels)
        return Outcome(loss, {"auc": ranking_auc(scores, labels)})


def replace_events(batch: Batch, share: float) -> tuple[Batch, Tensor]:
    """Puts random events of the batch in place of a share of the events, the first of a sequence excepted.

    Returns:
        The changed batch, and sequences x events: whether an event was replaced by a different one.
    """
    rows, places = torch.nonzero(batch.mask, as_tuple=True)
    chosen = (torch.rand(batch.mask.shape, device=rows.device) < share) & batch.mask
    chosen[:, 0] = False
    drawn = torch.randint(len(rows), (int(chosen.sum()),), device=rows.device)
    codes, numbers = batch.codes.clone(), batch.numbers.clone()
    codes[chosen], numbers[chosen] = batch.codes[rows[drawn], places[drawn]], batch.numbers[rows[drawn], places[drawn]]
    changed = (codes != batch.codes).any(-1) | (numbers != batch.numbers).any(-1)
    return replace(batch, codes=codes, numbers=numbers), changed
