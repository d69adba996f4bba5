"""LoRA and QLoRA (Hu et al. 2021, Dettmers et al. 2023): small trained matrices beside frozen ones, by PEFT."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"


class LoraConf(Conf):
    """Which matrices get an adapter, and of what size."""

    rank: int = Field(16, ge=1, description="rows of the first, columns of the second matrix of an adapter")
    alpha: float = Field(32.0, gt=0, description="the adapter's product counts alpha / rank times")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's inputs left out in training")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter; these are attention and feed-forward",
    )
    quantise: Literal["none", "nf4"] = Field(
        "none", description="nf4: the frozen weights in four bits (QLoRA), by bitsandbytes on a GPU"
    )


def quantisation(conf: LoraConf) -> Any:
    """What `load_backbone` is told to quantise the frozen weights; None for none.

    Raises:
        ConfigError: nf4 without bitsandbytes or without a GPU.
    """
    if conf.quantise == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("lora.quantise: nf4 needs the package bitsandbytes; install it, or set quantise: none")
    if not torch.cuda.is_available():
        raise ConfigError("lora.quantise: nf4 needs a GPU, and this process sees none; set quantise: none")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def with_lora(model: PreTrainedModel, conf: LoraConf, *, seed: int) -> PeftModel:
    """Freezes a model and puts adapters into it, which change nothing until they are trained.

    Args:
        model: changed in place; `get_base_model()` of the result is this model with its adapters.
        conf: the adapters.
        seed: of their first weights.

    Raises:
        ConfigError: the model has none of the targets.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=conf.rank,
        lora_alpha=conf.alpha,
        lora_dropout=conf.dropout,
        target_modules=list(conf.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: PeftModel = get_peft_model(model, settings)
        except ValueError as error:
            raise ConfigError(
                f"lora.targets {list(conf.targets)} do not fit {type(model).__name__}: {error}"
            ) from error
    return adapted


def save_adapter(adapted: PeftModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapters as PEFT does, in safetensors.

    Args:
        adapted: from `with_lora`.
        folder: made when it is not there.
        weights: the adapters' weights by parameter name, for a model whose own are sharded.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(
        adapted, state_dict=None if weights is None else dict(weights), save_embedding_layers=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    adapted.peft_config["default"].save_pretrained(str(folder))


def merge(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Adds stored adapters to the weights that they were trained beside; the result needs no PEFT.

    Args:
        model: the base model, not quantised; changed in place.
        adapter: folder from `save_adapter`.

    Raises:
        ArtefactError: no adapter in safetensors there.
    """
    from peft import PeftModel

    if not (adapter / WEIGHTS).is_file():
        raise ArtefactError(f"{adapter}: no {WEIGHTS}; an adapter is stored in safetensors only")
    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    return merged
