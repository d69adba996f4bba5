"""What must be the same on a GPU as on a processor. `make gpu` runs this first; without a GPU all of it is skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ledgerlm.backbone.attention import layout, packed_attention
from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import PackReader
from ledgerlm.backbone.loss import CausalLoss, loss_inputs
from ledgerlm.backbone.pooling import DocumentSums
from ledgerlm.backbone.surprise import SurpriseSums
from tests.benchmarks.gpu import FIELDS, Card, every_token, random_model, random_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine; make gpu has one")

PARTS = ("mean", "std", "surprise")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A small Llama in fp32, on the processor."""
    torch.manual_seed(0)
    return random_model(Card(tiny=True), "135m", torch.float32).eval()


def vectors(model: PreTrainedModel, dtype: torch.dtype, device: str, last_k: int = 2) -> dict[str, Tensor]:
    """The parts of the embedding of forty windows."""
    row = random_pack(40 * 96, 96, model.config.vocab_size)
    moved = random_model(Card(tiny=True), "135m", torch.float32)
    moved.load_state_dict(model.state_dict())
    moved = moved.to(device=device, dtype=dtype).eval()
    definition = EmbeddingDefinition(parts=PARTS, last_k=last_k).resolve(
        layer_count=moved.config.num_hidden_layers, context=96, dtype="fp32", text_format="", fields=FIELDS
    )
    sums = DocumentSums(len(row.lengths), moved.config.hidden_size, PARTS, 16.0, torch.device(device))
    surprise = SurpriseSums(len(row.lengths), len(FIELDS), definition.surprise_events, torch.device(device))
    with torch.inference_mode():
        PackReader(moved, definition).add(every_token(row), sums, surprise)
    return {name: part.float().cpu() for name, part in {**sums.result(), "surprise": surprise.profile()}.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_vectors_are_those_of_the_processor(model: PreTrainedModel, dtype: torch.dtype, tolerance: float) -> None:
    here, there = vectors(model, torch.float32, "cpu"), vectors(model, dtype, "cuda")
    for name, part in here.items():
        assert float((there[name] - part).abs().max() / part.abs().max()) < tolerance, name


def test_the_kernel_for_windows_of_any_length_equals_plain_attention() -> None:
    """Forward, and the gradients of queries, keys and values."""
    row = random_pack(8192, 1024, 100)
    plan, count = layout(row.cu_seqlens, "cuda"), len(row.input_ids)
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, count, 64, device="cuda") for heads in (8, 2, 2)]
    weight = torch.randn(1, count, 8, 64, device="cuda")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        parts = [each.to(dtype).requires_grad_() for each in whole]
        output, _ = packed_attention(torch.nn.Identity(), *parts, packed_layout=plan)
        (output.float() * weight).sum().backward()
        found[dtype] = [output.detach().float(), *(each.grad.float() for each in parts if each.grad is not None)]
    assert "groups" in vars(plan), "fp32 goes by groups"
    for plain, kernel in zip(found[torch.float32], found[torch.bfloat16], strict=True):
        assert float((kernel - plain).norm() / plain.norm()) < 1e-2


def test_no_window_sees_another(model: PreTrainedModel) -> None:
    moved = random_model(Card(tiny=False), "135m").eval()
    row = random_pack(4096, 256, 1000)
    changed = row.input_ids.copy()
    changed[row.cu_seqlens[1] : row.cu_seqlens[2]] = 7
    with torch.inference_mode():
        one, other = (
            moved.base_model(**loss_inputs(each, "cuda")[0]).last_hidden_state[0]
            for each in (row, type(row)(changed, row.position_ids, row.cu_seqlens, row.owners))
        )
    differs = (one != other).any(-1).cpu().numpy()
    assert np.flatnonzero(differs).min() >= row.cu_seqlens[1]
    assert np.flatnonzero(differs).max() < row.cu_seqlens[2]


def test_memory_is_flat_in_the_number_of_layers(model: PreTrainedModel) -> None:
    held = []
    for last_k in (1, 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        vectors(model, torch.bfloat16, "cuda", last_k)
        held.append(torch.cuda.max_memory_allocated())
    assert held[1] < 1.05 * held[0]


def test_a_few_steps_learn(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    loss = CausalLoss(random_model(Card(tiny=True), "135m", torch.float32).to("cuda"))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3, fused=True)
    inputs = loss_inputs(random_pack(2048, 128, 50), "cuda")
    losses = []
    for _ in range(20):
        now = loss(*inputs) / len(inputs[2])
        now.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(now.detach()))
    assert losses[-1] < losses[0] - 0.5
