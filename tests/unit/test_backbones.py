"""Backbones by name: each shipped file on a tiny random model of the architecture it names, full and with LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from ledgerlm.backbone.attention import register
from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder, resolve_definition
from ledgerlm.backbone.lora import LoraConf, merge, quantisation, save_adapter, with_lora
from ledgerlm.backbone.loss import CausalLoss, loss_inputs
from ledgerlm.backbone.model import backbone_id, keep_backbone, load_backbone, read_card
from ledgerlm.backbone.packs import Pack, pack
from ledgerlm.backbone.preparing import FinetuneConf
from ledgerlm.backbone.settings import BackboneCard, base_context
from ledgerlm.config import parse, shipped
from ledgerlm.errors import ArtefactError, ConfigError
from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer

# What sets each architecture apart, at a fraction of its size.
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA_3_2 = LlamaConfig(
    **SIZES,
    tie_word_embeddings=True,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
)
QWEN_3 = Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True, attention_bias=False)
MISTRAL = MistralConfig(**SIZES, sliding_window=None, tie_word_embeddings=False)
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama-3.2-1b": LLAMA_3_2,
    "llama-3.2-3b": LLAMA_3_2,
    "qwen3-0.6b": QWEN_3,
    "qwen3-1.7b": QWEN_3,
    "mistral-7b": MISTRAL,
    "smollm2-135m": LlamaConfig(**SIZES, tie_word_embeddings=True),
}
PUBLISHED = [name for name in ARCHITECTURES if name != "smollm2-135m"]  # of which LLM4ES's settings are shipped
TEXTS = ["days|shop|amount\n" + "\n".join(f"+{n % 3}d|SHOP {n % 7}|{n * 7 % 50}" for n in range(k)) for k in (3, 9, 20)]


def tiny(name: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation=attention)
    return model


def row() -> Pack:
    random = np.random.default_rng(3)
    return pack([random.integers(0, 300, length).astype(np.int32) for length in (2, 9, 40, 100)], range(4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored tiny Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("base")
    tiny("llama-3.2-1b", "eager").save_pretrained(path)
    train_tokenizer(TEXTS, vocabulary_size=300).save_pretrained(path)
    return path


def test_every_shipped_backbone_is_tested() -> None:
    assert {path.stem for path in shipped("backbones").glob("*.yaml")} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_those_of_the_data_set(name: str) -> None:
    content = yaml.safe_load(shipped(f"backbones/{name}.yaml").read_text())
    conf = parse(FinetuneConf, {"backbone": name, "published": "rosbank", "batch_tokens": 4096}, source="test")
    assert (conf.epochs, conf.learning_rate, conf.eps, conf.betas) == (2, 1e-5, 1e-5, (0.9, 0.95))
    assert conf.base == content["base"] and conf.batch_tokens == 4096
    for data, settings in content["published"].items():
        assert parse(FinetuneConf, {"backbone": name, "published": data}, source="test").epochs == settings["epochs"]


@pytest.mark.parametrize(
    ("told", "rate"),
    [
        ({}, 3e-3),
        ({"base": "models/other"}, 2e-5),
        ({"base": "models/other", "lora": {}}, 2e-4),
        ({"base": "models/other", "learning_rate": 1e-3}, 1e-3),
        ({"backbone": "llama-3.2-1b"}, 1e-5),
    ],
)
def test_what_has_learnt_already_learns_more_slowly(told: dict[str, Any], rate: float) -> None:
    assert parse(FinetuneConf, told, source="test").learning_rate == rate


def test_windows_are_as_long_as_the_base_has_seen(folder: Path, tmp_path: Path) -> None:
    card = BackboneCard(model_type="llama", parameters=1, vocabulary=300, context=192, dtype="float32", base="scratch")
    kept, complete = keep_backbone(folder, tmp_path / "backbones", card)
    assert kept.name == complete.backbone_id == read_card(kept).backbone_id
    assert base_context(kept) == 192
    for known, expected in ((512, 512), (131_072, 2048)):
        (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": known}))
        assert base_context(tmp_path) == expected


def test_every_file_that_is_read_makes_the_id(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = backbone_id(copy)
    (copy / "README.md").write_text("not read")
    assert backbone_id(copy) == before
    seen = {before}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        file = copy / name
        file.write_text((file.read_text() if file.exists() else "") + " ")
        seen.add(backbone_id(copy))
    assert len(seen) == 5


def test_wrong_names_are_told() -> None:
    with pytest.raises(ConfigError, match="llama-9"):
        parse(FinetuneConf, {"backbone": "llama-9"}, source="test")
    with pytest.raises(ConfigError, match="no published settings for 'x5'"):
        parse(FinetuneConf, {"backbone": "mistral-7b", "published": "x5"}, source="test")
    with pytest.raises(ConfigError, match="lora needs a base"):
        parse(FinetuneConf, {"lora": {}}, source="test")
    with pytest.raises(ConfigError, match="fewer than 8 of 768: lower context"):
        parse(FinetuneConf, {"contrast": 0.1}, source="test")
    with pytest.raises(ConfigError, match="read none"):
        parse(FinetuneConf, {"variants": 3}, source="test")


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "mistral-7b"])
def test_packed_equals_padded(name: str) -> None:
    packed, padded = tiny(name, register()), tiny(name, "sdpa")
    one = row()
    inputs, places, targets = loss_inputs(one)
    states = packed.base_model(**inputs).last_hidden_state[0]
    longest = int(one.lengths.max())
    ids, mask = torch.zeros((4, longest), dtype=torch.long), torch.zeros((4, longest), dtype=torch.long)
    for number, (start, stop) in enumerate(zip(one.cu_seqlens[:-1], one.cu_seqlens[1:], strict=True)):
        ids[number, : stop - start] = torch.from_numpy(one.input_ids[start:stop]).long()
        mask[number, : stop - start] = 1
    out = padded(ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(states, out.hidden_states[-1][mask.bool()], atol=1e-5, rtol=1e-4)

    loss = CausalLoss(packed)(inputs, places, targets)
    expected = padded(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss * len(targets)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "mistral-7b"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    plain, saving = tiny(name, register()), tiny(name, register())
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    held: list[int] = []

    def hold(one: Tensor) -> Tensor:
        held.append(one.numel())
        return one

    for model in (plain, saving):
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda one: one):
            loss = CausalLoss(model)(*loss_inputs(row()))
        held.append(0)
        loss.backward()
    middle = held.index(0)
    assert sum(held[middle:]) < 0.5 * sum(held[:middle]), "nothing was spared"
    for (key, left), right in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert left.grad is not None and right.grad is not None, key
        torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "mistral-7b"])
def test_embeddings_equal_the_full_hidden_states(name: str, tmp_path: Path) -> None:
    tiny(name, "eager").save_pretrained(tmp_path)
    train_tokenizer(TEXTS, vocabulary_size=300).save_pretrained(tmp_path)
    definition = EmbeddingDefinition(last_k=2, dtype="fp32", parts=("mean",), header=True)
    found = Embedder(
        tmp_path, resolve_definition(tmp_path, definition, text_format="compact", fields=("days", "shop", "amount"))
    ).embed(TEXTS)
    tokenizer, plain = load_tokenizer(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for text, vector in zip(TEXTS, found.parts["mean"], strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert len(ids) <= 256
        with torch.no_grad():
            states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack(states[-2:])[:, 0, 1:].mean((0, 1))
        np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "mistral-7b"])
def test_adapters_learn_while_the_weights_stand(name: str, tmp_path: Path) -> None:
    base, plain = tiny(name, register()), tiny(name, register())
    plain.save_pretrained(tmp_path / "base")
    adapted = with_lora(base, LoraConf(rank=4, dropout=0.0), seed=5)
    loss = CausalLoss(adapted.get_base_model())
    inputs, places, targets = loss_inputs(row())
    before = loss(inputs, places, targets)
    torch.testing.assert_close(before, CausalLoss(plain)(inputs, places, targets))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 3, "two matrices for each of seven layers in three blocks"
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        loss(inputs, places, targets).backward()
        optimizer.step()
    after = loss(inputs, places, targets)
    assert after < 0.9 * before
    for key, weight in plain.state_dict().items():
        if "_proj" not in key:
            assert torch.equal(weight, adapted.get_base_model().state_dict()[key]), key

    save_adapter(adapted, tmp_path / "adapter")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} == {".json", ".safetensors"}
    merged = merge(load_backbone(tmp_path / "base"), tmp_path / "adapter")
    assert merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(CausalLoss(merged)(inputs, places, targets), after, rtol=1e-4, atol=1e-3)


def test_adapters_are_the_same_for_the_same_seed() -> None:
    drawn = [
        next(
            p
            for n, p in with_lora(tiny("qwen3-0.6b", register()), LoraConf(), seed=s).named_parameters()
            if "lora_A" in n
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_lora_cannot_do_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such_layer"):
        with_lora(load_backbone(folder), LoraConf(targets=("no_such_layer",)), seed=0)
    with pytest.raises(ConfigError, match=r"bitsandbytes|GPU"):
        quantisation(LoraConf(quantise="nf4"))
    assert quantisation(LoraConf()) is None
    with pytest.raises(ArtefactError, match="safetensors only"):
        merge(load_backbone(folder), tmp_path)
