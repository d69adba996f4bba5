"""ALIMN's formulas, one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ledgerlm.backbone.model import new_llama, run_pack
from ledgerlm.backbone.packs import pack
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.alimn.adapters import BlockAdapters, peft_adapters
from ledgerlm.heads.alimn.batches import Rows, clients_of
from ledgerlm.heads.alimn.distil import Distillation, sentence_states
from ledgerlm.heads.alimn.late import fit_stacking, late_logit
from ledgerlm.heads.alimn.losses import alimn_loss, divergence, squared_size
from ledgerlm.heads.alimn.network import Alimn, Batch, DomainAdapters, Output, gated_fusion, segment_softmax
from ledgerlm.heads.alimn.scoring import explained
from ledgerlm.heads.alimn.settings import DistilTrainingConf, FusionRankConf, NetworkConf, Shape
from ledgerlm.heads.alimn.training import NetworkTraining
from ledgerlm.heads.vectors import Block
from ledgerlm.text.tokenizer import train_tokenizer
from ledgerlm.training.ranks import Ranks

SHAPE = Shape(features=5, state=6, domains=2)
BLOCKS = (Block(column="s0_structured", group="structured", sparse=True, names=tuple("abcde")),)
DOMAINS = ("marketing", "product")


def clients(seed: int = 0, rows: int = 7) -> pa.RecordBatch:
    """Clients with none to six sentences in up to three documents."""
    generator = np.random.default_rng(seed)
    told = [
        [
            {
                "document": place // 2,
                "domain": DOMAINS[(row + place) % 2],
                "state": generator.normal(size=6).astype(np.float32).tolist(),
                "text": f"sentence {place} of {row}",
            }
            for place in range(row)
        ]
        for row in range(rows)
    ]
    features = [list(zip("abcde", generator.normal(size=5).tolist(), strict=True)) for _ in range(rows)]
    return pa.RecordBatch.from_pydict(
        {
            "client_id": pa.array([f"c{row}" for row in range(rows)]),
            "s0_structured": pa.array(features, pa.map_(pa.string(), pa.float32())),
            "sentences": pa.array(
                told,
                pa.list_(
                    pa.struct(
                        [
                            ("document", pa.int32()),
                            ("domain", pa.string()),
                            ("state", pa.list_(pa.float32())),
                            ("text", pa.string()),
                        ]
                    )
                ),
            ),
        }
    )


def batch(rows: int = 7) -> Batch:
    return clients_of(clients(rows=rows), BLOCKS, DOMAINS).batch(np.arange(rows), (np.arange(rows) % 2).astype(float))


def network(**settings: object) -> Alimn:
    torch.manual_seed(1)
    return Alimn(NetworkConf.model_validate({"width": 4, "adapter": 3, **settings}), SHAPE).eval()


def test_the_weights_of_the_branches_stay_on_the_simplex() -> None:
    branches = network().branches
    assert branches.mix is not None
    for values in ([0.0, 0.0, 0.0, 0.0], [5.0, -3.0, 0.1, 40.0]):
        branches.mix.data = torch.tensor(values)
        assert float(branches.alpha.detach().sum()) == pytest.approx(1.0, abs=1e-6)
        assert bool((branches.alpha >= 0).all())


def test_the_gate_at_its_ends_gives_one_side_only() -> None:
    e, x = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(gated_fusion(torch.ones(3, 4), e, x), e)
    assert torch.equal(gated_fusion(torch.zeros(3, 4), e, x), x)
    model, some = network(), batch()
    assert model.gate is not None and model.structured is not None and model.text is not None
    for bias, side in (
        (60.0, model.text(some, model.standardised_states(some.states))),
        (-60.0, model.structured(some.x)),
    ):
        nn.init.zeros_(model.gate.weight)
        nn.init.constant_(model.gate.bias, bias)
        assert torch.allclose(model.fused(some), side, atol=1e-6)


def test_segments_are_softmaxed_apart() -> None:
    weights = segment_softmax(torch.tensor([1.0, 1.0, 100.0, 3.0]), torch.tensor([0, 0, 2, 2]), 3)
    assert weights.tolist() == pytest.approx([0.5, 0.5, 1.0, 0.0], abs=1e-6)


def test_cross_attention_is_the_formula() -> None:
    model, some = network(), batch()
    assert model.text is not None and model.text.cross is not None
    cross, owner = model.text.cross, some.client[some.document]
    sentences = torch.randn(len(some.states), 4)
    found = cross(sentences, some.x, owner)
    for row in (0, 3, 9):
        x = some.x[owner[row]][:, None]
        keys, values = x * cross.keys[0] + cross.keys[1], x * cross.values[0] + cross.values[1]
        weights = torch.softmax(cross.query(sentences[row]) @ keys.T / math.sqrt(4), 0)
        assert torch.allclose(found[row], weights @ values, atol=1e-5)


def test_divergence_of_equal_distributions_is_zero() -> None:
    one = torch.randn(4, 9)
    assert float(divergence(one, one)) == pytest.approx(0.0, abs=1e-6)
    assert float(divergence(one, one + 3.0, temperature=2.0)) == pytest.approx(0.0, abs=1e-6)
    other = torch.randn(4, 9)
    p, q = torch.softmax(one, 1), torch.softmax(other, 1)
    assert float(divergence(one, other)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)


def test_a_closed_adapter_is_the_identity_and_an_open_one_touches_its_domain_only() -> None:
    adapters, states, domains = DomainAdapters(2, 6, 3), torch.randn(5, 6), torch.tensor([0, 1, 0, 1, 1])
    assert torch.equal(adapters(states, domains), states)
    nn.init.ones_(adapters.up.data[1])
    changed = (adapters(states, domains) != states).any(1)
    assert changed.tolist() == [False, True, False, True, True]


class _Backbone(nn.Module):
    """As much of a backbone as adapters look at: frozen blocks that hand their states on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.base_model = self
        self.config = type("Config", (), {"hidden_size": 6})()

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


def test_adapters_in_blocks_are_switched_by_the_domain() -> None:
    backbone = _Backbone()
    adapters = BlockAdapters(backbone, DOMAINS, 3)
    states = torch.randn(1, 4, 6)
    for one in adapters.of_block:
        assert isinstance(one, DomainAdapters)
        nn.init.ones_(one.up.data[1])
    assert torch.equal(backbone(states), states)
    with adapters.opened("marketing"):
        assert torch.equal(backbone(states), states)
    with adapters.opened("product"):
        assert not torch.equal(backbone(states), states)
    assert torch.equal(backbone(states), states)
    with pytest.raises(ConfigError, match="no adapters for domain 'legal'"), adapters.opened("legal"):
        pass


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"fusion": "mean"}, "gate"),
        ({"cross_attention": False}, "text.cross"),
        ({"hierarchical_attention": False}, "text.of_"),
        ({"adapter": 0}, "text.adapters"),
        ({"branches": ["relu"]}, "branches.mix"),
        ({"inputs": "structured"}, "text"),
        ({"inputs": "text"}, "structured"),
    ],
)
def test_a_piece_that_is_switched_off_leaves_its_parameters_out(settings: dict[str, object], gone: str) -> None:
    whole = {name for name, _ in network().named_parameters()}
    reduced = {name for name, _ in network(**settings).named_parameters()}
    assert any(name.startswith(gone) for name in whole)
    assert not any(name.startswith(gone) for name in reduced)
    assert network(**settings)(batch()).logit.shape == (7,)


def test_the_auxiliary_term_is_taken_before_the_residual() -> None:
    model, some = network(branches=["identity", "identity"]), batch()
    for linear in model.branches.linear:
        nn.init.eye_(linear.weight)  # type: ignore[arg-type]
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    # Branches that give z back are at no distance from z; after the residual they would be at the size of z.
    assert float(model(some).auxiliary.detach()) == pytest.approx(0.0, abs=1e-10)
    assert float(network(auxiliary=0.0)(some).auxiliary) == 0.0
    assert float(network()(some).auxiliary.detach()) > 0


def test_the_loss_is_the_sum_of_its_parts() -> None:
    logit, y = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    parameters = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    assert float(squared_size(parameters)) == 14.0
    conf = NetworkConf(l2=0.1, auxiliary=0.5)
    bce = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-2.0))) / 2
    loss = alimn_loss(Output(logit=logit, auxiliary=torch.tensor(4.0)), y, parameters, conf)
    assert float(loss) == pytest.approx(bce + 1.4 + 2.0, rel=1e-5)


def test_a_client_scores_alike_in_any_company() -> None:
    model, everyone = network(), clients_of(clients(), BLOCKS, DOMAINS)
    together = model(everyone.batch(np.arange(7))).logit.detach()
    for row in (0, 3, 6):
        alone = model(everyone.batch(np.array([row]))).logit.detach()
        assert float(alone[0]) == pytest.approx(float(together[row]), abs=1e-5)
    shuffled = model(everyone.batch(np.array([6, 0, 3]))).logit
    assert torch.allclose(shuffled, together[[6, 0, 3]], atol=1e-5)


def test_training_clients_set_the_scale_of_features_and_states(tmp_path: Path) -> None:
    """Whatever the unit of a column, the network sees it with deviation 1, as the training clients have it."""
    told, held_out = clients_of(clients(rows=12), BLOCKS, DOMAINS), np.arange(12) >= 9
    other = replace(told, x=told.x * np.array([1, 100, 0.01, 7, 1], np.float32) + np.float32(3))
    one_network = {"net": NetworkConf(task="t", width=4, adapter=3)}
    conf = FusionRankConf(rows=tmp_path, folder=tmp_path, networks=one_network, blocks=BLOCKS, domains=DOMAINS, seed=5)
    y, keys = {"t": (np.arange(12) % 2).astype(float)}, pa.table({"client_id": [f"c{n}" for n in range(12)]})
    networks = [
        NetworkTraining(conf, "net", Rows(clients=some, labels=y, held_out=held_out, keys=keys), Ranks()).network.eval()
        for some in (told, other)
    ]
    one, two = (model(some.batch(np.arange(12))).logit for model, some in zip(networks, (told, other), strict=True))
    assert torch.allclose(one, two, atol=1e-4)
    seen = networks[1].standardised_features(torch.from_numpy(other.x[:9])).double()
    assert torch.allclose(seen.mean(0), torch.zeros(5).double(), atol=1e-3)
    assert torch.allclose(seen.std(0, correction=0), torch.ones(5).double(), atol=1e-3)
    states = networks[0].standardised_states(torch.from_numpy(told.states[told.owners < 9]))
    assert torch.allclose(states.mean(0), torch.zeros(6), atol=1e-4)


def test_reasons_name_what_moved_the_score() -> None:
    model, everyone = network(fusion="mean", adapter=0, cross_attention=False), clients_of(clients(), BLOCKS, DOMAINS)
    logit, reasons = explained(model, everyone, BLOCKS, 2)
    assert logit.shape == (7,)
    told = reasons.to_pylist()
    assert all(len(one) == 2 for one in told)
    assert all(abs(one[0]["contribution"]) >= abs(one[1]["contribution"]) for one in told)
    assert {reason["feature"] for reason in told[0]} <= set("abcde"), "nothing was said about the first client"
    assert any(reason["feature"].startswith('"sentence') for one in told for reason in one)
    assert explained(model, everyone, BLOCKS, 0)[1].to_pylist() == [[]] * 7
    # A number that is the training clients' mean is no reason.
    model.feature_mean.copy_(torch.from_numpy(everyone.x[0]))
    assert explained(model, everyone, BLOCKS, 2)[1].to_pylist()[0] == []


def test_a_slice_of_a_batch_holds_the_same_clients() -> None:
    whole, part = clients_of(clients(), BLOCKS, DOMAINS), clients_of(clients().slice(3, 2), BLOCKS, DOMAINS)
    first, last = whole.starts[3], whole.starts[5]
    assert np.array_equal(part.states, whole.states[first:last])
    assert np.array_equal(part.x, whole.x[3:5])
    assert part.texts.to_pylist() == whole.texts.to_pylist()[first:last]
    silent = clients_of(clients(rows=1), BLOCKS, DOMAINS, width=6)
    assert network()(silent.batch(np.array([0]))).logit.shape == (1,)


def test_strange_states_and_tags_stop_the_run() -> None:
    with pytest.raises(DataError, match="domain 'product'"):
        clients_of(clients(), BLOCKS, ("marketing",))
    with pytest.raises(DataError, match="have 6 numbers"):
        clients_of(clients(), BLOCKS, DOMAINS, width=8)


def test_late_fusion_averages_or_stacks() -> None:
    p = np.array([[0.2, 0.4], [0.9, 0.7]])
    assert 1 / (1 + np.exp(-late_logit(p, np.zeros((2, 2)), ()))) == pytest.approx([0.3, 0.8])
    generator = np.random.default_rng(3)
    raw = generator.normal(size=(4000, 2))
    y = (generator.uniform(size=4000) < 1 / (1 + np.exp(-2 * raw[:, 0]))).astype(float)
    weights = fit_stacking(raw, y)
    assert weights[0] == pytest.approx(2.0, abs=0.25)
    assert abs(weights[1]) < 0.15
    assert late_logit(p, raw[:2], weights) == pytest.approx(raw[:2] @ np.array(weights[:2]) + weights[2])


def test_a_network_needs_a_branch() -> None:
    with pytest.raises(ValidationError):
        NetworkConf(branches=())


def test_peft_adapters_are_switched_by_the_domain() -> None:
    tokenizer = train_tokenizer(["asked about rates", "lost card"] * 20, vocabulary_size=280)
    model = new_llama(LlamaShape(width=16, layers=1, heads=2, ffn=16), tokenizer, context=32, seed=1).eval()
    some = pack([np.arange(5, 12, dtype=np.int32)], [0])
    plain = run_pack(model.base_model, some)
    adapted = peft_adapters(model, DOMAINS, rank=2)
    assert torch.allclose(run_pack(model.base_model, some), plain, atol=1e-6), "an untrained adapter is closed"
    for name, parameter in adapted.named_parameters():
        if "lora_B.product" in name:
            nn.init.ones_(parameter)
    adapted.set_adapter("product")
    assert not torch.allclose(run_pack(model.base_model, some), plain, atol=1e-3)
    adapted.set_adapter("marketing")
    assert torch.allclose(run_pack(model.base_model, some), plain, atol=1e-6)


def test_a_student_learns_what_its_teacher_says() -> None:
    tokenizer = train_tokenizer(["asked about rates", "lost card"] * 20, vocabulary_size=280)
    shape = LlamaShape(width=16, layers=1, heads=2, ffn=16)
    teacher, student = (new_llama(shape, tokenizer, context=32, seed=seed) for seed in (1, 2))
    some = pack([np.array([3, *range(8, 8 + size)], np.int32) for size in (4, 6)], [0, 1])
    conf = DistilTrainingConf(next_token=0.0, token=1.0, representation=1.0)
    with torch.no_grad():
        states = sentence_states(run_pack(teacher.base_model, some), some)
        same = Distillation(teacher, teacher, 16, conf)(some, states)
    assert float(same) == pytest.approx(0.0, abs=1e-5)
    loss = Distillation(student, teacher, 16, conf)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    seen = []
    for _ in range(30):
        optimizer.zero_grad()
        found = loss(some, states)
        found.backward()
        optimizer.step()
        seen.append(float(found.detach()))
    assert seen[-1] < 0.3 * seen[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_sentence_states_leave_the_start_token_out() -> None:
    some = pack([np.array([0, 5, 6], np.int32), np.array([0, 7], np.int32)], [0, 1])
    tokens = torch.arange(5.0)[:, None]
    # Sorted by length: the window of two tokens stands first.
    assert sentence_states(tokens, some)[:, 0].tolist() == [1.0, 3.5]
