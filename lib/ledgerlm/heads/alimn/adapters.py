"""Adapters inside a backbone, switched by domain tag (section 3.1.4): bottlenecks behind its blocks, or by PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ledgerlm.errors import ConfigError
from ledgerlm.heads.alimn.network import DomainAdapters


class BlockAdapters(nn.Module):
    """One bottleneck adapter for each block and domain of a backbone, whose own weights stay as they are.

    The blocks' outputs are changed by hooks; `domain` says which adapter is open, None closes all.
    """

    def __init__(self, model: PreTrainedModel, domains: Sequence[str], inner: int) -> None:
        """Freezes the backbone and hooks an adapter behind each of its blocks.

        Raises:
            ConfigError: the model has no list of blocks.
        """
        super().__init__()
        blocks = getattr(model.base_model, "layers", None)
        if not isinstance(blocks, nn.ModuleList):
            raise ConfigError(f"{type(model).__name__} has no 'layers'; use Llama, Qwen3 or Mistral")
        width = model.config.hidden_size
        model.requires_grad_(False)
        self.names = tuple(domains)
        self.domain: str | None = None
        self.of_block = nn.ModuleList(DomainAdapters(len(domains), width, inner) for _ in blocks)
        for block, adapters in zip(blocks, self.of_block, strict=True):
            block.register_forward_hook(self._hook(adapters))

    def _hook(self, adapters: nn.Module) -> Callable[[nn.Module, object, Any], Any]:
        def adapt(_module: nn.Module, _args: object, output: Any) -> Any:
            if self.domain is None:
                return output
            states = output[0] if isinstance(output, tuple) else output
            flat = states.reshape(-1, states.shape[-1])
            place = torch.full((len(flat),), self.names.index(self.domain), device=flat.device)
            adapted = adapters(flat, place).reshape(states.shape)
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return adapt

    @contextmanager
    def opened(self, domain: str) -> Iterator[None]:
        """Opens one domain's adapters while the block runs.

        Raises:
            ConfigError: there are no adapters for it.
        """
        if domain not in self.names:
            raise ConfigError(f"no adapters for domain '{domain}'; there are {', '.join(self.names)}")
        self.domain = domain
        try:
            yield
        finally:
            self.domain = None


def peft_adapters(model: PreTrainedModel, domains: Sequence[str], rank: int = 8) -> PeftModel:
    """The same switch by PEFT: one low-rank adapter for each domain around a frozen backbone.

    `adapted.set_adapter(domain)` opens one, `with adapted.disable_adapter()` closes all. Untrained adapters change
    nothing. PEFT has no bottleneck adapter; LoRA (Hu et al. 2022) takes its place there.

    Args:
        model: the backbone.
        domains: tags.
        rank: inner width.
    """
    conf = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    adapted: PeftModel = get_peft_model(model, conf, adapter_name=domains[0])
    for domain in domains[1:]:
        adapted.add_adapter(domain, conf)
    return adapted
