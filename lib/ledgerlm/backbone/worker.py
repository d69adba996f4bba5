"""What one rank of a finetune does, from its share of the windows to the trained weights."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ledgerlm.backbone.checkpoints import adapted
from ledgerlm.backbone.cpu import bound_kernel_caches, faster_precision, keep_freed_memory
from ledgerlm.backbone.lora import merge, quantisation, save_adapter, with_lora
from ledgerlm.backbone.loss import CausalLoss
from ledgerlm.backbone.model import load_backbone, new_llama
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.backbone.settings import WorkerConf
from ledgerlm.backbone.store import Reader, WindowStore
from ledgerlm.backbone.training import Report, Training, parameter_groups
from ledgerlm.errors import ConfigError
from ledgerlm.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

Precision = Literal["bf16", "fp32"]
# Folder of the model to be published, while training may still find a better one.
_KEPT = "kept"
# Written by us, so that the loop and DeepSpeed cannot disagree.
_OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def train_rank(conf: WorkerConf, report: Report) -> None:
    """Trains one rank; the process group exists already. Rank 0 leaves the model in `conf.result`."""
    _quiet()
    torch.set_num_threads(conf.threads)
    keep_freed_memory()
    bound_kernel_caches()
    ranks = Ranks.current()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if conf.device == "cuda" else "cpu"
    precision = _precision(conf, ranks)
    reader, held_out = _data(conf, ranks)
    model, adapters = _model(conf, precision)
    universal = adapted(conf.folder / "checkpoints", ranks)
    engine = start_deepspeed(model, conf, reader.packs_per_step, precision, universal=universal)

    def keep() -> None:
        _write_model(model, adapters, conf, ranks, precision)

    training = Training(engine, reader, held_out, conf.training, conf.folder, device=device, report=report, keep=keep)
    done = training.run()
    if conf.training.patience is None:
        keep()
    facts = {
        "precision": precision,
        "ranks": ranks.size,
        "steps": done.step,
        "tokens_trained": done.tokens,
        "tokens_per_epoch": reader.epoch_tokens(),
        "training_seconds": done.seconds,
        "stopped_early": conf.training.patience is not None and training.share < 1.0,
        "held_out": done.held_out,
    }
    if ranks.first:
        (conf.folder / "training.json").write_text(json.dumps(facts))
        if (conf.folder / _KEPT).exists():  # else an attempt was killed when all was done
            shutil.rmtree(conf.result, ignore_errors=True)
            (conf.folder / _KEPT).rename(conf.result)


def start_deepspeed(
    model: PreTrainedModel, conf: WorkerConf, packs_per_step: int, precision: Precision, *, universal: bool = False
) -> Any:
    """DeepSpeed engine around `CausalLoss` with a fused AdamW.

    Args:
        model: what is trained, as far as its weights want gradients.
        conf: settings.
        packs_per_step: packs of this rank for one optimizer step.
        precision: of weights and products.
        universal: whether the checkpoint to resume from has DeepSpeed's universal form.

    Raises:
        ConfigError: the DeepSpeed settings set what ledgerlm sets.
    """
    import deepspeed

    if clash := sorted(set(_OURS) & set(conf.deepspeed)):
        raise ConfigError(f"the DeepSpeed file sets {clash}; take them out, finetune's own settings decide them")
    _no_compiled_communication(deepspeed)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": packs_per_step,
        "gradient_clipping": conf.training.clip,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **conf.deepspeed,
        "checkpoint": {**conf.deepspeed.get("checkpoint", {}), "load_universal": universal},
    }
    training = conf.training
    loss = CausalLoss(
        model,
        contrast=training.contrast,
        temperature=training.temperature,
        dropout=training.dropout,
        among=conf.among,
    )
    stage = conf.deepspeed.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        # The loss reads the output weights without calling their module, which is where ZeRO-3 would fetch them.
        deepspeed.zero.register_external_parameter(loss, model.get_output_embeddings().weight)
    optimizer = torch.optim.AdamW(
        parameter_groups(loss, training.weight_decay),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        fused=True,
    )
    buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    engine = deepspeed.initialize(model=loss, optimizer=optimizer, config=settings)[0]
    _restore(engine.module, buffers)
    return engine


def _restore(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """DeepSpeed casts buffers with the weights, but rotary frequencies in bf16 would be other positions."""
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        place = module.get_submodule(owner)
        setattr(place, attribute, buffer.to(getattr(place, attribute).device))


def _no_compiled_communication(deepspeed: Any) -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce on CPUs.

    It would need a C++ compiler and half a minute on each new machine, and its waiting ranks spin; gloo does as well.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _precision(conf: WorkerConf, ranks: Ranks) -> Precision:
    if conf.training.precision != "auto":
        return conf.training.precision
    # A resumed run must not measure again: its checkpoints are of the type that was found first.
    note = conf.folder / "precision"
    found = note.read_text() if note.exists() else faster_precision(conf.device)
    # The slowest rank decides: all must use the same.
    precision: Precision = "bf16" if ranks.least(found == "bf16") else "fp32"
    if ranks.first:
        conf.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(precision)
    return precision


def first_model(conf: WorkerConf, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model before training: the base, or a Llama with random weights."""
    if conf.base is None:
        return new_llama(conf.shape, load_tokenizer(conf.tokenizer), context=conf.context, seed=conf.seed)
    return load_backbone(conf.base, dtype, quantisation=quantisation(conf.lora) if conf.lora else None)


def _model(conf: WorkerConf, precision: Precision) -> tuple[PreTrainedModel, PeftModel | None]:
    """What is trained, and, with LoRA, PEFT's view of it."""
    model = first_model(conf, _stored_type(conf, precision))
    adapters = with_lora(model, conf.lora, seed=conf.seed) if conf.lora else None
    if conf.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, adapters


def _stored_type(conf: WorkerConf, precision: Precision) -> torch.dtype:
    """Type of the result's weights: the base model's where there is one."""
    return torch.bfloat16 if conf.base and precision == "bf16" else torch.float32


def _data(conf: WorkerConf, ranks: Ranks) -> tuple[Reader, dict[str, list[Pack]]]:
    pack_tokens, packs = conf.training.packing(ranks.size)
    pack_tokens = max(pack_tokens, conf.context)
    stores = {
        split: WindowStore.build(
            sorted((conf.windows / f"split={split}").glob("*.parquet"))[ranks.rank :: ranks.size],
            list(conf.passes),
            conf.folder / "tokens" / f"{split}-{ranks.rank}.bin",
        )
        for split in ("train", "heldout")
    }
    reader = Reader(
        stores["train"], conf.passes, pack_tokens, packs, conf.seed, ranks, in_pairs=conf.training.contrast > 0
    )
    most = conf.training.held_out_tokens // ranks.size
    held_out = {kind: stores["heldout"].packs_of(kind, token_budget=4096, most_tokens=most) for kind in conf.passes}
    return reader, held_out


def _write_model(
    model: PreTrainedModel, adapters: PeftModel | None, conf: WorkerConf, ranks: Ranks, precision: Precision
) -> None:
    """Writes the weights as they are now as a Hugging Face folder, aside and then renamed; all ranks must call it."""
    dtype = _stored_type(conf, precision)
    weights = _whole_weights(adapters or model, dtype, trained=adapters is not None)
    if not ranks.first:
        return
    aside, target = conf.folder / "kept.aside", conf.folder / _KEPT
    shutil.rmtree(aside, ignore_errors=True)
    if adapters is None:
        with torch.device("meta"):
            plain: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
        plain.load_state_dict(weights, strict=False, assign=True)
        plain.tie_weights()
    else:
        assert conf.base is not None  # adapters stand beside its weights
        save_adapter(adapters, aside / "adapter", weights)
        plain = merge(load_backbone(conf.base, dtype), aside / "adapter")
    save_model(plain, conf, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def _whole_weights(model: nn.Module, dtype: torch.dtype, *, trained: bool) -> dict[str, torch.Tensor]:
    """Weights by name on the CPU, gathered from all ranks' shards; only those that are trained, if so asked."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in model.named_parameters():
        if trained and not parameter.requires_grad:
            continue
        full = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter if full is None else full).detach().to("cpu", dtype)
    return weights


def save_model(model: PreTrainedModel, conf: WorkerConf, folder: Path) -> None:
    """Writes a model with its tokenizer as a Hugging Face folder in safetensors."""
    disable_progress_bar()
    model.save_pretrained(folder)
    load_tokenizer(conf.tokenizer).save_pretrained(folder)


def _quiet() -> None:
    """Leaves to a rank's log what someone can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    disable_progress_bar()
    for name in ("DeepSpeed", "deepspeed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def held_out_numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """Loss and perplexity per kind of text, as numbers for the report."""
    losses = {kind: loss for kind, loss in facts["held_out"].items() if loss is not None}
    return {
        **{f"held_out_loss_{kind}": loss for kind, loss in losses.items()},
        **{f"perplexity_{kind}": float(np.exp(loss)) for kind, loss in losses.items()},
    }
