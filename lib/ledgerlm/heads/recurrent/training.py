"""The training loop: the same in a test's process, alone, and as one of several workers of Ray Train."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ledgerlm.backbone.cpu import keep_freed_memory
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.baselines.sequence.batches import Batch, drop_events
from ledgerlm.baselines.sequence.checkpoint import average_gradients, load_checkpoint, save_checkpoint
from ledgerlm.errors import DataError
from ledgerlm.heads.calibration import Calibrator, fit_calibrator
from ledgerlm.heads.recurrent.model import Inputs, Network
from ledgerlm.heads.recurrent.rows import Rows, batches_alike, batches_in_order
from ledgerlm.heads.recurrent.settings import RecurrentCard, WorkerConf
from ledgerlm.heads.recurrent.store import load_recurrent, save_recurrent
from ledgerlm.heads.tasks import Floats, Task

Report = Callable[[Mapping[str, float]], None]
TRAINING = "training.json"


class Training:
    """One process's part of training a head, epoch by epoch, from the last checkpoint on.

    Attributes:
        network: the network; after `run` with the weights of the best epoch.
        curve: what each finished epoch showed: epoch, loss, held_out_loss, held_out_accuracy, rows, events, seconds.
    """

    def __init__(self, conf: WorkerConf, rows: Rows, held: Rows, ranks: Ranks) -> None:
        self.conf, self.rows, self.held, self.ranks = conf, rows, held, ranks
        torch.manual_seed(conf.seed)
        self.network = Network(conf.shape, conf.network, conf.task.outputs).to(conf.device)
        if conf.base is not None:
            start_from(self.network, conf.task, *load_recurrent(conf.base))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=conf.learning.learning_rate, weight_decay=conf.learning.weight_decay
        )
        self.curve: list[dict[str, float]] = []
        self.weights = self._class_weights()
        size = max(2, conf.learning.batch // ranks.size)
        if ranks.least(len(rows)) < size or ranks.least(len(held)) < 1:
            raise DataError(
                f"task {conf.task.name}: {len(rows)} training and {len(held)} held-out rows on this worker, but a step "
                f"takes {size}; lower learning.batch or workers.count"
            )
        self.size = size

    def _class_weights(self) -> Tensor:
        counts = self.ranks.total(np.bincount(self.rows.labels, minlength=self.conf.task.outputs))
        if counts.min() == 0:
            name = self.conf.task.class_names[int(counts.argmin())]
            raise DataError(f"task {self.conf.task.name}: no training client of class '{name}'; leave the class out")
        power = {"none": 0.0, "root": 0.5, "balanced": 1.0}[self.conf.learning.class_weights]
        weights = (counts.sum() / (len(counts) * counts)) ** power
        return torch.tensor(weights, dtype=torch.float32, device=self.conf.device)

    def run(self, report: Report) -> None:
        """Trains until the held-out loss no longer falls, and takes back the best weights."""
        best: dict[str, Tensor] = load_checkpoint(self.conf.folder, self.network, self.optimizer, self.curve)
        while len(self.curve) < self.conf.learning.epochs and not self._stopped():
            began = time.monotonic()
            epoch = len(self.curve)
            line = {"epoch": float(epoch + 1), **self._epoch(epoch), **self._held_out()}
            line["seconds"] = time.monotonic() - began
            self.curve.append(line)
            if self._best() == epoch:
                best = copy.deepcopy(self.network.state_dict())
            save_checkpoint(self.conf.folder, self.network, self.optimizer, self.curve, self.ranks, beside=best)
            report(line)
        self.network.load_state_dict(best)

    def _best(self) -> int:
        """Epoch (from 0) with the smallest held-out loss."""
        return int(np.argmin([line["held_out_loss"] for line in self.curve]))

    def _stopped(self) -> bool:
        return bool(self.curve) and len(self.curve) - 1 - self._best() >= self.conf.learning.patience

    def _epoch(self, epoch: int) -> dict[str, float]:
        """One pass over this worker's rows, in step with the others; every draw depends on seed and epoch alone."""
        random = np.random.default_rng((self.conf.seed, epoch, self.ranks.rank))
        torch.manual_seed(int(random.integers(2**31)))
        self._set_rate(epoch)
        self.network.train()
        sums = np.zeros(3)
        batches = list(batches_alike(self.rows.histories.lengths, self.size, random))
        for members in batches[: self.ranks.least(len(batches))]:
            drawn = self._drawn(members)
            labels = torch.from_numpy(self.rows.labels[members]).to(self.conf.device)
            loss = functional.cross_entropy(self.network(drawn), labels, weight=self.weights)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            average_gradients(list(self.network.parameters()), self.ranks)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.conf.learning.clip)
            self.optimizer.step()
            sums += (float(loss.detach()) * len(members), len(members), float(drawn.events.lengths.sum()))
        loss_sum, rows, events = self.ranks.total(sums).tolist()
        return {"loss": loss_sum / rows, "rows": rows, "events": events}

    def _set_rate(self, epoch: int) -> None:
        share = epoch / self.conf.learning.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.conf.learning.learning_rate * (0.55 + 0.45 * float(np.cos(np.pi * share)))

    def _drawn(self, members: NDArray[np.int64]) -> Inputs:
        rows = self.rows.batch(members)
        events = drop_events(rows.events, self.conf.learning.event_dropout)
        return _to(Inputs(events, rows.metadata, rows.context), self.conf.device)

    def _held_out(self) -> dict[str, float]:
        """Loss without weights, and accuracy, over all held-out rows."""
        raw = raw_scores(self.network, self.held)
        labels = torch.from_numpy(self.held.labels)
        losses = functional.cross_entropy(torch.from_numpy(raw), labels, reduction="sum")
        right = float((raw.argmax(axis=1) == self.held.labels).sum())
        loss, hits, rows = self.ranks.total(np.array([float(losses), right, len(self.held)])).tolist()
        return {"held_out_loss": loss / rows, "held_out_accuracy": hits / rows}


@torch.no_grad()
def start_from(network: Network, task: Task, base: Network, card: RecurrentCard) -> None:
    """Takes over the weights of another head, those of the last layer for the classes that both know by name.

    Args:
        network: what will be trained for `task`; changed.
        task: its task.
        base: a head with the same events, metadata and shape.
        card: its card.
    """
    last = f"dense.{len(network.dense) - 1}."
    known = base.state_dict()
    own = network.state_dict()
    network.load_state_dict({name: own[name] if name.startswith(last) else value for name, value in known.items()})
    theirs = card.task.class_names
    shared = [(place, theirs.index(name)) for place, name in enumerate(task.class_names) if name in theirs]
    for place, other in shared:
        for part in ("weight", "bias"):
            own[last + part][place] = known[last + part][other]


def raw_scores(network: Network, rows: Rows) -> Floats:
    """Raw scores of rows, rows x classes; those of like length share a batch."""
    device = str(next(network.parameters()).device)
    found = np.empty((len(rows), network.classes), np.float64)
    network.eval()
    with torch.inference_mode():
        for members in batches_in_order(rows.histories.lengths):
            found[members] = network(_to(rows.batch(members), device)).double().cpu().numpy()
    return found


def _to(rows: Inputs, device: str) -> Inputs:
    events: Batch = rows.events.to(device)
    return Inputs(events, rows.metadata.to(device), rows.context.to(device))


def as_raw(scores: Floats, task: Task) -> Floats:
    """Raw scores as calibration takes them: the log-odds of the second of two classes, else one a class."""
    return scores[:, 1:] - scores[:, :1] if task.kind == "binary" else scores


def train_rank(conf: WorkerConf, report: Report) -> None:
    """Trains one worker on its share of the files; the first leaves head and `training.json` in `conf`'s folders.

    Args:
        conf: all settings; a process group exists if there are several workers.
        report: given the numbers of each epoch.
    """
    torch.set_num_threads(conf.threads)
    keep_freed_memory()
    ranks = Ranks.current()
    parts = {
        held: sorted((conf.rows / f"held={held}").glob("*.parquet"))[ranks.rank :: ranks.size]
        for held in ("false", "true")
    }
    if ranks.least(min(len(files) for files in parts.values())) < 1:
        raise DataError(f"task {conf.task.name}: too few clients to hold some out on each worker; lower workers.count")
    rows, held = (
        Rows.from_files(files, conf.shape, conf.folder / f"arrays-{name}-{ranks.rank}") for name, files in parts.items()
    )
    training = Training(conf, rows, held, ranks)
    training.run(report)
    counts = ranks.total(np.array([len(rows), len(held)]))
    if ranks.first:
        export(training, int(counts[0]), int(counts[1]))


def export(training: Training, rows: int, held: int) -> None:
    """Calibrates the network on this worker's held-out rows and writes it."""
    conf = training.conf
    raw = as_raw(raw_scores(training.network, training.held), conf.task)
    calibration: Calibrator = fit_calibrator(
        conf.learning.calibration, raw, training.held.labels.astype(np.float64), conf.task
    )
    card = RecurrentCard(
        **conf.model_dump(include={"task", "inputs", "shape", "network", "learning", "seed", "as_of"}),
        calibration=calibration,
        parameters=sum(each.numel() for each in training.network.parameters()),
        training_rows=rows,
        held_out_rows=held,
    )
    save_recurrent(conf.result, training.network, card)
    file: Path = conf.folder / TRAINING
    file.write_text(json.dumps(training.curve), encoding="utf-8")
