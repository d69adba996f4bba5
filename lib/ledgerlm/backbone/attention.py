"""Attention over packs: causal inside each window, never across, and no mask over the whole row is ever built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ledgerlm.backbone.packs import Pack
from ledgerlm.errors import ConfigError

PACKED_ATTENTION = "ledgerlm_packed"

# Neighbouring windows share a padded group while the longest is within this factor (or these tokens) of the shortest.
_GROUP_GROWTH, _GROUP_SLACK = 1.25, 8
# Up to this length bf16 scores on a CPU are computed by batched matrix products, which were seen to be 2.5 to 5 times
# faster than the fused CPU kernel forward and backward; longer windows would hold too large a score matrix.
_LONGEST_BMM = 1024


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring windows of a pack that are computed as one batch.

    Attributes:
        windows: how many.
        length: tokens of the longest.
        tokens: tokens of all.
        padded: for each padded place its token, [windows * length]; None when all have the same length.
        places: for each token its padded place, [tokens]; None when all have the same length.
        padding: padded places that hold no token; None when all have the same length.
    """

    windows: int
    length: int
    tokens: int
    padded: Tensor | None = None
    places: Tensor | None = None
    padding: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """Where the windows of a row stand; made once per pack and used by every layer.

    Attributes:
        cu_seqlens: bounds of the windows on the model's device, int32 [S + 1].
        lengths: tokens of each window, on the host, int [S].
    """

    cu_seqlens: Tensor
    lengths: NDArray[np.integer]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self.lengths.max())

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Batches of neighbouring windows, in the order of the row; a kernel for windows of any length needs none."""
        groups: list[Group] = []
        start = 0
        while start < len(self.lengths):
            shortest = longest = int(self.lengths[start])
            stop = start + 1
            while stop < len(self.lengths):
                low, high = min(shortest, int(self.lengths[stop])), max(longest, int(self.lengths[stop]))
                if high > max(low * _GROUP_GROWTH, low + _GROUP_SLACK):
                    break
                shortest, longest, stop = low, high, stop + 1
            groups.append(_group(self.lengths[start:stop], self.cu_seqlens.device))
            start = stop
        return tuple(groups)


def layout(cu_seqlens: NDArray[np.integer], device: torch.device | str = "cpu") -> Layout:
    """Plans the attention of a row of windows.

    Args:
        cu_seqlens: bounds of the windows [S + 1]; sorted by length they make the fewest groups.
        device: where the model is.
    """
    bounds = torch.from_numpy(np.asarray(cu_seqlens, dtype=np.int32)).to(device)
    return Layout(cu_seqlens=bounds, lengths=np.diff(cu_seqlens))


def model_inputs(pack: Pack, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Keyword arguments that make a transformers model with `PACKED_ATTENTION` read a pack as one row of windows."""
    plan = layout(pack.cu_seqlens, device)
    return {
        "input_ids": torch.from_numpy(pack.input_ids).long()[None].to(device),
        "position_ids": torch.from_numpy(pack.position_ids).long()[None].to(device),
        "use_cache": False,
        "packed_layout": plan,
    }


def register() -> str:
    """Makes the attention known to transformers, in this process; returns its name for `attn_implementation`."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
    return PACKED_ATTENTION


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: Layout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each window of a flat row; the signature is that of transformers' attention functions.

    Args:
        query: [1, H, T, D]; without a layout [B, H, L, D], each row one window.
        key: [1, G, T, D], G a divisor of H (grouped queries).
        value: as `key`.
        scaling: factor on the scores, D ** -0.5 when None.
        dropout: on the attention weights; must be 0.
        packed_layout: the windows of the row.
        sliding_window: refused when a window is longer.

    Returns:
        [1, T, H, D] (or [B, L, H, D]), and no weights.
    """
    longest = query.shape[2] if packed_layout is None else packed_layout.longest
    if sliding_window is not None and longest > sliding_window:
        raise ConfigError(
            f"windows of {longest} tokens do not fit the model's sliding attention of {sliding_window}; "
            "set the context to that many tokens or fewer"
        )
    if dropout:
        raise ConfigError(f"attention dropout {dropout} is not supported with packs; set the model's to 0")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed_layout is None:
        return _causal(query, key, value, scale).transpose(1, 2), None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _variable_length(query, key, value, scale, packed_layout), None
    sizes = [group.tokens for group in packed_layout.groups]
    parts = zip(
        packed_layout.groups, *(torch.split(tensor, sizes, dim=2) for tensor in (query, key, value)), strict=True
    )
    outputs = [_grouped(group, q, k, v, scale) for group, q, k, v in parts]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _group(lengths: NDArray[np.integer], device: torch.device | str) -> Group:
    windows, longest, tokens = len(lengths), int(lengths.max()), int(lengths.sum())
    if tokens == windows * longest:
        return Group(windows=windows, length=longest, tokens=tokens)
    real = np.arange(longest) < lengths[:, None]
    places = np.flatnonzero(real)
    padded = np.zeros(windows * longest, dtype=np.int64)
    padded[places] = np.arange(tokens)
    on_device = [torch.from_numpy(array).to(device) for array in (padded, places, np.flatnonzero(~real))]
    return Group(windows, longest, tokens, *on_device)


def _grouped(group: Group, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of one group: [1, H, t, D] in, [1, t, H, D] out."""
    q, k, v = (_windows(tensor, group) for tensor in (query, key, value))
    output = _causal(q, k, v, scale).transpose(1, 2).reshape(group.windows * group.length, query.shape[1], -1)
    if group.places is None:
        return output[None]
    tokens: Tensor = _TakeTokens.apply(output, group.places, group.padded, group.padding)  # type: ignore[no-untyped-call]
    return tokens[None]


def _windows(tensor: Tensor, group: Group) -> Tensor:
    """[1, H, t, D] to [S, H, L, D]."""
    rows = tensor[0].transpose(0, 1)
    if group.padded is not None:
        rows = _PadTokens.apply(rows, group.padded, group.places)  # type: ignore[no-untyped-call]
    return torch.unflatten(rows, 0, (group.windows, group.length)).transpose(1, 2)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention over [S, H, L, D] rows; padding on the right needs no mask, as no token looks to the right."""
    length = query.shape[2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and length <= _LONGEST_BMM:
        return _causal_by_bmm(query, key, value, scale)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


def _causal_by_bmm(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    windows, heads, length, size = query.shape
    groups = key.shape[1]
    # The query heads that share a key head stand one below the other, so keys and values are never repeated.
    q = query.reshape(windows * groups, heads // groups * length, size)
    k, v = (tensor.reshape(windows * groups, length, size) for tensor in (key, value))
    mask = _causal_mask(length, heads // groups, query.dtype).expand(windows * groups, -1, -1)
    weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, v).view(windows, heads, length, size)


@lru_cache(maxsize=64)
def _causal_mask(length: int, repeats: int, dtype: torch.dtype) -> Tensor:
    mask = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
    return mask.repeat(repeats, 1)


def _variable_length(query: Tensor, key: Tensor, value: Tensor, scale: float, plan: Layout) -> Tensor:
    """The flash kernel that torch ships: no padding and no groups."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output = varlen_attn(
        q,
        k,
        v,
        plan.cu_seqlens,
        plan.cu_seqlens,
        plan.longest,
        plan.longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None]


def _no_mask(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ConfigError(f"{PACKED_ATTENTION} reads packs, not padded batches; leave the attention mask out")


class _PadTokens(torch.autograd.Function):
    """Copies tokens to padded places. Padding gets no gradient: no token looks at it."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return tokens.index_select(0, padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grads[0].index_select(0, places), None, None


class _TakeTokens(torch.autograd.Function):
    """Takes the tokens out of padded places. The gradient of padding is zero."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, padded: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(padded, padding)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        padded, padding = ctx.saved_tensors
        return grads[0].index_select(0, padded).index_fill_(0, padding, 0), None, None, None
