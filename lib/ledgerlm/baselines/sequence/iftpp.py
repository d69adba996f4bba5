"""IFTPP: each state predicts the next event, its codes, its numbers and the time until it.

Shchur, Biloš, Günnemann, "Intensity-Free Learning of Temporal Point Processes", ICLR 2020, in the form that
Karpukhin et al., "HoTPP Benchmark", 2024 compare: cross-entropy for codes and absolute error for time and amounts.
With a transformer it is IFTPP-T.
"""

from __future__ import annotations

from ledgerlm.baselines.sequence.batches import Batch
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import EventDecoder, Objective, Outcome, events_at, successive
from ledgerlm.baselines.sequence.settings import NextConf


class NextEvent(Objective):
    """Next-event loss, averaged over events."""

    def __init__(self, encoder: Encoder, conf: NextConf) -> None:
        super().__init__(encoder)
        self.conf = conf
        self.decoder = EventDecoder(encoder.conf.width, encoder)

    def forward(self, batch: Batch) -> Outcome:
        """Loss, and how often the likeliest code of the first field is the true one."""
        rows, places = successive(batch)
        states = self.encoder(batch)[rows, places]
        true = events_at(self.encoder, batch, rows, places + 1)
        accuracy = self.decoder.accuracy(states.detach(), true)
        return Outcome(self.decoder.loss(states, true).mean(), {"accuracy": accuracy})
