"""What one rank of a finetune does, from its share of the windows to the trained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ledgerlm.backbone.causal import Causal, pace, parameter_groups
from ledgerlm.backbone.lora import merge, quantisation, save_adapter, with_lora
from ledgerlm.backbone.loss import CausalLoss
from ledgerlm.backbone.model import load_backbone, new_llama
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.settings import BackboneRankConf
from ledgerlm.backbone.store import Reader, WindowStore, held_out_packs
from ledgerlm.text.tokenizer import load_tokenizer
from ledgerlm.training.artefacts import aside, finish
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.cpu import Precision, faster_precision
from ledgerlm.training.engine import DeepSpeedEngine, zero_stage
from ledgerlm.training.launch import finished, started
from ledgerlm.training.loop import Report, Training
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.store import files_of

if TYPE_CHECKING:
    from peft import PeftModel

_HELD_OUT = "held_out.json"


def train_rank(conf: BackboneRankConf, report: Report) -> None:
    """Trains one rank; the process group exists already. Rank 0 leaves the model in `conf.result`."""
    ranks, device = started(conf)
    disable_progress_bar()
    precision, why = _precision(conf, ranks)
    reader, held_out = _data(conf, ranks)
    model, adapters = _model(conf, precision)
    checkpoints = Checkpoints(conf.folder / "checkpoints", ranks)
    engine = start_deepspeed(model, conf, reader.packs_per_step, precision, checkpoints)
    task = Causal(reader, held_out, conf.training, device=device)

    def keep() -> None:
        losses = task.held_out_losses(engine)
        if ranks.first:
            (conf.folder / _HELD_OUT).write_text(json.dumps(losses))
        _write_model(model, adapters, conf, ranks, precision)

    training = Training(engine, task, checkpoints, pace(conf.training), report=report, keep=keep)
    done = training.run()
    if ranks.first:
        facts = {
            "precision": precision,
            "precision_because": why,
            "ranks": ranks.size,
            "steps": done.step,
            "tokens_trained": done.seen,
            "tokens_per_epoch": task.tokens_per_epoch,
            "training_seconds": done.seconds,
            "stopped_early": training.impatient,
            "held_out": json.loads((conf.folder / _HELD_OUT).read_text()),
        }
        finished(conf, facts)


def start_deepspeed(
    model: PreTrainedModel,
    conf: BackboneRankConf,
    packs_per_step: int,
    precision: Precision,
    checkpoints: Checkpoints,
) -> DeepSpeedEngine:
    """DeepSpeed engine around `CausalLoss` with a fused AdamW.

    Args:
        model: what is trained, as far as its weights want gradients.
        conf: settings.
        packs_per_step: packs of this rank for one optimizer step.
        precision: of weights and products.
        checkpoints: where the training may go on from.
    """
    training = conf.training
    loss = CausalLoss(
        model,
        contrast=training.contrast,
        temperature=training.temperature,
        dropout=training.dropout,
        among=conf.among,
    )
    if zero_stage(conf.deepspeed) == 3:
        import deepspeed

        # The loss reads the output weights without calling their module, which is where ZeRO-3 would fetch them.
        deepspeed.zero.register_external_parameter(loss, model.get_output_embeddings().weight)
    optimizer = torch.optim.AdamW(
        parameter_groups(loss, training.weight_decay),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        fused=True,
    )
    return DeepSpeedEngine(
        loss,
        optimizer,
        checkpoints,
        conf.deepspeed,
        clip=training.clip,
        batches_per_step=packs_per_step,
        bf16=precision == "bf16",
    )


def _precision(conf: BackboneRankConf, ranks: Ranks) -> tuple[Precision, str]:
    """Type of weights and products, and why."""
    if conf.training.precision != "auto":
        return conf.training.precision, "set"
    # A resumed run must not measure again: its checkpoints are of the type that was found first.
    note = conf.folder / "precision.json"
    if note.exists():
        found, why = json.loads(note.read_text())
    else:
        found, why = faster_precision(conf.device)
    # The slowest rank decides: all must use the same.
    precision: Precision = "bf16" if ranks.least(found == "bf16") else "fp32"
    if ranks.first:
        conf.folder.mkdir(parents=True, exist_ok=True)
        why = why if precision == found else f"auto: another rank is slower in bf16; on rank 0 {why}"
        note.write_text(json.dumps([precision, why]))
    return precision, why


def first_model(conf: BackboneRankConf, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model before training: the base, or a Llama with random weights."""
    if conf.base is None:
        return new_llama(conf.shape, load_tokenizer(conf.tokenizer), context=conf.context, seed=conf.seed)
    return load_backbone(conf.base, dtype, quantisation=quantisation(conf.lora) if conf.lora else None)


def _model(conf: BackboneRankConf, precision: Precision) -> tuple[PreTrainedModel, PeftModel | None]:
    """What is trained, and, with LoRA, PEFT's view of it."""
    model = first_model(conf, _stored_type(conf, precision))
    adapters = with_lora(model, conf.lora, seed=conf.seed) if conf.lora else None
    if conf.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, adapters


def _stored_type(conf: BackboneRankConf, precision: Precision) -> torch.dtype:
    """Type of the result's weights: the base model's where there is one."""
    return torch.bfloat16 if conf.base and precision == "bf16" else torch.float32


def _data(conf: BackboneRankConf, ranks: Ranks) -> tuple[Reader, dict[str, list[Pack]]]:
    pack_tokens, packs = conf.training.packing(ranks.size)
    train, held_out = (
        WindowStore.build(
            files_of(conf.windows / f"split={split}", ranks),
            list(conf.passes),
            conf.folder / "tokens" / f"{split}-{ranks.rank}",
        )
        for split in ("train", "heldout")
    )
    reader = Reader(
        train,
        conf.passes,
        max(pack_tokens, conf.context),
        packs,
        conf.seed,
        ranks,
        in_pairs=conf.training.contrast > 0,
    )
    most = conf.training.held_out_tokens
    return reader, {kind: held_out_packs(held_out, kind, ranks, most_tokens=most) for kind in conf.passes}


def _write_model(
    model: PreTrainedModel, adapters: PeftModel | None, conf: BackboneRankConf, ranks: Ranks, precision: Precision
) -> None:
    """Writes the weights as they are now as a Hugging Face folder, aside and then renamed; all ranks must call it."""
    dtype = _stored_type(conf, precision)
    weights = _whole_weights(adapters or model, dtype, trained=adapters is not None)
    if not ranks.first:
        return
    draft = aside(conf.result)
    if adapters is None:
        with torch.device("meta"):
            plain: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
        plain.load_state_dict(weights, strict=False, assign=True)
        plain.tie_weights()
    else:
        assert conf.base is not None  # adapters stand beside its weights
        save_adapter(adapters, draft / "adapter", weights)
        plain = merge(load_backbone(conf.base, dtype), draft / "adapter")
    save_model(plain, conf, draft)
    finish(draft, conf.result)


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


def save_model(model: PreTrainedModel, conf: BackboneRankConf, folder: Path) -> None:
    """Writes a model with its tokenizer as a Hugging Face folder in safetensors."""
    disable_progress_bar()
    model.save_pretrained(folder)
    load_tokenizer(conf.tokenizer).save_pretrained(folder)


def held_out_numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """Loss and perplexity per kind of text, as numbers for the report."""
    losses = {kind: loss for kind, loss in facts["held_out"].items() if loss is not None}
    return {
        **{f"held_out_loss_{kind}": loss for kind, loss in losses.items()},
        **{f"perplexity_{kind}": float(np.exp(loss)) for kind, loss in losses.items()},
    }
