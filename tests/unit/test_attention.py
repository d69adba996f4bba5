"""Packed attention: a window alone and the same window in any pack give the same hidden states and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from ledgerlm.backbone.attention import PACKED_ATTENTION, layout, model_inputs, register
from ledgerlm.backbone.packs import pack
from ledgerlm.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3, grouped queries": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "mistral, grouped queries": MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None),
}
LENGTHS = [1, 2, 7, 7, 7, 12, 13, 30, 30, 31, 50]


def _model(config: PretrainedConfig, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    return model


def _sequences() -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    random = np.random.default_rng(1)
    return [random.integers(0, 60, length).astype(np.int32) for length in random.permutation(LENGTHS)]


def _alone(model: PreTrainedModel, sequences: list[Any]) -> torch.Tensor:
    """Hidden states of each window on its own through transformers' eager attention, in the order of the pack."""
    ordered = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    rows = [model.base_model(torch.tensor(sequences[place])[None].long()).last_hidden_state[0] for place in ordered]
    return torch.cat(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_alone_equals_packed(name: str) -> None:
    eager, packed = _model(CONFIGS[name], "eager"), _model(CONFIGS[name], register())
    sequences = _sequences()
    together = packed.base_model(**model_inputs(pack(sequences, range(len(sequences))))).last_hidden_state[0]
    alone = _alone(eager, sequences)
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)

    direction = torch.randn(together.shape, generator=torch.Generator().manual_seed(2))
    (together * direction).sum().backward()
    (alone * direction).sum().backward()
    for (key, left), right in zip(packed.base_model.named_parameters(), eager.base_model.parameters(), strict=True):
        assert left.grad is not None and right.grad is not None, key
        torch.testing.assert_close(left.grad, right.grad, atol=2e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_products_equal_eager_attention(name: str) -> None:
    dtype = torch.bfloat16
    eager, packed = _model(CONFIGS[name], "eager"), _model(CONFIGS[name], register(), dtype)
    sequences = _sequences()
    together = packed.base_model(**model_inputs(pack(sequences, range(len(sequences))))).last_hidden_state[0]
    alone = _alone(eager, sequences)
    cosine = torch.nn.functional.cosine_similarity(together.float(), alone, dim=-1)
    assert cosine.min() > 0.998
    together.float().square().mean().backward()
    grads = [parameter.grad for parameter in packed.base_model.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def test_neighbours_do_not_matter() -> None:
    model = _model(CONFIGS["llama"], register()).eval()
    sequences = _sequences()
    window = sequences[0]
    with torch.inference_mode():
        rows = []
        for others in (sequences[1:], sequences[3:8], []):
            row = pack([window, *others], range(1 + len(others)))
            hidden = model.base_model(**model_inputs(row)).last_hidden_state[0]
            place = int(np.flatnonzero(row.owners == 0)[0])
            rows.append(hidden[row.cu_seqlens[place] : row.cu_seqlens[place + 1]])
    torch.testing.assert_close(rows[0], rows[2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rows[1], rows[2], atol=1e-6, rtol=1e-5)


def test_groups_are_tight() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(5, 500, 400))
    plan = layout(np.concatenate(([0], np.cumsum(lengths))))
    assert sum(group.tokens for group in plan.groups) == lengths.sum()
    padded = sum(group.windows * group.length for group in plan.groups)
    assert padded <= 1.15 * lengths.sum()
    assert len(layout(np.arange(0, 641, 64)).groups) == 1


def test_sliding_window_shorter_than_windows_is_refused() -> None:
    config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=16)
    model = _model(config, register())
    short, long = (pack([np.arange(length, dtype=np.int32)], [0]) for length in (16, 17))
    model.base_model(**model_inputs(short))
    with pytest.raises(ConfigError, match=r"17 tokens.*sliding attention of 16"):
        model.base_model(**model_inputs(long))


def test_padded_batches_are_refused() -> None:
    model = _model(CONFIGS["llama"], PACKED_ATTENTION)
    ids = torch.ones((2, 4), dtype=torch.long)
    with pytest.raises(ConfigError, match="padded"):
        model(ids, attention_mask=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]))
