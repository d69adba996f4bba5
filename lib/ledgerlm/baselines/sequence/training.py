"""The training loop: the same in a test's process, alone, and as one of several workers of Ray Train."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ledgerlm.backbone.cpu import keep_freed_memory
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.baselines.sequence.batches import Histories, draw_slices
from ledgerlm.baselines.sequence.checkpoint import average_gradients, load_checkpoint, save_checkpoint
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.objective import Objective
from ledgerlm.baselines.sequence.settings import EncoderCard, RankConf
from ledgerlm.baselines.sequence.store import new_objective, save_encoder
from ledgerlm.errors import DataError

Report = Callable[[Mapping[str, float]], None]
# Steps that the held-out loss is averaged over at the most; its batches are the same in every epoch.
_HELD_OUT_STEPS = 20


class Training:
    """One process's part of training an encoder, epoch by epoch, from the last checkpoint on.

    Attributes:
        objective: the loss with its encoder.
        curve: what each finished epoch showed: epoch, loss, held_out_loss, the method's metrics, events, seconds.
    """

    def __init__(self, conf: RankConf, histories: Histories, ranks: Ranks) -> None:
        self.conf, self.histories, self.ranks = conf, histories, ranks
        torch.manual_seed(conf.seed)
        self.objective: Objective = new_objective(Encoder(conf.fields, conf.encoder), conf.objective).to(conf.device)
        settings = conf.training
        kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
        self.optimizer = kind(
            self.objective.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.curve: list[dict[str, float]] = []
        self._train, self._held_out = self._split()

    def _split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        long = np.flatnonzero(self.histories.lengths >= self.conf.training.min_events)
        mixed = np.random.default_rng((self.conf.seed, self.ranks.rank)).permutation(long)
        kept = round(self.conf.training.held_out * len(mixed))
        if self.ranks.least(len(mixed) - kept) < self._batch:
            raise DataError(
                f"{len(mixed) - kept} training histories of {self.conf.training.min_events} events and more on this "
                f"worker, but a step takes {self._batch}; lower training.batch, training.min_events or workers.count"
            )
        return mixed[kept:], mixed[:kept]

    @property
    def _batch(self) -> int:
        return max(2, self.conf.training.batch // self.ranks.size)

    def run(self, report: Report) -> None:
        """Trains the epochs that are left; each ends with a checkpoint and a report."""
        load_checkpoint(self.conf.folder, self.objective, self.optimizer, self.curve)
        for epoch in range(len(self.curve), self.conf.training.epochs):
            began = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(epoch)
            line = {"epoch": float(epoch + 1), **self._epoch(epoch), **self._held_out_numbers()}
            line["seconds"] = time.monotonic() - began
            self.curve.append(line)
            save_checkpoint(self.conf.folder, self.objective, self.optimizer, self.curve, self.ranks)
            report(line)

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 0: a fixed schedule, divided by ten at each plateau of the held-out loss."""
        settings = self.conf.training
        rate = settings.learning_rate * settings.step_factor ** (epoch // settings.step_epochs)
        if settings.plateau_epochs is None:
            return rate
        best, waited = float("inf"), 0
        for line in self.curve:
            loss = line.get("held_out_loss", line["loss"])
            better = best == float("inf") or loss < best - 1e-3 * abs(best)
            best, waited = (loss, 0) if better else (best, waited + 1)
            if waited > settings.plateau_epochs:
                rate, waited = rate / 10, 0
        return rate

    def _epoch(self, epoch: int) -> dict[str, float]:
        """One pass over this worker's clients, in step with the others; every draw depends on seed and epoch alone."""
        random = np.random.default_rng((self.conf.seed, epoch, self.ranks.rank))
        torch.manual_seed(int(random.integers(2**31)))
        order = random.permutation(self._train)
        self.objective.train()
        sums: dict[str, float] = defaultdict(float)
        steps = self.ranks.least(len(order) // self._batch)
        for step in range(steps):
            members = order[step * self._batch : (step + 1) * self._batch]
            batch = draw_slices(self.histories, members, self.conf.objective, random).to(self.conf.device)
            outcome = self.objective(batch)
            self.optimizer.zero_grad()
            outcome.loss.backward()
            average_gradients(list(self.objective.parameters()), self.ranks)
            if self.conf.training.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.conf.training.clip)
            self.optimizer.step()
            sums["events"] += float(batch.lengths.sum())
            for name, value in {"loss": float(outcome.loss.detach()), **outcome.metrics}.items():
                sums[name] += value
        total = dict(zip(sums, self.ranks.total(np.array(list(sums.values()))).tolist(), strict=True))
        return {name: value if name == "events" else value / (steps * self.ranks.size) for name, value in total.items()}

    @torch.no_grad()
    def _held_out_numbers(self) -> dict[str, float]:
        """Mean loss and metrics over held-out clients; the workers' are averaged."""
        torch.manual_seed(self.conf.seed)
        random = np.random.default_rng(self.conf.seed)
        self.objective.eval()
        size = min(self._batch, len(self._held_out))
        steps = self.ranks.least(min(_HELD_OUT_STEPS, len(self._held_out) // size if size > 1 else 0))
        sums: dict[str, float] = defaultdict(float)
        for step in range(steps):
            members = self._held_out[step * size : (step + 1) * size]
            outcome = self.objective(
                draw_slices(self.histories, members, self.conf.objective, random).to(self.conf.device)
            )
            for name, value in {"loss": float(outcome.loss), **outcome.metrics}.items():
                sums[f"held_out_{name}"] += value / steps
        total = self.ranks.total(np.array(list(sums.values()))) / self.ranks.size
        return dict(zip(sums, total.tolist(), strict=True))


def train_rank(conf: RankConf, report: Report) -> None:
    """Trains one worker on its share of the files; the first leaves encoder and `training.json` in `conf.result`.

    Args:
        conf: all settings; a process group exists if there are several workers.
        report: given the numbers of each epoch.
    """
    torch.set_num_threads(conf.threads)
    keep_freed_memory()
    ranks = Ranks.current()
    files = sorted(conf.histories.glob("*.parquet"))[ranks.rank :: ranks.size]
    histories = Histories.from_files(files, conf.fields, conf.folder / f"arrays-{ranks.rank}")
    training = Training(conf, histories, ranks)
    training.run(report)
    if ranks.first:
        export(training)


def export(training: Training) -> None:
    """Writes the encoder, without what only the loss needed."""
    conf, encoder = training.conf, training.objective.encoder
    card = EncoderCard(
        **conf.model_dump(include={"fields", "encoder", "objective", "training", "seed"}),
        parameters=sum(each.numel() for each in encoder.parameters()),
    )
    save_encoder(conf.result, encoder, card)
    (conf.result / "training.json").write_text(json.dumps(training.curve))
