"""The training loop: the same for every network and every engine, the same on every rank, resumable at any pause."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ledgerlm.errors import ConfigError
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.engine import Engine
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.settings import METRICS

HELD_OUT = "held_out_loss"
Line = dict[str, float]
Report = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading stands; enough to go on after a kill.

    Attributes:
        epoch: epochs finished.
        part: parts of the epoch finished, where it is read in parts.
        step: optimizer steps finished in the part.
    """

    epoch: int = 0
    part: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank reads for one optimizer step.

    Attributes:
        batches: one for each forward pass; as many on every rank and in every step.
        size: rows or tokens of the step over all ranks.
        after: where reading stands when the step is done.
        weight: what the loss of each batch is multiplied by, for one that is a sum over what the step learns.
    """

    batches: Sequence[Any]
    size: int
    after: Place
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss of a batch.

    Attributes:
        loss: to be minimised; the engine takes its mean over the step's batches and the ranks, times their weight.
        total: the loss that is shown, summed over `count`; left on its device, so that a GPU need not stop for it.
        count: what the shown loss and the metrics are means over.
        metrics: further means, over `count` as well.
        sums: numbers that are added up.
    """

    loss: Tensor
    total: Tensor
    count: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Progress:
    """Where a training stands; stored with each checkpoint.

    Attributes:
        step: optimizer steps done.
        seen: rows or tokens read, over all ranks.
        seconds: spent in the loop, held-out losses and checkpoints left out.
        place: where reading stands.
        evaluated: held-out losses taken.
        best: lowest held-out loss so far.
        stale: held-out losses since then.
        curve: what each pause showed: step, epoch, seen, seconds, share, loss, per_second, the task's own numbers.
    """

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    place: Place = field(default_factory=Place)
    evaluated: int = 0
    best: float | None = None
    stale: int = 0
    curve: list[Line] = field(default_factory=list)


class Task(ABC):
    """What a network adds to the loop."""

    @abstractmethod
    def steps(self, place: Place) -> Iterator[Step]:
        """This rank's steps from a place on; as many on every rank.

        It seeds torch where the next step wants it, so that every draw depends on seed and place alone.
        """

    @abstractmethod
    def loss(self, engine: Engine, batch: Any) -> Outcome:
        """Runs a batch."""

    @abstractmethod
    def share(self, done: Progress) -> float:
        """How much of the training is done, 0 to 1."""

    @abstractmethod
    def rate(self, done: Progress) -> float:
        """Learning rate of the step whose rows `done` counts as seen already, so that the first step learns."""

    def held_out(self, engine: Engine) -> Line:
        """Numbers of what is not trained on, the same on every rank; none where nothing is held out."""
        del engine
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """When a training pauses, and what it does then.

    Attributes:
        steps: optimizer steps between pauses; None: at the end of each epoch.
        evaluations: held-out losses over the training, the last at its end; None: one at each pause.
        patience: held-out losses without a lower one after which training ends; None: never.
        checkpoint_minutes: training time between checkpoints; 0: one at each pause.
    """

    steps: int | None = None
    evaluations: int | None = None
    patience: int | None = None
    checkpoint_minutes: float = 0.0


class Training:
    """One rank's part of a training.

    Attributes:
        done: where it stands.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        checkpoints: Checkpoints,
        pace: Pace,
        *,
        report: Report | None = None,
        keep: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares a training and goes back to its newest checkpoint, if there is one.

        Args:
            engine: around the module.
            task: what the network adds.
            checkpoints: their folder; the log, `metrics.jsonl`, stands beside it.
            pace: pauses.
            report: told the line of each pause with a held-out loss or a checkpoint, on every rank alike.
            keep: called on every rank when the weights are now the result: with patience whenever the held-out loss is
                the lowest so far, else at the end; the module is set to evaluation.
            clock: seconds; only differences count.
        """
        self._engine, self._task, self._checkpoints, self._pace = engine, task, checkpoints, pace
        self._ranks: Ranks = checkpoints.ranks
        self._log = checkpoints.folder.with_name(METRICS)
        self._report, self._keep, self._clock = report or _unheard, keep or _nothing, clock
        self.done = self._resume()
        self._saved_at = self.done.seconds

    @property
    def ended(self) -> bool:
        """Whether the budget is spent, or patience is at its end."""
        return self._task.share(self.done) >= 1.0 or self.impatient

    @property
    def impatient(self) -> bool:
        """Whether patience is at its end."""
        return self._pace.patience is not None and self.done.stale >= self._pace.patience

    def run(self) -> Progress:
        """Trains to the end of the budget, or until patience ends; returns where it ended."""
        self._engine.module.train()
        start = self._clock() - self.done.seconds
        sums = _Sums()
        for step in self._task.steps(self.done.place):
            if self.ended:
                break
            self._step(step, sums)
            pauses = self._pauses(step)
            self.done.place = step.after
            if pauses:
                self.done.seconds = self._ranks.most(self._clock() - start)
                pause = self._clock()
                self._pause(sums)
                sums = _Sums()
                # The held-out loss and checkpoints are not training time.
                start += self._clock() - pause
        if self._pace.patience is None:
            self._kept()
        return self.done

    def _step(self, step: Step, sums: _Sums) -> None:
        self.done.step += 1
        self.done.seen += step.size
        self._engine.set_rate(self._task.rate(self.done))
        for batch in step.batches:
            outcome = self._task.loss(self._engine, batch)
            self._engine.learn(outcome.loss * step.weight)
            sums.add(outcome)

    def _pauses(self, step: Step) -> bool:
        """Whether training pauses after a step; asked before `done.place` moves on."""
        if self._pace.steps is None:
            return step.after.epoch > self.done.place.epoch
        return self.done.step % self._pace.steps == 0 or self._task.share(self.done) >= 1.0

    def _pause(self, sums: _Sums) -> None:
        line = self._line(sums)
        evaluated = self._evaluate_if_due(line)
        self.done.curve.append(line)
        if self._ranks.first:
            with self._log.open("a") as log:
                log.write(json.dumps(line) + "\n")
        if evaluated and self._pace.patience is not None:
            self._weigh(line.get(HELD_OUT))
        saved = self._save_if_due()
        if evaluated or saved:
            self._report(line)

    def _line(self, sums: _Sums) -> Line:
        """What is logged of the steps since the last pause."""
        before = self.done.curve[-1] if self.done.curve else {"seen": 0.0, "seconds": 0.0}
        means = sums.means(self._ranks)
        if not math.isfinite(means["loss"]):
            raise ConfigError(
                f"the loss is {means['loss']} at step {self.done.step}; lower learning_rate, or let it rise more slowly"
            )
        seconds = self.done.seconds - before["seconds"]
        return {
            "step": float(self.done.step),
            "epoch": float(self.done.place.epoch),
            "seen": float(self.done.seen),
            "seconds": self.done.seconds,
            "share": self._task.share(self.done),
            "per_second": (self.done.seen - before["seen"]) / max(seconds, 1e-9),
            **means,
        }

    def _evaluate_if_due(self, line: Line) -> bool:
        every = self._pace.evaluations
        # Shares of whole epochs are not exact.
        due = self.done.evaluated + 1 if every is None else int(line["share"] * every + 1e-9)
        if due <= self.done.evaluated:
            return False
        self.done.evaluated = due
        with _evaluating(self._engine):
            line |= self._task.held_out(self._engine)
        return HELD_OUT in line or self._pace.patience is not None

    def _weigh(self, loss: float | None) -> None:
        """Keeps the weights when they are the best so far."""
        if loss is None:
            raise ConfigError("patience needs rows that are held out; raise held_out or held_out_tokens")
        if self.done.best is not None and not loss < self.done.best:  # a loss that is no number is no better, either
            self.done.stale += 1
            return
        self.done.best, self.done.stale = loss, 0
        self._kept()

    def _kept(self) -> None:
        with _evaluating(self._engine):
            self._keep()

    def _save_if_due(self) -> bool:
        if self.done.seconds - self._saved_at < 60 * self._pace.checkpoint_minutes or self.ended:
            return False
        self._saved_at = self.done.seconds
        self._checkpoints.write(self.done.step, asdict(self.done), self._engine.save)
        return True

    def _resume(self) -> Progress:
        found = self._checkpoints.newest()
        done = Progress()
        if found is not None:
            self._engine.load(found)
            state, ranks = self._checkpoints.progress(found)
            known = {one.name: state[one.name] for one in fields(Progress)}
            done = Progress(**known | {"place": Place(**state["place"])})
            if ranks != self._ranks.size:
                # Other ranks share the rows in another way: the pass over them begins anew, the budget stands.
                done.place = Place(epoch=done.place.epoch)
        if self._ranks.first:
            # What was logged after the checkpoint will be logged again.
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._log.write_text("".join(json.dumps(line) + "\n" for line in done.curve))
        return done


class EpochTask(Task):
    """A task that reads its rows in epochs, in batches of equally many rows on every rank.

    Attributes:
        ranks: the processes that train together.
        epochs: passes over the rows.
        seed: of the order and of all draws.
        size: rows of a batch on each rank.
        random: draws of the epoch that is read.
    """

    def __init__(self, ranks: Ranks, *, epochs: int, seed: int, size: int) -> None:
        self.ranks, self.epochs, self.seed, self.size = ranks, epochs, seed, size
        self.random = np.random.default_rng(seed)

    @abstractmethod
    def order(self) -> Iterable[NDArray[np.int64]]:
        """This rank's rows of each batch of an epoch; what goes beyond the rank with the fewest is left out."""

    @abstractmethod
    def batch(self, members: NDArray[np.int64]) -> Any:
        """The batch of some rows."""

    def steps(self, place: Place) -> Iterator[Step]:
        """The epochs that are left; every draw depends on seed, epoch and rank alone."""
        for epoch in range(place.epoch, self.epochs):
            self.random = np.random.default_rng((self.seed, epoch, self.ranks.rank))
            torch.manual_seed(int(self.random.integers(2**31)))
            order = list(self.order())
            steps = self.ranks.least(len(order))
            for number, members in enumerate(order[:steps], 1):
                after = Place(epoch, step=number) if number < steps else Place(epoch + 1)
                yield Step([self.batch(members)], self.size * self.ranks.size, after)

    def share(self, done: Progress) -> float:
        """Epochs done."""
        return done.place.epoch / self.epochs


def in_batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cuts an order of rows into full batches; what is left over goes unread."""
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


class _Sums:
    """What the steps since the last pause add up to, on this rank."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._count = 0
        self._means: dict[str, float] = defaultdict(float)
        self._sums: dict[str, float] = defaultdict(float)

    def add(self, outcome: Outcome) -> None:
        self._loss = self._loss + outcome.total.double()
        self._count += outcome.count
        for name, value in outcome.metrics.items():
            self._means[name] += value * outcome.count
        for name, value in outcome.sums.items():
            self._sums[name] += value

    def means(self, ranks: Ranks) -> Line:
        """Over all ranks: the mean loss and metrics, and the sums."""
        own = [float(self._loss), float(self._count), *self._means.values(), *self._sums.values()]
        loss, count, *others = ranks.total(np.array(own)).tolist()
        names = [*self._means, *self._sums]
        values = dict(zip(names, others, strict=True))
        means = {name: values[name] / max(count, 1.0) for name in self._means}
        return {"loss": loss / max(count, 1.0), **means, **{name: values[name] for name in self._sums}}


@contextmanager
def _evaluating(engine: Engine) -> Iterator[None]:
    engine.module.eval()
    with torch.no_grad():
        yield
    engine.module.train()


def _unheard(_line: Mapping[str, float]) -> None:
    pass


def _nothing() -> None:
    pass
