"""An encoder with its loss, as a task of the training loop, and what one rank of its training does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from ledgerlm.baselines.sequence.batches import Batch, Histories, draw_slices
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective
from ledgerlm.baselines.sequence.settings import ENCODER_FILES, EncoderCard, EncoderRankConf, TrainingConf
from ledgerlm.baselines.sequence.store import new_objective
from ledgerlm.errors import DataError
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.engine import Engine, PlainEngine
from ledgerlm.training.launch import finished, started
from ledgerlm.training.loop import EpochTask, Line, Outcome, Pace, Progress, Report, Training, in_batches
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.store import files_of

# Steps that the held-out loss is averaged over at the most; its batches are the same in every epoch.
_HELD_OUT_STEPS = 20


class Encoding(EpochTask):
    """Slices of histories, and the loss of a method; the engine's module is an `Objective`."""

    def __init__(self, conf: EncoderRankConf, histories: Histories, ranks: Ranks, *, device: str = "cpu") -> None:
        """Prepares the task.

        Args:
            conf: settings.
            histories: this rank's.
            ranks: the processes that train together.
            device: where the encoder is.

        Raises:
            DataError: they are too few for a step.
        """
        size = max(2, conf.training.batch // ranks.size)
        super().__init__(ranks, epochs=conf.training.epochs, seed=conf.seed, size=size)
        self._conf, self._histories, self._device = conf, histories, device
        long = np.flatnonzero(histories.lengths >= conf.training.min_events)
        mixed = np.random.default_rng((conf.seed, ranks.rank)).permutation(long)
        kept = round(conf.training.held_out * len(mixed))
        if ranks.least(len(mixed) - kept) < size:
            raise DataError(
                f"{len(mixed) - kept} training histories of {conf.training.min_events} events and more on this "
                f"rank, but a step takes {size}; lower training.batch, training.min_events or workers.ranks"
            )
        self._train, self._held_out = mixed[kept:], mixed[:kept]

    def order(self) -> Iterable[NDArray[np.int64]]:
        """This rank's clients, shuffled."""
        return in_batches(self.random.permutation(self._train), self.size)

    def batch(self, members: NDArray[np.int64]) -> Batch:
        """Slices of some clients."""
        return draw_slices(self._histories, members, self._conf.objective, self.random).to(self._device)

    def loss(self, engine: Engine, batch: Batch) -> Outcome:
        """The method's loss, a mean over the batch."""
        found = engine(batch)
        events = float(batch.lengths.sum())
        return Outcome(found.loss, found.loss.detach(), metrics=found.metrics, sums={"events": events})

    def rate(self, done: Progress) -> float:
        """That of the epoch."""
        return learning_rate(self._conf.training, done.place.epoch, done.curve)

    def held_out(self, engine: Engine) -> Line:
        """Mean loss and metrics over held-out clients; the ranks' are averaged."""
        torch.manual_seed(self.seed)
        self.random = np.random.default_rng(self.seed)  # the next epoch has its own
        size = min(self.size, len(self._held_out))
        steps = self.ranks.least(min(_HELD_OUT_STEPS, len(self._held_out) // size if size > 1 else 0))
        sums: Line = {}
        for number in range(steps):
            found = engine.module(self.batch(self._held_out[number * size : (number + 1) * size]))
            for name, value in {"loss": float(found.loss), **found.metrics}.items():
                sums[f"held_out_{name}"] = sums.get(f"held_out_{name}", 0.0) + value / steps
        total = self.ranks.total(np.array(list(sums.values()))) / self.ranks.size
        return dict(zip(sums, total.tolist(), strict=True))


def learning_rate(settings: TrainingConf, epoch: int, curve: Iterable[Line]) -> float:
    """Learning rate of an epoch, from 0: a fixed schedule, divided by ten at each plateau of the held-out loss."""
    rate = settings.learning_rate * settings.step_factor ** (epoch // settings.step_epochs)
    if settings.plateau_epochs is None:
        return rate
    best, waited = float("inf"), 0
    for line in curve:
        loss = line.get("held_out_loss", line["loss"])
        better = best == float("inf") or loss < best - 1e-3 * abs(best)
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited > settings.plateau_epochs:
            rate, waited = rate / 10, 0
    return rate


def engine_of(conf: EncoderRankConf, ranks: Ranks, *, device: str = "cpu") -> PlainEngine:
    """The first weights of an encoder and its loss, with Adam."""
    torch.manual_seed(conf.seed)
    objective = new_objective(Encoder(conf.fields, conf.encoder), conf.objective).to(device)
    settings = conf.training
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    optimizer = kind(objective.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return PlainEngine(objective, optimizer, ranks, clip=settings.clip)


def train_rank(conf: EncoderRankConf, report: Report) -> None:
    """Trains one rank on its share of the files; rank 0 leaves the encoder in `conf.result`."""
    ranks, device = started(conf)
    files = files_of(conf.histories, ranks)
    histories = Histories.from_files(files, conf.fields, conf.folder / f"arrays-{ranks.rank}")
    engine, task = engine_of(conf, ranks, device=device), Encoding(conf, histories, ranks, device=device)
    done = Training(engine, task, Checkpoints(conf.folder / "checkpoints", ranks), Pace(), report=report).run()
    if ranks.first:
        export(engine.module, conf)
        finished(conf, {"curve": done.curve})


def export(objective: torch.nn.Module, conf: EncoderRankConf) -> None:
    """Writes the encoder, without what only the loss needed."""
    assert isinstance(objective, Objective)
    encoder = objective.encoder
    card = EncoderCard(
        **conf.model_dump(include={"fields", "encoder", "objective", "training", "seed"}),
        parameters=sum(each.numel() for each in encoder.parameters()),
    )
    ENCODER_FILES.write(conf.result, encoder, card)
