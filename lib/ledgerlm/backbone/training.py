"""The training loop: next-token prediction over packs, the same on every rank, resumable at any step."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ledgerlm.backbone.checkpoints import TAG, newest, note_ranks
from ledgerlm.backbone.loss import CausalLoss, loss_inputs, views_of
from ledgerlm.backbone.metrics import read_metrics
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.settings import TrainingConf
from ledgerlm.backbone.store import Place, Reader
from ledgerlm.errors import ConfigError, DataError

# Ranks exchange the clock and the loss at every so many steps.
_BEAT = 20


class Engine(Protocol):
    """What the loop needs of a DeepSpeed engine around `CausalLoss`; the methods are DeepSpeed's."""

    module: CausalLoss
    optimizer: Any

    def __call__(
        self, pack_inputs: dict[str, Any], places: Tensor, targets: Tensor, views: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Summed loss of a pack."""

    def train(self, mode: bool = True) -> Any:
        """Training or evaluation."""

    def backward(self, loss: Tensor) -> Any:
        """Adds gradients."""

    def step(self) -> Any:
        """Changes the weights when the last pack of a step has been seen."""

    def save_checkpoint(self, save_dir: str, tag: str, client_state: dict[str, Any]) -> Any:
        """Writes this rank's part."""

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[Any, Any]:
        """Reads this rank's part; gives the path and what was stored with it."""


@dataclass(slots=True)
class Progress:
    """Where the training stands; stored with each checkpoint.

    Attributes:
        step: optimizer steps done.
        tokens: tokens read, over all ranks.
        seconds: spent in the loop.
        place: where reading stands.
        evaluated: held-out losses taken.
        best: lowest held-out loss so far, under `patience`.
        stale: evaluations since then.
        held_out: mean loss of each kind of text, of the weights that are the result; known when training has ended.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    place: Place = field(default_factory=Place)
    evaluated: int = 0
    best: float | None = None
    stale: int = 0
    held_out: dict[str, float | None] = field(default_factory=dict)


Report = Callable[[Mapping[str, float], Path | None], None]


class Training:
    """One rank's part of a training."""

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        held_out: Mapping[str, Sequence[Pack]],
        conf: TrainingConf,
        folder: Path,
        *,
        device: str = "cpu",
        report: Report | None = None,
        keep: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares a training and goes back to its newest checkpoint, if there is one.

        Args:
            engine: DeepSpeed engine, already initialised.
            reader: this rank's packs.
            held_out: for each kind of text this rank's packs that are not trained on; the first kind is the curve's.
            conf: settings.
            folder: where checkpoints and `metrics.jsonl` are kept; the same for all ranks.
            device: where the model is.
            report: told about each held-out loss and each checkpoint, on every rank alike.
            keep: called on every rank when, under `patience`, the held-out loss is the lowest so far.
            clock: seconds; only differences count.
        """
        self._engine, self._reader, self._ranks = engine, reader, reader.ranks
        self._held_out, self._conf, self._device = held_out, conf, device
        self._checkpoints, self._log = folder / "checkpoints", folder / "metrics.jsonl"
        self._report, self._keep, self._clock = report or _unheard, keep or _nothing, clock
        self._budget = math.ceil(reader.epoch_tokens() * conf.epochs)
        self._budget = min(self._budget, conf.max_tokens or self._budget)
        if self._budget < 1:
            raise DataError("there are no training windows; look at the documents and at finetune's formats")
        self._done = self._resume()
        self._saved_at = self._done.seconds

    @property
    def budget_tokens(self) -> int:
        """Tokens that the training will read, over all ranks."""
        return self._budget

    @property
    def share(self) -> float:
        """How much of the training is done, by tokens or by time, whichever is further."""
        done = self._done.tokens / self._budget
        if self._conf.max_minutes is not None:
            done = max(done, self._done.seconds / (60 * self._conf.max_minutes))
        return min(done, 1.0)

    @property
    def _ended(self) -> bool:
        return self.share >= 1.0 or (self._conf.patience is not None and self._done.stale >= self._conf.patience)

    def run(self) -> Progress:
        """Trains to the end of the budget, or until patience ends; returns where it ended."""
        self._engine.train()
        start = self._clock() - self._done.seconds
        losses = torch.zeros(2, dtype=torch.float64, device=self._device)
        before = (self._done.tokens, self._done.seconds)
        for step in self._reader.steps(self._done.place):
            if self._ended:
                break
            # What dropout leaves out depends on the place alone, so a resumed training leaves out the same.
            torch.manual_seed(hash((self._reader.seed, self._ranks.rank, self._done.step)) % (1 << 63))
            for group in self._engine.optimizer.param_groups:
                group["lr"] = self._conf.rate(self.share)
            losses += self._step(step.packs)
            self._done.step += 1
            self._done.tokens += step.tokens
            self._done.place = step.after
            if self._done.step % _BEAT == 0 or self._done.tokens >= self._budget:
                self._done.seconds = self._ranks.most(self._clock() - start)
                self._beat(losses, before)
                losses.zero_()
                before = (self._done.tokens, self._done.seconds)
                pause = self._clock()
                self._evaluate_if_due()
                self._save_if_due()
                # The held-out loss and checkpoints are not training time.
                start += self._clock() - pause
        if self._done.best is None:
            self._done.held_out = self._held_out_losses()
        return self._done

    def _step(self, packs: Sequence[Pack]) -> Tensor:
        """One optimizer step; returns the summed loss and how many tokens it is over."""
        summed = torch.zeros(2, dtype=torch.float64, device=self._device)
        for pack in packs:
            inputs, places, targets = loss_inputs(pack, self._device)
            views = views_of(pack, self._device) if self._conf.contrast else None
            loss = self._engine(inputs, places, targets, views)
            # Divided by what a full pack holds, so that each token weighs the same in whatever pack it stands.
            self._engine.backward(loss / self._reader.pack_tokens)
            self._engine.step()
            # The curve is of the next-token loss alone. Not read here: a GPU would have to stop for it.
            summed[0] += loss.detach() - self._engine.module.added
            summed[1] += len(targets)
        return summed

    def held_out_loss(self, kind: str) -> float | None:
        """Mean loss over the held-out packs of a kind, nats a token; None when there are none."""
        sums = np.zeros(2)
        with self._evaluating(), torch.no_grad():
            for pack in self._held_out[kind]:
                inputs, places, targets = loss_inputs(pack, self._device)
                sums += (self._engine.module(inputs, places, targets).item(), len(targets))
        total, count = self._ranks.total(sums)
        return float(total / count) if count else None

    def _held_out_losses(self) -> dict[str, float | None]:
        return {kind: self.held_out_loss(kind) for kind in self._held_out}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._engine.train(False)
        yield
        self._engine.train()

    def _evaluate_if_due(self) -> None:
        due = int(self.share * self._conf.evaluations)
        if due <= self._done.evaluated:
            return
        self._done.evaluated = due
        loss = self.held_out_loss(next(iter(self._held_out))) if self._held_out else None
        if loss is not None:
            self._write({"held_out_loss": loss})
            self._report({"step": self._done.step, "held_out_loss": loss}, None)
        if self._conf.patience is not None:
            self._weigh(loss)

    def _weigh(self, loss: float | None) -> None:
        """Keeps the weights when they are the best so far."""
        if loss is None:
            raise ConfigError("finetune's patience needs held-out documents; raise held_out or held_out_tokens")
        if self._done.best is not None and loss >= self._done.best:
            self._done.stale += 1
            return
        self._done.best, self._done.stale = loss, 0
        self._done.held_out = self._held_out_losses()
        self._keep()

    def _beat(self, losses: Tensor, before: tuple[int, float]) -> None:
        total, count = self._ranks.total(losses.cpu().numpy())
        if not math.isfinite(total):
            raise ConfigError(
                f"the loss is {total} at step {self._done.step}; lower finetune's learning_rate "
                f"({self._conf.learning_rate}) or raise warm_up ({self._conf.warm_up})"
            )
        tokens, seconds = self._done.tokens - before[0], self._done.seconds - before[1]
        self._write({"loss": total / count, "tokens_per_second": tokens / max(seconds, 1e-9)})

    def _write(self, values: Mapping[str, float]) -> None:
        if self._ranks.first:
            line = {"step": self._done.step, "tokens": self._done.tokens, "seconds": self._done.seconds, **values}
            line |= {"budget": self._budget, "share": self.share}
            with self._log.open("a") as log:
                log.write(json.dumps(line) + "\n")

    def _save_if_due(self) -> None:
        if self._done.seconds - self._saved_at >= 60 * self._conf.checkpoint_minutes and not self._ended:
            self._saved_at = self._done.seconds
            self.save()

    def save(self) -> None:
        """Writes a checkpoint: every rank its part, aside, then one rename."""
        aside = self._checkpoints / "aside"
        target = self._checkpoints / f"step-{self._done.step:09d}"
        if self._ranks.first:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self._ranks.wait()
        self._engine.save_checkpoint(str(aside), TAG, {**asdict(self._done), "ranks": self._ranks.size})
        note_ranks(aside, self._ranks)
        self._ranks.wait()
        if self._ranks.first:
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
            # The one before stays: whoever is told of checkpoints knows only that one yet.
            for older in sorted(self._checkpoints.glob("step-*"))[:-2]:
                shutil.rmtree(older, ignore_errors=True)
        self._ranks.wait()
        self._report({"step": self._done.step}, target)

    def _resume(self) -> Progress:
        found = newest(self._checkpoints)
        self._ranks.wait()
        state: dict[str, Any] = {}
        if found is not None:
            path, state = self._engine.load_checkpoint(str(found), TAG)
            if path is None:
                raise DataError(f"the checkpoint {found} cannot be read; delete it to start again")
        known = {one.name: state[one.name] for one in fields(Progress) if one.name in state}
        done = Progress(**known | {"place": Place(**state.get("place", {}))})
        if state.get("ranks", self._ranks.size) != self._ranks.size:
            # Other ranks share the windows in another way: the pass over them begins anew, the budget stands.
            done.place = Place(epoch=done.place.epoch)
        if self._ranks.first:
            self._cut_log(done.step)
        return done

    def _cut_log(self, step: int) -> None:
        """What was logged after the checkpoint will be logged again."""
        kept = [line for line in read_metrics(self._log) if line["step"] <= step] if step else []
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _unheard(_metrics: Mapping[str, float], _checkpoint: Path | None) -> None:
    pass


def _nothing() -> None:
    pass


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights for the optimizer: matrices decay, norms and biases do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
