"""Settings of a backbone, its training and its ranks; light to import, so that the command line stays quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ledgerlm.backbone.lora import LoraConf
from ledgerlm.config import Conf, find_file, load_yaml
from ledgerlm.training.settings import RankConf, cosine

CONTEXT = 768  # tokens of a window of a model from scratch
_BASE_CONTEXT = 2048  # of a pretrained one, if it knows as many
_BASE_RATE, _ADAPTER_RATE = 2e-5, 2e-4


def base_rate(*, adapters: bool) -> float:
    """Learning rate for a model that has learnt already; that of training from scratch would make it forget.

    Args:
        adapters: whether adapters beside its frozen weights are trained, which start at nothing.
    """
    return _ADAPTER_RATE if adapters else _BASE_RATE


def base_context(folder: Path) -> int:
    """Tokens of a window for a model that has learnt already.

    Args:
        folder: in Hugging Face format; where finetune made it, its card says with which context.
    """
    card, config = folder / "backbone.json", json.loads((folder / "config.json").read_text())
    if card.is_file():
        return int(json.loads(card.read_text())["context"])
    return min(_BASE_CONTEXT, int(config.get("max_position_embeddings", _BASE_CONTEXT)))


def backbone_settings(name: str, published: str | None) -> dict[str, Any]:
    """Settings of the finetune job for a known backbone.

    Args:
        name: file of `conf/backbones/`.
        published: data set of that file's `published` section whose settings win over the file's own.

    Raises:
        ConfigError: no such file.
        ValueError: no such data set in it.
    """
    settings = load_yaml(find_file(f"backbones/{name}.yaml"))
    of_data: dict[str, dict[str, Any]] = settings.pop("published", {})
    if published is not None and published not in of_data:
        known = ", ".join(of_data) or "none"
        raise ValueError(f"conf/backbones/{name}.yaml has no published settings for '{published}'; known: {known}")
    return {**settings, **(of_data[published] if published else {})}


class LlamaShape(Conf):
    """Shape of a small Llama that is trained from scratch."""

    width: int = Field(96, ge=8, description="numbers in a hidden state")
    layers: int = Field(3, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="attention heads; each gets width / heads numbers")
    kv_heads: int | None = Field(None, ge=1, description="key and value heads; left out, as many as heads")
    ffn: int = Field(256, ge=8, description="inner width of the gated feed-forward part")
    tie_embeddings: bool = Field(True, description="input and output embeddings are the same numbers")
    init_std: float = Field(0.02, gt=0, description="standard deviation of the first weights")

    @model_validator(mode="after")
    def _fits(self) -> LlamaShape:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} / heads {self.heads} must be an even whole number")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class TrainingConf(Conf):
    """How a backbone is trained."""

    batch_tokens: int = Field(2048, ge=64, description="tokens of one optimizer step, over all ranks")
    pack_tokens: int = Field(4096, ge=64, description="most tokens of one forward pass of a rank")
    learning_rate: float = Field(3e-3, gt=0, description="highest learning rate; 1e-5 to 5e-5 for a pretrained model")
    final_rate: float = Field(0.1, ge=0, le=1, description="share of the learning rate that the cosine ends at")
    warm_up: float = Field(0.05, ge=0, lt=1, description="share of the training in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay; norms get none")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW moments")
    eps: float = Field(1e-8, gt=0, description="AdamW's addend to the root of the second moment")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    epochs: float = Field(3.0, gt=0, description="passes over the training windows")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the numbers that each part of a block adds which training leaves out; for small "
        "corpora that are read many times",
    )
    max_tokens: int | None = Field(None, gt=0, description="most tokens read in training, over all ranks")
    max_minutes: float | None = Field(None, gt=0, description="most minutes in the loop; the rate falls in time for it")
    contrast: float = Field(
        0.0,
        ge=0,
        description="weight of a contrastive term beside the next-token loss: the mean states of a client's windows "
        "are drawn together, those of other clients in the pack apart; wants short windows and large packs",
    )
    temperature: float = Field(0.1, gt=0, description="of the contrastive term's cosines")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: what a short trial finds faster")
    evaluations: int = Field(8, ge=1, description="times the held-out loss is taken, the last at the end")
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a lower held-out loss after which training ends; the weights of the lowest "
        "are the result; left out, training goes to the end and its last weights are",
    )
    held_out_tokens: int = Field(
        50_000, ge=0, description="most held-out tokens read at a time, over all ranks; 64 windows are read in any case"
    )
    checkpoint_minutes: float = Field(2.0, gt=0, description="minutes between checkpoints")

    def packing(self, ranks: int) -> tuple[int, int]:
        """Tokens of a pack, and packs of a rank for one step."""
        share = max(self.batch_tokens // ranks, 1)
        packs = -(-share // self.pack_tokens)
        return -(-share // packs), packs

    def rate(self, share: float) -> float:
        """Learning rate when this share of the training is done: linear warm-up, then cosine."""
        return self.learning_rate * cosine(share, warm_up=self.warm_up, final=self.final_rate)


class BackboneRankConf(RankConf):
    """What each rank of a finetune is told."""

    windows: Path = Field(description="folder of the staged windows: `split=train/`, `split=heldout/`")
    tokenizer: Path = Field(description="folder of the tokenizer")
    base: Path | None = Field(None, description="model to fine-tune; none: a Llama from scratch")
    shape: LlamaShape = Field(LlamaShape(), description="shape of the Llama from scratch")
    lora: LoraConf | None = Field(None, description="train adapters beside the frozen weights of `base`")
    context: int = Field(CONTEXT, ge=16, description="tokens of a window with its BOS")
    passes: dict[str, float] = Field(description="for each kind of text how often it is read in an epoch")
    among: tuple[tuple[int, ...], ...] = Field(
        (), description="tokens of the answers that alone compete in the loss, each target one of them; none: all do"
    )
    training: TrainingConf = Field(TrainingConf(), description="the training loop")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="DeepSpeed settings")
    recompute: bool = Field(False, description="recompute activations in the backward pass to save memory")


class BackboneCard(Conf):
    """What `backbone.json` says about a backbone.

    The id is a hash of all files that are read to open it: the same id, the same vectors.
    """

    backbone_id: str = Field("", description="first 16 hexadecimal digits of the SHA-256 over the files that are read")
    model_type: str = Field(description="architecture, as transformers names it")
    parameters: int = Field(description="weights, shared ones counted once")
    vocabulary: int = Field(description="tokens that the tokenizer knows")
    context: int = Field(description="tokens of a window with its BOS, as trained")
    dtype: str = Field(description="type of the stored weights")
    base: str = Field(description="`scratch`, or the name of the model that was fine-tuned")
    tokens_trained: int = Field(0, description="tokens read in training, repeats counted")
    held_out_loss: float | None = Field(None, description="nats a token on held-out documents")
    training: dict[str, Any] = Field(default_factory=dict, description="settings and outcome of the training")
