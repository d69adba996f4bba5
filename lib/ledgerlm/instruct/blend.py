"""Weights between the base model's and the tuned ones, which hold up better where the tuning data end.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT): weights on the line from the untuned
to the tuned model gain on shifted data and lose little on the data tuned on; half way is their default.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ledgerlm.backbone.lora import WEIGHTS
from ledgerlm.backbone.model import load_backbone
from ledgerlm.text.tokenizer import load_tokenizer

# PEFT starts this one of an adapter's two matrices at zero, so the product grows with it in proportion.
_SECOND = ".lora_B."


def blend_models(base: Path, tuned: Path, share: float, folder: Path) -> Path:
    """Writes the model that lies `share` of the way from one model to another.

    Args:
        base: Hugging Face folder of the untuned model.
        tuned: of the tuned one, with the same names and shapes of weights, and its tokenizer.
        share: 0 is `base`, 1 is `tuned`.
        folder: where the result goes; made anew.

    Returns:
        `folder`.
    """
    first, second = load_backbone(base), load_backbone(tuned, torch.float32)
    theirs = dict(first.named_parameters())
    with torch.no_grad():
        for name, weights in second.named_parameters():
            weights.lerp_(theirs[name], 1.0 - share)
    shutil.rmtree(folder, ignore_errors=True)
    second.save_pretrained(folder)
    load_tokenizer(tuned).save_pretrained(folder)
    return folder


def blend_adapter(adapter: Path, share: float, folder: Path) -> Path:
    """Writes adapters that move their base model `share` as far.

    Args:
        adapter: folder in PEFT's format.
        share: 0 is the base model, 1 the adapter as it is.
        folder: where the result goes; made anew.

    Returns:
        `folder`.
    """
    from safetensors.torch import load_file, save_file

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(adapter, folder)
    weights = load_file(adapter / WEIGHTS)
    scaled = {name: tensor * share if _SECOND in name else tensor for name, tensor in weights.items()}
    save_file(scaled, folder / WEIGHTS)
    return folder
