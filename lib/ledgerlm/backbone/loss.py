"""Next-token loss that never holds the logits of a whole pack, and makes its gradients on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ledgerlm.backbone.attention import model_inputs
from ledgerlm.backbone.choices import Choices
from ledgerlm.backbone.packs import Pack
from ledgerlm.errors import ConfigError

# Logits held at once: 4 MiB of fp32 stay in a CPU core's caches; a GPU wants larger products.
_CPU_LOGITS, _GPU_LOGITS = 1 << 20, 1 << 27
_FEWEST_ROWS = 128  # of a product: with fewer, a large vocabulary's weights are read more often than they are used
_SMALLEST = 1e-37  # below it the logarithm of an fp32 probability would be infinite
# Heads that do more than multiply by the output weights.
_OWN_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class CausalLoss(nn.Module):
    """A causal language model that gives the sum of its next-token losses over a pack.

    The attribute `model` is the Hugging Face model; its output head is used without ever being called, so a pack of T
    tokens needs a slice of the T x vocabulary logits at a time, and no second pass for the gradient.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        contrast: float = 0.0,
        temperature: float = 0.1,
        dropout: float = 0.0,
        among: Sequence[Sequence[int]] = (),
    ) -> None:
        """Wraps a model.

        Args:
            model: a causal language model.
            contrast: weight of the contrastive term, for each token that is learnt.
            temperature: of that term.
            dropout: share of the numbers that each part of a block adds which training leaves out; see `add_dropout`.
            among: answers that alone compete, see `Choices`; what is learnt of each window is one of them. None: the
                whole vocabulary competes.

        Raises:
            ConfigError: the model's head is more than a matrix.
        """
        super().__init__()
        head = model.get_output_embeddings()
        unusual = [name for name in _OWN_HEAD if getattr(model.config, name, None) not in (None, 1.0)]
        if not isinstance(head, nn.Linear) or head.bias is not None or unusual:
            raise ConfigError(
                f"the output head of {type(model).__name__} is not a plain matrix {unusual or ''}; "
                "use Llama, Qwen3, Mistral or another model with a linear head"
            )
        if dropout:
            add_dropout(model, dropout)
        self.model: PreTrainedModel = model
        self.contrast: float = contrast
        self.temperature: float = temperature
        self.added: Tensor | float = 0.0  # the contrastive part of the newest loss
        self.choices: Choices | None = Choices.of(among) if among else None

    def forward(
        self, pack_inputs: dict[str, Any], places: Tensor, targets: Tensor, views: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Sum of the losses in nats, fp32.

        Args:
            pack_inputs: from `model_inputs`.
            places: positions in the row that have a next token in the same window, int64 [N].
            targets: those next tokens, int64 [N].
            views: length and client of each window, int64 [S], for the contrastive term.
        """
        states = self.model.base_model(**pack_inputs).last_hidden_state[0]
        weight = self.model.get_output_embeddings().weight
        rivals = None
        if self.choices is not None:
            rows = self.choices.rows(places.cpu().numpy(), targets.cpu().numpy())
            rivals = torch.from_numpy(self.choices.allowed[rows]).to(weight.device)
            known = torch.from_numpy(self.choices.tokens).to(weight.device)
            weight, targets = weight[known], torch.searchsorted(known, targets)
        total: Tensor = _SummedLoss.apply(states, weight, Learnt(places, targets, rivals))  # type: ignore[no-untyped-call]
        if views is None or not self.contrast:
            return total
        added = self.contrast * len(targets) * contrastive_loss(states, *views, temperature=self.temperature)
        self.added = added.detach()
        return total + added


def add_dropout(model: PreTrainedModel, share: float) -> None:
    """Adds dropout to the embeddings and to what attention and feed-forward part of each block add.

    That is where the transformer had it (Vaswani et al. 2017, section 5.4). Llama and its kin have none, for they read
    each text once; a small corpus is read many times.

    Args:
        model: a model whose blocks have a `self_attn` and an `mlp`; its configuration and weights stay as they are.
        share: of the numbers that are set to zero in training.

    Raises:
        ConfigError: the model has no such blocks.
    """
    blocks = [part for part in model.modules() if hasattr(part, "self_attn") and hasattr(part, "mlp")]
    if not blocks:
        raise ConfigError(f"dropout {share} knows the blocks of Llama and its kin, not those of {type(model).__name__}")

    def drop(part: nn.Module, _inputs: Any, output: Any) -> Any:
        first, *others = output if isinstance(output, tuple) else (output,)
        dropped = functional.dropout(first, share, part.training)
        return (dropped, *others) if isinstance(output, tuple) else dropped

    for part in (model.get_input_embeddings(), *(part for block in blocks for part in (block.self_attn, block.mlp))):
        part.register_forward_hook(drop)


def contrastive_loss(states: Tensor, lengths: Tensor, clients: Tensor, *, temperature: float) -> Tensor:
    """How badly the windows of a client find each other among all windows of a pack, in nats.

    The mean of the negative log-softmax of cosines over positives, as in SupCon (Khosla et al. 2020); with slices of
    one history as views of a client it is the idea of CoLES (Babaev et al. 2022).

    Args:
        states: of all tokens, [T, d].
        lengths: tokens of each window, int64 [S].
        clients: client of each window, int64 [S].
        temperature: cosines are divided by it.

    Returns:
        The mean over windows that are not the only one of their client; zero when there is none.
    """
    count = len(lengths)
    window = torch.repeat_interleave(torch.arange(count, device=states.device), lengths)
    sums = torch.zeros(count, states.shape[1], device=states.device).index_add(0, window, states.float())
    views = functional.normalize(sums / lengths[:, None], dim=1)
    itself = torch.eye(count, dtype=torch.bool, device=states.device)
    logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    same = (clients[:, None] == clients) & ~itself
    log_share = logits.log_softmax(1).masked_fill(~same, 0.0)
    others = same.sum(1)
    return -(log_share.sum(1) / others.clamp(min=1)).sum() / (others > 0).sum().clamp(min=1)


def views_of(pack: Pack, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Length and client of each window of a pack, for `CausalLoss.forward`."""
    lengths = torch.from_numpy(pack.lengths.astype(np.int64))
    return lengths.to(device), torch.from_numpy(pack.owners).to(device)


def loss_inputs(pack: Pack, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Tensor, Tensor]:
    """Arguments of `CausalLoss.forward` for a pack: what is learnt of each window, never its first token."""
    inner = np.ones(len(pack.input_ids), dtype=bool)
    inner[pack.cu_seqlens[1:] - 1] = False
    if pack.targets is not None:
        to_end = np.repeat(pack.cu_seqlens[1:], pack.lengths) - np.arange(len(inner)) - 1
        inner &= to_end <= np.repeat(pack.targets, pack.lengths)
    places = np.flatnonzero(inner)
    targets = pack.input_ids[places + 1].astype(np.int64)
    return model_inputs(pack, device), torch.from_numpy(places).to(device), torch.from_numpy(targets).to(device)


class Learnt(NamedTuple):
    """What is learnt of a pack.

    Attributes:
        places: positions in the row that have a next token in the same window, int64 [N].
        targets: those next tokens, as rows of the output weights, int64 [N].
        rivals: which rows compete at each of them, bool [N, rows]; None: all.
    """

    places: Tensor
    targets: Tensor
    rivals: Tensor | None = None


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy of a linear head, in slices; forward makes the gradients, so logits are computed once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, learnt: Learnt) -> Tensor:
        places, targets, rivals = learnt
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        rows = max(_FEWEST_ROWS, (_CPU_LOGITS if states.device.type == "cpu" else _GPU_LOGITS) // weight.shape[0])
        for_states, for_weight = ctx.needs_input_grad[:2]
        state_grad = torch.zeros_like(states) if for_states else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        allowed = [None] * -(-len(places) // rows) if rivals is None else torch.split(rivals, rows)
        for at, target, among in zip(torch.split(places, rows), torch.split(targets, rows), allowed, strict=False):
            known = states[at]
            logits = functional.linear(known, weight).float()
            probability = (logits if among is None else logits.masked_fill_(~among, -torch.inf)).softmax(-1)
            right = probability.gather(1, target[:, None])
            total -= right.clamp_min(_SMALLEST).log_().sum()
            if state_grad is None and weight_grad is None:
                continue
            slope = probability.scatter_(1, target[:, None], right - 1).to(weight.dtype)
            if state_grad is not None:
                state_grad[at] = slope @ weight
            if weight_grad is not None:
                weight_grad += slope.T @ known
        ctx.save_for_backward(state_grad, weight_grad)
        ctx.weight_type = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        state_grad, weight_grad = ctx.saved_tensors
        factor = grads[0]
        of_states = None if state_grad is None else state_grad * factor.to(state_grad.dtype)
        of_weight = None if weight_grad is None else (weight_grad * factor).to(ctx.weight_type)
        return of_states, of_weight, None
