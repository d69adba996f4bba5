"""The training loop in one process: it learns, it goes on after a kill at the same loss, it obeys its budgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ledgerlm.backbone.attention import register
from ledgerlm.backbone.loss import CausalLoss, contrastive_loss, loss_inputs, views_of
from ledgerlm.backbone.metrics import read_metrics
from ledgerlm.backbone.packs import pack
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.backbone.settings import TrainingConf
from ledgerlm.backbone.store import Place, Reader, WindowStore
from ledgerlm.backbone.training import Training, parameter_groups
from ledgerlm.errors import ConfigError, DataError

VOCABULARY = 40
CONF = TrainingConf(
    batch_tokens=256, pack_tokens=256, learning_rate=1e-2, epochs=4, precision="fp32", evaluations=2, warm_up=0.1
)


class PlainEngine:
    """DeepSpeed's interface over plain torch, for one process."""

    def __init__(self, model: CausalLoss, conf: TrainingConf, packs_per_step: int = 1) -> None:
        self.module = model
        self.optimizer = torch.optim.AdamW(parameter_groups(model, conf.weight_decay), betas=conf.betas, fused=True)
        self._packs, self._seen = packs_per_step, 0

    def __call__(
        self, pack_inputs: dict[str, Any], places: Tensor, targets: Tensor, views: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        loss: Tensor = self.module(pack_inputs, places, targets, views)
        return loss

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def backward(self, loss: Tensor) -> None:
        (loss / self._packs).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self._seen += 1
        if self._seen % self._packs == 0:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), CONF.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save_checkpoint(self, save_dir: str, tag: str, client_state: dict[str, Any]) -> None:
        state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "client": client_state}
        torch.save(state, Path(save_dir, tag))

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str, dict[str, Any]]:
        state = torch.load(Path(load_dir, tag), weights_only=False)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        client: dict[str, Any] = state["client"]
        return load_dir, client


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
        table = pa.table({"kind": kinds, "input_ids": pa.array(rows, pa.list_(pa.int32()))})
        paths.append(folder / f"part-{part}.parquet")
        pq.write_table(table, paths[-1], row_group_size=40)
    return paths


def _training(
    files: list[Path],
    folder: Path,
    conf: TrainingConf = CONF,
    held_out: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Training:
    store = WindowStore.build(files, ["compact", "enriched"], folder / "tokens.bin")
    pack_tokens, packs = conf.packing(1)
    reader = Reader(store, {"compact": 1.0, "enriched": 0.5}, pack_tokens, packs, 7, Ranks())
    if held_out is None:
        held_out = {"compact": store.packs_of("compact", token_budget=256, most_tokens=600)}
    return Training(PlainEngine(_model(), conf, packs), reader, held_out, conf, folder, **settings)


def test_the_loss_falls_and_is_logged(files: list[Path], tmp_path: Path) -> None:
    heard: list[Mapping[str, float]] = []
    training = _training(files, tmp_path, report=lambda metrics, checkpoint: heard.append(metrics))
    before = training.held_out_loss("compact")
    done = training.run()
    after = training.held_out_loss("compact")
    assert before is not None and after is not None
    assert before > 3.5 and after < 1.5
    assert training.budget_tokens <= done.tokens < training.budget_tokens + CONF.batch_tokens
    log = read_metrics(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[0] > 2 * losses[-1]
    assert log[-1]["share"] == 1.0
    assert len([line for line in log if "held_out_loss" in line]) == len(heard) == 2


def test_resume_after_a_kill_equals_the_uninterrupted_run(files: list[Path], tmp_path: Path) -> None:
    whole = _training(files, tmp_path / "whole")
    ended = whole.run()

    class Killed(Exception):
        pass

    def die(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if checkpoint is not None and metrics["step"] >= 60:
            raise Killed

    often = CONF.model_copy(update={"checkpoint_minutes": 1e-9})
    for _ in range(2):  # killed at step 60; then its own log has lines beyond what the next one knows
        with pytest.raises(Killed):
            _training(files, tmp_path / "cut", often, report=die).run()
    resumed = _training(files, tmp_path / "cut", CONF)
    assert resumed._done.step == 80
    assert resumed.run().place == ended.place
    assert resumed.held_out_loss("compact") == whole.held_out_loss("compact")
    expected = [line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    found = [line["loss"] for line in read_metrics(tmp_path / "cut" / "metrics.jsonl") if "loss" in line]
    assert found == expected


def test_budgets_of_tokens_and_minutes(files: list[Path], tmp_path: Path) -> None:
    few = CONF.model_copy(update={"max_tokens": 5000})
    assert 5000 <= _training(files, tmp_path / "tokens", few).run().tokens < 5000 + CONF.batch_tokens
    now = iter(range(1_000_000))
    short = CONF.model_copy(update={"max_minutes": 0.1})
    done = _training(files, tmp_path / "time", short, clock=lambda: float(next(now))).run()
    assert done.step % 20 == 0 and done.seconds >= 6


def test_patience_ends_the_training_and_keeps_the_best_weights(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"patience": 2, "evaluations": 20})
    kept: list[tuple[int, dict[str, Tensor]]] = []
    training = _training(files, tmp_path, conf, keep=lambda: kept.append((training._done.step, weights())))

    def weights() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in training._engine.module.state_dict().items()}

    given = iter([3.0, 2.5, 2.0, 2.2, 2.1, 1.0])
    training.held_out_loss = lambda kind: next(given)  # type: ignore[method-assign]
    training._held_out_losses = lambda: {"compact": 2.0}  # type: ignore[method-assign]
    done = training.run()
    assert training.share < 1.0
    assert (done.best, done.stale, len(kept)) == (2.0, 2, 3) and list(given) == [1.0]
    assert kept[-1][0] < done.step and done.held_out == {"compact": 2.0}
    assert any(not torch.equal(kept[-1][1][name], now) for name, now in weights().items())


def test_patience_survives_a_kill(files: list[Path], tmp_path: Path) -> None:
    conf = CONF.model_copy(update={"patience": 3, "evaluations": 10, "checkpoint_minutes": 1e-9})
    whole = _training(files, tmp_path, conf)
    whole.run()
    again = _training(files, tmp_path, conf)
    assert again._done.best is not None and again._done.best < 3
    assert again._done.held_out.keys() == {"compact"}
    with pytest.raises(ConfigError, match="held_out"):
        _training(files, tmp_path / "none", conf, held_out={}).run()


def test_other_ranks_go_on_with_the_same_budget(files: list[Path], tmp_path: Path) -> None:
    often = CONF.model_copy(update={"checkpoint_minutes": 1e-9})
    _training(files, tmp_path, often).run()
    [*_, newest] = sorted((tmp_path / "checkpoints").glob("step-*"))
    state = torch.load(newest / "state", weights_only=False)
    place = state["client"]["place"]
    assert place["step"] > 0 and (newest / "ranks").read_text() == "1"
    torch.save(state | {"client": state["client"] | {"ranks": 2}}, newest / "state")
    resumed = _training(files, tmp_path, often)
    assert resumed._done.tokens == state["client"]["tokens"]
    assert resumed._done.place == Place(epoch=place["epoch"])


def test_divergence_is_told(files: list[Path], tmp_path: Path) -> None:
    training = _training(files, tmp_path)
    with torch.no_grad():
        next(training._engine.module.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="learning_rate"):
        training.run()


def test_no_windows_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training windows"):
        _training([], tmp_path)


def test_the_order_depends_on_seed_and_place_alone(files: list[Path], tmp_path: Path) -> None:
    store = WindowStore.build(files, ["compact", "enriched"], tmp_path / "tokens.bin")
    reader = Reader(store, {"compact": 1.0, "enriched": 0.5}, 256, 2, 3, Ranks())
    steps = [step for step, _ in zip(reader.steps(Place()), range(60), strict=False)]
    again = [step for step, _ in zip(reader.steps(steps[29].after), range(30), strict=False)]
    for left, right in zip(steps[30:], again, strict=True):
        assert left.after == right.after and left.tokens == right.tokens
        assert all(np.array_equal(a.owners, b.owners) for a, b in zip(left.packs, right.packs, strict=True))
    epochs = [
        np.concatenate([pack.owners for step in steps if step.after.epoch == epoch for pack in step.packs])
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
    store = WindowStore.build([tmp_path / "part.parquet"], ["compact"], tmp_path / "tokens.bin")
    reader = Reader(store, {"compact": 1.0}, 256, 1, 0, Ranks(), in_pairs=True)

    def distance(weight: float) -> float:
        conf = CONF.model_copy(update={"contrast": weight, "epochs": 12})
        model = _model()
        model.contrast = weight
        folder = tmp_path / f"run-{weight}"
        Training(PlainEngine(model, conf), reader, {}, conf, folder).run()
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
    narrow = CausalLoss(whole.model, among=(9, 4, 20))
    inputs, *_ = loss_inputs(pack([np.array([3, 7, 1, 5, 2], np.int32)], [0]))
    places, targets = torch.tensor([1, 3, 4]), torch.tensor([20, 4, 9])
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
