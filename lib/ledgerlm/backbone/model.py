"""A backbone as a folder: a causal language model in Hugging Face format, its tokenizer, and a card of what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from ledgerlm.backbone.attention import model_inputs, register
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.settings import BackboneCard, LlamaShape
from ledgerlm.config import parse
from ledgerlm.errors import ArtefactError
from ledgerlm.training.artefacts import content_hash, keep_copy

CARD = "backbone.json"
# All files that transformers reads of a model and its tokenizer; a card, a README or an adapter beside them is not.
_READ = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)


def new_llama(shape: LlamaShape, tokenizer: PreTrainedTokenizerFast, *, context: int, seed: int) -> PreTrainedModel:
    """A Llama with random fp32 weights.

    Args:
        shape: its size.
        tokenizer: gives the vocabulary and the special tokens.
        context: longest window in tokens.
        seed: of the first weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=shape.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_backbone(
    folder: Path | str, dtype: torch.dtype = torch.float32, *, quantisation: Any = None
) -> PreTrainedModel:
    """Opens a causal language model from a local folder, safetensors only, with attention over packs.

    Args:
        folder: in Hugging Face format.
        dtype: of the weights.
        quantisation: from `ledgerlm.backbone.lora.quantisation`.

    Raises:
        ArtefactError: no such folder, no weights in safetensors, or an architecture that needs code of its own.
    """
    if not Path(folder, "config.json").is_file():
        raise ArtefactError(f"{folder} is no Hugging Face folder: it has no config.json")
    disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            quantization_config=quantisation,
            attn_implementation=register(),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{folder}: cannot be opened as a causal language model in safetensors: {error}") from error
    return model


def read_config(folder: Path | str) -> PretrainedConfig:
    """What a backbone's folder says of its shape.

    Raises:
        ArtefactError: no backbone can be read there.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{folder}: no backbone can be read here ({error}); give a Hugging Face folder") from error
    return config


def run_pack(model: PreTrainedModel, pack: Pack, device: torch.device | str = "cpu") -> Tensor:
    """Runs the layers without the output head; returns the states after the final norm, [T, d]."""
    states: Tensor = model(**model_inputs(pack, device)).last_hidden_state
    return states[0]


def parameter_count(model: PreTrainedModel) -> int:
    """Weights of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def backbone_id(folder: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 over all files that are read: weights, configuration, tokenizer.

    Raises:
        ArtefactError: when the folder has no weights in safetensors.
    """
    if not any(folder.glob("*.safetensors")):
        raise ArtefactError(f"{folder}: no *.safetensors; a backbone is stored in safetensors only")
    return content_hash(folder, {path for pattern in _READ for path in folder.glob(pattern)})


def keep_backbone(trained: Path, home: Path, card: BackboneCard) -> tuple[Path, BackboneCard]:
    """Writes the card of a trained backbone and copies it below `home`, under its id.

    Args:
        trained: Hugging Face folder.
        home: the artefacts' `backbones` folder.
        card: whose id is filled in.

    Returns:
        Its folder, and the card.
    """
    complete = card.model_copy(update={"backbone_id": backbone_id(trained)})
    write_card(trained, complete)
    # Another training may end with the same weights; the newest card stands.
    shutil.rmtree(home / complete.backbone_id, ignore_errors=True)
    return home / keep_copy(trained, home, complete.backbone_id), complete


def write_card(folder: Path, card: BackboneCard) -> None:
    """Writes `backbone.json`."""
    (folder / CARD).write_text(json.dumps(card.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")


def read_card(folder: Path) -> BackboneCard:
    """Reads `backbone.json` and checks the hash of the files.

    Raises:
        ArtefactError: there is none, it cannot be read, or the files are not those it was written for.
    """
    path = folder / CARD
    if not path.is_file():
        raise ArtefactError(f"no {path}; it is written by the finetune job")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged: {error}; run the finetune stage again") from error
    card = parse(BackboneCard, content, source=str(path))
    if (found := backbone_id(folder)) != card.backbone_id:
        raise ArtefactError(f"{folder}: the files hash to {found}, the card says {card.backbone_id}; they were changed")
    return card
