"""Weights between the base model's and the tuned ones, which hold up better where the tuning data end.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT): weights on the line from the untuned
to the tuned model gain on shifted data and lose little on the data tuned on; half way is their default.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ledgerlm.errors import ArtefactError
from ledgerlm.instruct.head import ADAPTER
from ledgerlm.training.artefacts import open_to_all


def blend_models(base: Path, tuned: Path, share: float, folder: Path) -> Path:
    """Writes the model that lies `share` of the way from one model to another, a file of weights at a time.

    Args:
        base: Hugging Face folder of the untuned model, in safetensors.
        tuned: of the tuned one, with the same names and shapes of weights.
        share: 0 is `base`, 1 is `tuned`.
        folder: where the result goes; made anew.

    Returns:
        `folder`.

    Raises:
        ArtefactError: a weight of the tuned model is none of the base's.
    """
    from safetensors.torch import load_file, save_file

    theirs = {name: weights for file in base.glob("*.safetensors") for name, weights in load_file(file).items()}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tuned, folder, ignore=shutil.ignore_patterns(ADAPTER))
    for file in folder.glob("*.safetensors"):
        blended = {}
        for name, own in load_file(file).items():
            if name not in theirs:
                raise ArtefactError(f"{tuned}: its weight {name} is none of {base}'s; they are not of one kind")
            blended[name] = theirs[name].float().lerp(own.float(), share).to(own.dtype)
        save_file(blended, file, metadata={"format": "pt"})
    open_to_all(folder)
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
    from peft import LoraConfig

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(adapter, folder)
    settings = LoraConfig.from_pretrained(str(folder))
    settings.lora_alpha *= share  # what an adapter adds is alpha / rank times the product of its matrices
    settings.save_pretrained(str(folder))
    return folder
