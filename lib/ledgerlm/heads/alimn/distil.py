"""Distillation: a small student learns a large teacher's states and next tokens by the KL divergence (section 3.1.3).

The source gives KL(softmax h_T || softmax h_S) on the outputs of teacher and student. At the level of representations h
is the state of a whole sentence: the student's is brought to the teacher's width by a matrix that is thrown away
afterwards, and the teacher may have any size and tokenizer, since Spark reads its states beforehand. At the level of
tokens h are the logits of each next token, which needs one tokenizer for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ledgerlm.backbone.attention import model_inputs
from ledgerlm.backbone.loss import loss_inputs
from ledgerlm.backbone.model import load_backbone, new_llama
from ledgerlm.backbone.packs import Ids, Pack, pack
from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.losses import divergence
from ledgerlm.heads.alimn.settings import DistilRankConf, DistilTrainingConf
from ledgerlm.heads.alimn.training import refuse_sharded
from ledgerlm.text.tokenizer import load_tokenizer, window_start
from ledgerlm.training.artefacts import aside, finish
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.engine import DeepSpeedEngine, Engine
from ledgerlm.training.launch import finished, started
from ledgerlm.training.loop import EpochTask, Outcome, Pace, Progress, Report, Training, in_batches
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.settings import cosine


class Distillation(nn.Module):
    """The student with its loss; the teacher stands beside it and is not trained."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel | None, width: int, conf: DistilTrainingConf
    ) -> None:
        super().__init__()
        self.student, self.conf = student, conf
        own = student.config.hidden_size
        # Off the module list: the teacher's weights are nobody's parameters here.
        self._teacher = (teacher,)
        self.widen = nn.Linear(own, width, bias=False) if conf.representation and own != width else nn.Identity()

    def forward(self, some: Pack, states: Tensor) -> Tensor:
        """The weighted sum of the losses.

        Args:
            some: sentences, each a window.
            states: the teacher's state of each window of the pack, `[S, d]`.
        """
        inputs, places, targets = loss_inputs(some, states.device)
        found = self.student.base_model(**inputs).last_hidden_state[0]
        logits = functional.linear(found[places], self.student.get_output_embeddings().weight).float()
        loss = self.conf.next_token * functional.cross_entropy(logits, targets)
        teacher = self._teacher[0]
        if teacher is not None and self.conf.token:
            with torch.no_grad():
                known = teacher.base_model(**model_inputs(some, states.device)).last_hidden_state[0][places]
                wanted = functional.linear(known, teacher.get_output_embeddings().weight)
            loss = loss + self.conf.token * divergence(wanted, logits, self.conf.temperature)
        if self.conf.representation:
            own = self.widen(sentence_states(found, some))
            loss = loss + self.conf.representation * divergence(states, own, self.conf.temperature)
        return loss


def sentence_states(tokens: Tensor, some: Pack) -> Tensor:
    """Mean over each window's tokens but its BOS, `[S, d]`, from the states `[T, d]` of a pack."""
    lengths = torch.from_numpy(some.lengths).long().to(tokens.device)
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    inner = torch.from_numpy(some.position_ids > 0).to(tokens.device)
    sums = torch.zeros(len(lengths), tokens.shape[1], device=tokens.device).index_add(0, owner[inner], tokens[inner])
    return sums / (lengths - 1).clamp(min=1)[:, None]


class Distilling(EpochTask):
    """Different sentences and what the teacher made of them; the engine's module is a `Distillation`."""

    def __init__(
        self, conf: DistilRankConf, windows: Sequence[Ids], states: NDArray[np.float32], ranks: Ranks, *, device: str
    ) -> None:
        """Prepares the task.

        Args:
            conf: settings.
            windows: token ids of all sentences.
            states: the teacher's states of them.
            ranks: the processes that train together.
            device: where the models are.

        Raises:
            DataError: they are too few for a step.
        """
        size = max(1, conf.training.batch // ranks.size)
        super().__init__(ranks, epochs=conf.training.epochs, seed=conf.seed, size=size)
        self._conf, self._windows, self._states, self._device = conf, windows, states, device
        self._mine = np.arange(len(windows))[ranks.rank :: ranks.size]
        if ranks.least(len(self._mine)) < size:
            raise DataError(f"{len(windows)} different sentences are too few for a step of {conf.training.batch}")

    def order(self) -> Iterable[NDArray[np.int64]]:
        """This rank's sentences, shuffled."""
        return in_batches(self.random.permutation(self._mine), self.size)

    def batch(self, members: NDArray[np.int64]) -> tuple[Pack, Tensor]:
        """Some sentences as a pack, and the teacher's state of each of its windows."""
        some = pack([self._windows[place] for place in members], members)
        return some, torch.from_numpy(self._states[some.owners]).to(self._device)

    def loss(self, engine: Engine, batch: tuple[Pack, Tensor]) -> Outcome:
        """The weighted sum of the losses."""
        loss = engine(*batch)
        return Outcome(loss, loss.detach())

    def rate(self, done: Progress) -> float:
        """That of the epoch: a cosine down to zero."""
        return self._conf.training.learning_rate * cosine(done.place.epoch / self.epochs, final=0.0)


def distil_rank(conf: DistilRankConf, report: Report) -> None:
    """Trains the student on one rank. Rank 0 leaves it in `conf.result`."""
    refuse_sharded(conf.deepspeed)
    ranks, device = started(conf)
    windows, states = _sentences(conf)
    task = Distilling(conf, windows, states, ranks, device=device)
    student = new_llama(conf.shape, load_tokenizer(conf.tokenizer), context=conf.context, seed=conf.seed)
    teacher = load_backbone(conf.teacher).eval().requires_grad_(requires_grad=False) if conf.teacher else None
    loss = Distillation(student, teacher.to(device) if teacher else None, states.shape[1], conf.training).to(device)
    checkpoints = Checkpoints(conf.folder / "checkpoints", ranks)
    optimizer = torch.optim.Adam(loss.parameters(), lr=conf.training.learning_rate)
    engine = DeepSpeedEngine(loss, optimizer, checkpoints, conf.deepspeed, clip=conf.training.clip)
    done = Training(engine, task, checkpoints, Pace(), report=report).run()
    if ranks.first:
        draft = aside(conf.result)
        student.save_pretrained(draft)
        load_tokenizer(conf.tokenizer).save_pretrained(draft)
        finish(draft, conf.result)
        finished(conf, {"curve": done.curve})
    ranks.wait()


def _sentences(conf: DistilRankConf) -> tuple[Sequence[NDArray[np.int32]], NDArray[np.float32]]:
    """Token ids of each different sentence with its BOS, and the teacher's states."""
    files = sorted(conf.rows.glob("*.parquet"))
    table: pa.Table = pa.concat_tables([pq.read_table(path) for path in files]).sort_by("text").combine_chunks()
    tokenizer = load_tokenizer(conf.tokenizer)
    start = window_start(tokenizer)
    codes = tokenizer(table.column("text").to_pylist(), add_special_tokens=False)["input_ids"]
    windows = [np.array([start, *ids[: conf.context - 1]], np.int32) for ids in codes]
    known = np.array([len(window) > 1 for window in windows])
    states = table.column("state").combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    kept = [window for window, good in zip(windows, known, strict=True) if good]
    return kept, states.reshape(len(table), -1)[known]
