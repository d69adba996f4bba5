"""The training loop in one process: it learns, it goes on after a kill at the same loss, it obeys its budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ledgerlm.backbone.attention import register
from ledgerlm.backbone.causal import Causal, pace, parameter_groups
from ledgerlm.backbone.loss import CausalLoss, Learnt, _SummedLoss, contrastive_loss, loss_inputs, views_of
from ledgerlm.backbone.packs import Pack, pack
from ledgerlm.backbone.settings import TrainingConf
from ledgerlm.backbone.store import Reader, WindowStore, held_out_packs
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.files import restore, working_copy
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.engine import Engine, PlainEngine
from ledgerlm.training.log import read_metrics
from ledgerlm.training.loop import HELD_OUT, Line, Place, Training, _Sums
from ledgerlm.training.ranks import Ranks

VOCABULARY = 40
CONF = TrainingConf(
    batch_tokens=256, pack_tokens=256, learning_rate=1e-2, epochs=4, precision="fp32", evaluations=2, warm_up=0.1
)


def _model(dtype: torch.dtype = torch.float32) -> CausalLoss:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    config._attn_implementation = register()
    return CausalLoss(LlamaForCausalLM(config).to(dtype))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Windows that count up from a random number: easy to learn."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("windows")
    paths = []
    for part in range(2):
        rows = [(random.integers(VOCABULARY) + np.arange(random.integers(5, 60))) % VOCABULARY for _ in range(150)]
        kinds = random.choice(["compact", "enriched"], len(rows), p=[0.8, 0.2])
        clients = np.arange(len(rows)) // 2 + 1000 * part
        table = pa.table({"kind": kinds, "client": clients, "input_ids": pa.array(rows, pa.list_(pa.int32()))})
        paths.append(folder / f"part-{part}.parquet")
        pq.write_table(table, paths[-1], row_group_size=40)
    return paths


def _engine(model: CausalLoss, conf: TrainingConf, packs: int = 1) -> PlainEngine:
    optimizer = torch.optim.AdamW(parameter_groups(model, conf.weight_decay), betas=conf.betas, fused=True)
    return PlainEngine(model, optimizer, Ranks(), clip=conf.clip, batches_per_step=packs)


class Trained:
    """A training of a small Llama in this process, with its engine and its task."""

    def __init__(
        self,
        files: list[Path],
        folder: Path,
        conf: TrainingConf = CONF,
        held_out: Mapping[str, list[Pack]] | None = None,
        **settings: Any,
    ) -> None:
        store = WindowStore.build(files, ["compact", "enriched"], folder / "tokens")
        pack_tokens, packs = conf.packing(1)
        reader = Reader(store, {"compact": 1.0, "enriched": 0.5}, pack_tokens, packs, 7, Ranks())
        if held_out is None:
            held_out = {"compact": held_out_packs(store, "compact", Ranks(), most_tokens=600, pack_tokens=256)}
        self.engine = _engine(_model(), conf, packs)
        self.task = self.make_task(reader, held_out, conf)
        self.loop = Training(
            self.engine, self.task, Checkpoints(folder / "checkpoints", Ranks()), pace(conf), **settings
        )

    def make_task(self, reader: Reader, held_out: Mapping[str, list[Pack]], conf: TrainingConf) -> Causal:
        return Causal(reader, held_out, conf)

    def held_out_loss(self) -> float:
        self.engine.module.eval()
        with torch.no_grad():
            found = self.task.held_out(self.engine)[HELD_OUT]
        self.engine.module.train()
        return found

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.engine.module.state_dict().items()}


def test_the_loss_falls_and_is_logged(files: list[Path], tmp_path: Path) -> None:
    heard: list[Mapping[str, float]] = []
    trained = Trained(files, tmp_path, report=heard.append)
    before = trained.held_out_loss()
    done = trained.loop.run()
    assert before > 3.5 and trained.held_out_loss() < 1.5
    assert trained.task.budget <= done.seen < trained.task.budget + CONF.batch_tokens
    log = read_metrics(tmp_path / "metrics.jsonl")
    assert log == done.curve and [line["step"] for line in log[:3]] == [20, 40, 60]
    assert log[0]["loss"] > 2 * log[-1]["loss"]
    assert log[-1]["share"] == 1.0
    assert len([line for line in log if HELD_OUT in line]) == len(heard) == 2


def test_the_first_step_learns(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"max_tokens": 30_000, "warm_up": 0.3, "weight_decay": 0.0})
    trained = Trained(files, tmp_path, conf)
    before = trained.weights()
    first = next(trained.task.steps(Place()))
    trained.loop._step(first, _Sums())
    moved = max(float((before[name] - now).abs().max()) for name, now in trained.weights().items())
    # Adam's first step is as long as the rate, which has risen for one step of the warm-up.
    assert moved == pytest.approx(conf.learning_rate * first.size / (0.3 * 30_000), rel=0.01)


def test_one_seed_gives_the_same_weights(files: list[Path], tmp_path: Path) -> None:
    few = CONF.model_copy(update={"max_tokens": 10_000})
    one, other = (Trained(files, tmp_path / name, few) for name in ("one", "other"))
    assert one.loop.run().seen == other.loop.run().seen
    for name, weight in one.weights().items():
        assert torch.equal(weight, other.weights()[name]), name


def test_resume_after_a_kill_equals_the_uninterrupted_run(files: list[Path], tmp_path: Path) -> None:
    whole = Trained(files, tmp_path / "whole")
    ended = whole.loop.run()

    class Killed(Exception):
        pass

    def die(line: Mapping[str, float]) -> None:
        if line["step"] >= 60:
            raise Killed

    often = CONF.model_copy(update={"checkpoint_minutes": 1e-9})
    for _ in range(2):  # killed at step 60; then its own log has lines beyond what the next one knows
        with pytest.raises(Killed):
            Trained(files, tmp_path / "cut", often, report=die).loop.run()
    resumed = Trained(files, tmp_path / "cut", CONF)
    assert resumed.loop.done.step == 80
    assert resumed.loop.run().place == ended.place
    assert resumed.held_out_loss() == whole.held_out_loss()
    expected = [line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    found = [line["loss"] for line in read_metrics(tmp_path / "cut" / "metrics.jsonl")]
    assert found == expected


def test_another_machine_goes_on_from_the_checkpoint_at_the_url(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working copy of the first machine is lost with it; what it had pushed is enough."""
    fsspec.filesystem("memory").store.clear()
    stopped: list[float] = []

    def stop(line: Mapping[str, float]) -> None:
        stopped.append(line["step"])
        if line["step"] >= 60:
            raise KeyboardInterrupt

    often = CONF.model_copy(update={"checkpoint_minutes": 1e-9})
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "one"))
    first = working_copy("memory://bank/out").folder / "staging" / "train"
    with pytest.raises(KeyboardInterrupt):
        Trained(files, first, often, report=stop).loop.run()
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "two"))
    second = restore(working_copy("memory://bank/out").folder / "staging" / "train")
    assert [one.name for one in (second / "checkpoints").glob("step-*") if one.is_dir()] == [
        f"step-{stopped[-1]:09.0f}"
    ]
    resumed = Trained(files, second, CONF)
    assert resumed.loop.done.step == stopped[-1]
    assert (second / "metrics.jsonl").read_text().count("\n") == len(resumed.loop.done.curve) > 0
    fsspec.filesystem("memory").store.clear()


def test_budgets_of_tokens_and_minutes(files: list[Path], tmp_path: Path) -> None:
    few = CONF.model_copy(update={"max_tokens": 5000})
    assert 5000 <= Trained(files, tmp_path / "tokens", few).loop.run().seen < 5000 + CONF.batch_tokens
    now = iter(range(1_000_000))
    short = CONF.model_copy(update={"max_minutes": 0.1})
    done = Trained(files, tmp_path / "time", short, clock=lambda: float(next(now))).loop.run()
    assert done.step % 20 == 0 and done.seconds >= 6


class Told(Causal):
    """Held-out losses that are told instead of taken."""

    given: ClassVar[list[float]] = []

    def held_out(self, engine: Engine) -> Line:
        return {HELD_OUT: self.given.pop(0)}


class ToldTraining(Trained):
    def make_task(self, reader: Reader, held_out: Mapping[str, list[Pack]], conf: TrainingConf) -> Causal:
        return Told(reader, held_out, conf)


def test_patience_ends_the_training_and_keeps_the_best_weights(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"patience": 2, "evaluations": 20})
    kept: list[tuple[int, dict[str, Tensor]]] = []
    trained: ToldTraining = ToldTraining(
        files, tmp_path, conf, keep=lambda: kept.append((trained.loop.done.step, trained.weights()))
    )
    Told.given = [3.0, 2.5, 2.0, 2.2, 2.1, 1.0]
    done = trained.loop.run()
    assert trained.loop.impatient and trained.task.share(done) < 1.0
    assert (done.best, done.stale, len(kept)) == (2.0, 2, 3) and Told.given == [1.0]
    assert kept[-1][0] < done.step
    assert any(not torch.equal(kept[-1][1][name], now) for name, now in trained.weights().items())


def test_without_patience_the_last_weights_are_kept(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"evaluations": 4})
    kept: list[dict[str, Tensor]] = []
    trained: ToldTraining = ToldTraining(files, tmp_path, conf, keep=lambda: kept.append(trained.weights()))
    Told.given = [1.0, 2.0, 3.0, 4.0]
    trained.loop.run()
    assert len(kept) == 1 and all(torch.equal(kept[0][name], now) for name, now in trained.weights().items())


def test_patience_survives_a_kill(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"patience": 3, "evaluations": 10, "checkpoint_minutes": 1e-9})
    Trained(files, tmp_path, conf).loop.run()
    again = Trained(files, tmp_path, conf)
    assert again.loop.done.best is not None and again.loop.done.best < 3
    with pytest.raises(ConfigError, match="held_out"):
        Trained(files, tmp_path / "none", conf, held_out={}).loop.run()


def test_other_ranks_go_on_with_the_same_budget(files: list[Path], tmp_path: Path) -> None:
    often = CONF.model_copy(update={"checkpoint_minutes": 1e-9})
    Trained(files, tmp_path, often).loop.run()
    [*_, newest] = sorted((tmp_path / "checkpoints").glob("step-*"))
    stored = json.loads((newest / "progress.json").read_text())
    place = stored["progress"]["place"]
    assert place["step"] > 0 and stored["ranks"] == 1
    (newest / "progress.json").write_text(json.dumps(stored | {"ranks": 2}))
    resumed = Trained(files, tmp_path, often)
    assert resumed.loop.done.seen == stored["progress"]["seen"]
    assert resumed.loop.done.place == Place(epoch=place["epoch"])


def test_divergence_is_told(files: list[Path], tmp_path: Path) -> None:
    trained = Trained(files, tmp_path)
    with torch.no_grad():
        next(trained.engine.module.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="learning_rate"):
        trained.loop.run()


def test_no_windows_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training windows"):
        Trained([], tmp_path)


def test_the_order_depends_on_seed_and_place_alone(files: list[Path], tmp_path: Path) -> None:
    store = WindowStore.build(files, ["compact", "enriched"], tmp_path / "tokens")
    store = replace(store, clients=np.arange(len(store.kinds)))  # so that packs tell their windows
    reader = Reader(store, {"compact": 1.0, "enriched": 0.5}, 256, 2, 3, Ranks())
    steps = [step for step, _ in zip(reader.steps(Place()), range(60), strict=False)]
    again = [step for step, _ in zip(reader.steps(steps[29].after), range(30), strict=False)]
    for left, right in zip(steps[30:], again, strict=True):
        assert (left.after, left.size, left.weight) == (right.after, right.size, right.weight)
        assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(left.batches, right.batches, strict=True))
    epochs = [
        np.concatenate([batch.owners for step in steps if step.after.epoch == epoch for batch in step.batches])
        for epoch in (0, 1)
    ]
    assert not np.array_equal(epochs[0], epochs[1])
    compact = set(np.flatnonzero(store.kinds == 0).tolist())
    for seen in epochs:
        assert len(set(seen.tolist())) == len(seen), "a window is read once an epoch"
        assert len(compact - set(seen.tolist())) < 20, "only the last packs may be left out"
    enriched = [set(seen.tolist()) - compact for seen in epochs]
    assert all(abs(len(part) - (store.kinds == 1).sum() / 2) <= 6 for part in enriched)
    assert enriched[0] != enriched[1]


def test_loss_and_gradients_equal_the_plain_head() -> None:
    random = np.random.default_rng(5)
    row = pack([random.integers(0, VOCABULARY, length).astype(np.int32) for length in (1, 4, 9, 30)], range(4))
    inputs, places, targets = loss_inputs(row)
    sliced, plain = _model(), _model()
    total = sliced(inputs, places, targets)
    logits = plain.model(**inputs).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[places], targets, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert len(targets) == 3 + 8 + 29
    (total / 7).backward()
    (expected / 7).backward()
    for (name, left), right in zip(sliced.named_parameters(), plain.parameters(), strict=True):
        assert left.grad is not None and right.grad is not None
        torch.testing.assert_close(left.grad, right.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_contrastive_loss_is_that_of_the_formula() -> None:
    """Three windows, the first two of one client; the third has no partner and only repels."""
    states = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 5.0], [3.0, 4.0]], requires_grad=True)
    lengths, clients = torch.tensor([2, 1, 1]), torch.tensor([7, 7, 9])
    found = contrastive_loss(states, lengths, clients, temperature=0.5)
    # Cosines: the first two 0, first and third 0.6, second and third 0.8.
    shares = [1 / (1 + np.exp(0.6 / 0.5)), 1 / (1 + np.exp(0.8 / 0.5))]
    assert found.item() == pytest.approx(-np.mean(np.log(shares)))
    alone = contrastive_loss(states, lengths, torch.tensor([1, 2, 3]), temperature=0.5)
    assert alone.item() == 0
    (found + alone).backward()
    assert states.grad is not None and states.grad.isfinite().all()


def test_the_contrastive_term_draws_windows_of_a_client_together(tmp_path: Path) -> None:
    """Clients differ by two favourite tokens; the term lowers the distance it speaks of; the curve leaves it out."""
    random = np.random.default_rng(5)
    favourites = random.integers(4, VOCABULARY, (24, 2))
    rows = [[1, *random.choice([*favourites[n // 4], *range(4, 12)], 15)] for n in range(96)]
    table = pa.table({"kind": ["compact"] * 96, "client": [n // 4 for n in range(96)], "input_ids": rows})
    pq.write_table(table, tmp_path / "part.parquet")
    store = WindowStore.build([tmp_path / "part.parquet"], ["compact"], tmp_path / "tokens")
    reader = Reader(store, {"compact": 1.0}, 256, 1, 0, Ranks(), in_pairs=True)

    def distance(weight: float) -> float:
        conf = CONF.model_copy(update={"contrast": weight, "epochs": 12})
        model = _model()
        model.contrast = weight
        folder = tmp_path / f"run-{weight}"
        checkpoints = Checkpoints(folder / "checkpoints", Ranks())
        Training(_engine(model, conf), Causal(reader, {}, conf), checkpoints, pace(conf)).run()
        assert read_metrics(folder / "metrics.jsonl")[-1]["loss"] < np.log(VOCABULARY)
        pack = store.pack(np.arange(96))
        inputs, *_ = loss_inputs(pack)
        with torch.no_grad():
            states = model.model.base_model(**inputs).last_hidden_state[0]
        return contrastive_loss(states, *views_of(pack), temperature=0.1).item()

    assert distance(1.0) < distance(0.0) - 0.3


def test_dropout_is_there_in_training_alone_and_leaves_the_model_as_it_is() -> None:
    plain, dropping = _model(), CausalLoss(_model().model, dropout=0.5)
    random = np.random.default_rng(3)
    inputs = loss_inputs(pack([random.integers(VOCABULARY, size=30).astype(np.int32)], [0]))
    dropping.train()
    torch.manual_seed(1)
    once, again = dropping(*inputs).item(), dropping(*inputs).item()
    torch.manual_seed(1)
    assert dropping(*inputs).item() == once != again
    dropping.eval()
    assert dropping(*inputs).item() == plain(*inputs).item()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ConfigError, match="knows the blocks of Llama"):
        CausalLoss(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)), dropout=0.1)


def test_only_the_tokens_told_compete() -> None:
    whole = _model()
    narrow = CausalLoss(whole.model, among=((9,), (4,), (20,)))
    inputs, *_ = loss_inputs(pack([np.array([3, 7, 1, 5, 2], np.int32)], [0]))
    places, targets = torch.tensor([0, 2, 4]), torch.tensor([20, 4, 9])
    narrow(inputs, places, targets).backward()
    found = {name: weight.grad.clone() for name, weight in whole.model.named_parameters() if weight.grad is not None}
    whole.zero_grad()
    logits = whole.model(**inputs).logits[0, places][:, [4, 9, 20]]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0, 1]), reduction="sum")
    torch.testing.assert_close(narrow(inputs, places, targets), expected)
    assert expected < whole(inputs, places, targets) - 1
    whole.zero_grad()
    expected.backward()
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)


def test_a_large_vocabulary_is_multiplied_in_rows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of logits hold 2^20 numbers, but no fewer than 128 rows, whatever the vocabulary."""
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def counted(states: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(states))
        return linear(states, weight)

    monkeypatch.setattr("ledgerlm.backbone.loss.functional.linear", counted)
    states, weight = torch.randn(300, 2), torch.randn(49_152, 2)
    places, targets = torch.arange(300), torch.arange(300)
    _SummedLoss.apply(states, weight, Learnt(places, targets))
    assert rows == [128, 128, 44]


def test_a_head_that_does_more_than_multiply_is_refused() -> None:
    model = _model().model
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        CausalLoss(model)


@pytest.mark.parametrize(("ranks", "expected"), [(1, (2048, 1)), (2, (1024, 1)), (8, (256, 1))])
def test_packing_shares_a_step_among_ranks(ranks: int, expected: tuple[int, int]) -> None:
    assert TrainingConf().packing(ranks) == expected
    assert TrainingConf(batch_tokens=100_000, pack_tokens=4096).packing(2) == (3847, 13)


def test_the_rate_rises_then_falls() -> None:
    conf = TrainingConf(learning_rate=1.0, warm_up=0.1, final_rate=0.1)
    rates = [conf.rate(share) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])
