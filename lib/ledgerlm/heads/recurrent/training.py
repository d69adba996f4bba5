"""A head that reads events, as a task of the training loop, and what one rank of its training does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ledgerlm.baselines.sequence.batches import Batch, drop_events
from ledgerlm.errors import DataError
from ledgerlm.heads.calibration import Calibrator, fit_calibrator
from ledgerlm.heads.recurrent.model import Inputs, Network
from ledgerlm.heads.recurrent.rows import Rows, batches_alike, batches_in_order
from ledgerlm.heads.recurrent.settings import HEAD_FILES, PARTS, HeadRankConf, RecurrentCard
from ledgerlm.heads.recurrent.store import load_recurrent
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.training.checkpoints import BestWeights, Checkpoints
from ledgerlm.training.engine import Engine, PlainEngine
from ledgerlm.training.launch import finished, started
from ledgerlm.training.loop import EpochTask, Line, Outcome, Pace, Progress, Report, Training
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.settings import cosine
from ledgerlm.training.store import files_of

_FINAL_RATE = 0.1


class Classifying(EpochTask):
    """Labelled rows and their cross-entropy; the engine's module is a `Network`.

    Attributes:
        weights: of each class in the loss.
    """

    def __init__(self, conf: HeadRankConf, rows: Rows, stop: Rows, ranks: Ranks, *, device: str = "cpu") -> None:
        """Prepares the task.

        Args:
            conf: settings.
            rows: this rank's rows to learn from.
            stop: this rank's rows that choose the epoch.
            ranks: the processes that train together.
            device: where the network is.

        Raises:
            DataError: rows are too few, or show no row of a class.
        """
        size = max(2, conf.learning.batch // ranks.size)
        super().__init__(ranks, epochs=conf.learning.epochs, seed=conf.seed, size=size)
        self._conf, self._rows, self._stop, self._device = conf, rows, stop, device
        self.weights = self._class_weights()
        if ranks.least(len(rows)) < size or not ranks.total(np.array([len(stop)]))[0]:
            raise DataError(
                f"task {conf.task.name}: {len(rows)} training and {len(stop)} held-out rows on this rank, but a step "
                f"takes {size}; lower learning.batch or workers.ranks, or raise learning.held_out"
            )

    def _class_weights(self) -> Tensor:
        task = self._conf.task
        counts = self.ranks.total(np.bincount(self._rows.labels, minlength=task.outputs))
        if counts.min() == 0:
            name = task.class_names[int(counts.argmin())]
            raise DataError(f"task {task.name}: no training client of class '{name}'; leave the class out")
        power = {"none": 0.0, "root": 0.5, "balanced": 1.0}[self._conf.learning.class_weights]
        weights = (counts.sum() / (len(counts) * counts)) ** power
        return torch.tensor(weights, dtype=torch.float32, device=self._device)

    def order(self) -> Iterable[NDArray[np.int64]]:
        """This rank's rows, those of like length together."""
        return batches_alike(self._rows.histories.lengths, self.size, self.random)

    def batch(self, members: NDArray[np.int64]) -> tuple[Inputs, Tensor]:
        """Some rows without a few of their events, and their labels."""
        rows = self._rows.batch(members)
        events = drop_events(rows.events, self._conf.learning.event_dropout)
        labels = torch.from_numpy(self._rows.labels[members]).to(self._device)
        return _to(Inputs(events, rows.metadata, rows.context), self._device), labels

    def loss(self, engine: Engine, batch: tuple[Inputs, Tensor]) -> Outcome:
        """Cross-entropy, a mean over the batch by the weights of the classes."""
        inputs, labels = batch
        loss = functional.cross_entropy(engine(inputs), labels, weight=self.weights)
        rows = len(labels)
        sums = {"rows": float(rows), "events": float(inputs.events.lengths.sum())}
        return Outcome(loss, loss.detach() * rows, rows, sums=sums)

    def rate(self, done: Progress) -> float:
        """That of the epoch: a cosine down to a tenth."""
        return self._conf.learning.learning_rate * cosine(done.place.epoch / self.epochs, final=_FINAL_RATE)

    def held_out(self, engine: Engine) -> Line:
        """Loss without weights, and accuracy, over the rows of all ranks that choose the epoch."""
        assert isinstance(engine.module, Network)
        raw = raw_scores(engine.module, self._stop)
        labels = torch.from_numpy(self._stop.labels)
        losses = functional.cross_entropy(torch.from_numpy(raw), labels, reduction="sum")
        right = float((raw.argmax(axis=1) == self._stop.labels).sum())
        loss, hits, rows = self.ranks.total(np.array([float(losses), right, len(labels)])).tolist()
        return {"held_out_loss": loss / rows, "held_out_accuracy": hits / rows}


def engine_of(conf: HeadRankConf, ranks: Ranks, *, device: str = "cpu") -> PlainEngine:
    """The first weights, or those of the base, with AdamW."""
    torch.manual_seed(conf.seed)
    network = Network(conf.shape, conf.network, conf.task.outputs).to(device)
    if conf.base is not None:
        start_from(network, conf.task, *load_recurrent(conf.base))
    learning = conf.learning
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning.learning_rate, weight_decay=learning.weight_decay)
    return PlainEngine(network, optimizer, ranks, clip=learning.clip)


def trained(conf: HeadRankConf, engine: Engine, task: Classifying, report: Report | None = None) -> Progress:
    """Trains until the held-out loss no longer falls; leaves the network with the weights of the best epoch."""
    best = BestWeights(conf.folder, engine.module, task.ranks)
    checkpoints, pace = Checkpoints(conf.folder / "checkpoints", task.ranks), Pace(patience=conf.learning.patience)
    done = Training(engine, task, checkpoints, pace, report=report, keep=best.keep).run()
    best.restore()
    return done


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


def train_rank(conf: HeadRankConf, report: Report) -> None:
    """Trains one rank on its share of the files; rank 0 leaves the head in `conf.result`."""
    ranks, device = started(conf)
    parts = [
        Rows.from_files(
            files_of(conf.rows / f"part={part}", ranks), conf.shape, conf.folder / f"arrays-{part}-{ranks.rank}"
        )
        for part in PARTS
    ]
    rows, stop, calibrate = parts
    engine = engine_of(conf, ranks, device=device)
    done = trained(conf, engine, Classifying(conf, rows, stop, ranks, device=device), report)
    counts = ranks.total(np.array([len(part) for part in parts])).astype(int).tolist()
    assert isinstance(engine.module, Network)
    raw, y = ranks.together(raw_scores(engine.module, calibrate)), ranks.together(calibrate.labels)
    if not len(y):
        raise DataError(f"task {conf.task.name}: no row to calibrate on; raise learning.held_out")
    if ranks.first:
        calibration = fit_calibrator(conf.learning.calibration, as_raw(raw, conf.task), y.astype(np.float64), conf.task)
        export(conf, engine.module, calibration, counts)
        finished(conf, {"curve": done.curve})


def export(conf: HeadRankConf, network: Network, calibration: Calibrator, rows: list[int]) -> None:
    """Writes a trained head; `rows` are those of each of `PARTS`."""
    card = RecurrentCard(
        **conf.model_dump(include={"task", "inputs", "shape", "network", "learning", "seed", "as_of"}),
        calibration=calibration,
        parameters=sum(each.numel() for each in network.parameters()),
        training_rows=rows[0],
        held_out_rows=rows[1],
        calibration_rows=rows[2],
    )
    HEAD_FILES.write(conf.result, network, card)
