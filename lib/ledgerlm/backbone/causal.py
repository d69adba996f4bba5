"""Next-token prediction over packs, as a task of the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ledgerlm.backbone.loss import loss_inputs, views_of
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.settings import TrainingConf
from ledgerlm.backbone.store import Reader
from ledgerlm.errors import DataError
from ledgerlm.training.engine import Engine
from ledgerlm.training.loop import HELD_OUT, Line, Outcome, Pace, Place, Progress, Step, Task

# Ranks exchange the clock and the loss at every so many steps.
_BEAT = 20


class Causal(Task):
    """What a causal language model adds to the loop; the engine's module is a `CausalLoss`."""

    def __init__(
        self, reader: Reader, held_out: Mapping[str, Sequence[Pack]], conf: TrainingConf, *, device: str = "cpu"
    ) -> None:
        """Prepares the task.

        Args:
            reader: this rank's packs.
            held_out: for each kind of text this rank's packs that are not trained on; the first kind is the curve's.
            conf: settings.
            device: where the model is.

        Raises:
            DataError: there is nothing to read.
        """
        self._reader, self._held_out, self._conf, self._device = reader, held_out, conf, device
        self.tokens_per_epoch = reader.epoch_tokens()
        budget = math.ceil(self.tokens_per_epoch * conf.epochs)
        self.budget = min(budget, conf.max_tokens or budget)
        if self.budget < 1:
            raise DataError("there are no training windows; look at the documents and at finetune's formats")

    def steps(self, place: Place) -> Iterator[Step]:
        """Packs from a place on, without end."""
        return self._reader.steps(place)

    def loss(self, engine: Engine, batch: Pack) -> Outcome:
        """The summed loss of a pack."""
        inputs, places, targets = loss_inputs(batch, self._device)
        views = views_of(batch, self._device) if self._conf.contrast else None
        summed = engine(inputs, places, targets, views)
        # The curve is of the next-token loss alone.
        shown = summed.detach() - _added(engine.module)
        return Outcome(summed, shown, len(targets))

    def share(self, done: Progress) -> float:
        """Tokens or time, whichever is further."""
        share = done.seen / self.budget
        if self._conf.max_minutes is not None:
            share = max(share, done.seconds / (60 * self._conf.max_minutes))
        return min(share, 1.0)

    def rate(self, done: Progress) -> float:
        """A linear rise, then a cosine."""
        return self._conf.rate(self.share(done))

    def held_out(self, engine: Engine) -> Line:
        """Mean loss of the first kind, nats a token."""
        loss = self.held_out_loss(engine, next(iter(self._held_out))) if self._held_out else None
        return {} if loss is None else {HELD_OUT: loss}

    def held_out_loss(self, engine: Engine, kind: str) -> float | None:
        """Mean loss over the held-out packs of a kind; None when no rank has any."""
        sums = np.zeros(2)
        for pack in self._held_out[kind]:
            inputs, places, targets = loss_inputs(pack, self._device)
            sums += (engine.module(inputs, places, targets).item(), len(targets))
        total, count = self._reader.ranks.total(sums)
        return float(total / count) if count else None

    def held_out_losses(self, engine: Engine) -> dict[str, float | None]:
        """The same for each kind."""
        return {kind: self.held_out_loss(engine, kind) for kind in self._held_out}


def _added(module: nn.Module) -> Any:
    return module.added  # the contrastive part of a CausalLoss


def pace(conf: TrainingConf) -> Pace:
    """When the training of a backbone pauses."""
    return Pace(
        steps=_BEAT,
        evaluations=conf.evaluations,
        patience=conf.patience,
        checkpoint_minutes=conf.checkpoint_minutes,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights for the optimizer: matrices decay, norms and biases do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
