"""ALIMN's network: text side, gated fusion, branches, ensemble (source 003, sections 3.1.4 to 3.4; reconstructed).

A batch is ragged: the sentences of all clients stand in one matrix, and places say to which document and client each
belongs. Nothing is padded, so a client's score cannot depend on the clients beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.heads.alimn.settings import Activation, NetworkConf, Shape

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "identity": lambda values: values,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some clients.

    Attributes:
        x: structured features, `[B, F]`.
        states: states of all sentences, `[T, d]`.
        domains: domain of each sentence, int64 `[T]`.
        document: document of each sentence, int64 `[T]`, from 0 within the batch.
        client: client of each document, int64 `[D]`, from 0 within the batch.
        y: label of each client, `[B]`; NaN where it has none.
    """

    x: Tensor
    states: Tensor
    domains: Tensor
    document: Tensor
    client: Tensor
    y: Tensor

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch(**{name: getattr(self, name).to(device) for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What the network gives.

    Attributes:
        logit: log-odds of each client, `[B]`.
        auxiliary: L_aux, a scalar; zero when it is off.
    """

    logit: Tensor
    auxiliary: Tensor


def segment_softmax(scores: Tensor, segment: Tensor, count: int) -> Tensor:
    """Softmax within segments.

    Args:
        scores: `[T]`.
        segment: segment of each score, int64 `[T]`.
        count: how many segments there are.

    Returns:
        `[T]`; the weights of each segment that has a score add up to one.
    """
    highest = torch.full((count,), -torch.inf, device=scores.device).scatter_reduce(0, segment, scores.detach(), "amax")
    powers = torch.exp(scores - highest[segment])
    return powers / torch.zeros(count, device=scores.device).index_add(0, segment, powers)[segment]


def segment_sum(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """Sums of rows `[T, w]` within segments, `[count, w]`; zero for an empty segment."""
    return torch.zeros(count, values.shape[1], device=values.device).index_add(0, segment, values)


def segment_mean(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """Means of rows within segments, `[count, w]`; zero for an empty segment."""
    sizes = torch.bincount(segment, minlength=count).clamp(min=1)
    return segment_sum(values, segment, count) / sizes[:, None]


def gated_fusion(gate: Tensor, text: Tensor, structured: Tensor) -> Tensor:
    """z = g * E + (1 - g) * X, number by number (section 3.2): g = 1 is the text alone, g = 0 the structured side."""
    return gate * text + (1 - gate) * structured


class DomainAdapters(nn.Module):
    """H + W_up silu(W_down H), with matrices of its own for each domain (section 3.1.4).

    W_up starts at zero, so an untrained adapter is closed: the identity (Houlsby et al. 2019).
    """

    def __init__(self, domains: int, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(domains, width, inner) / width**0.5)
        self.up = nn.Parameter(torch.zeros(domains, inner, width))

    def forward(self, states: Tensor, domains: Tensor) -> Tensor:
        """Adapts each row `[T, d]` by the adapter of its domain, int64 `[T]`."""
        adapted = states
        for domain in range(len(self.down)):
            mine = (domains == domain).to(states.dtype)[:, None]
            adapted = adapted + mine * (functional.silu(states @ self.down[domain]) @ self.up[domain])
        return adapted


class AttentionPool(nn.Module):
    """Weights of rows within segments: softmax of u · tanh(W h + b) (Yang et al. 2016, hierarchical attention)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, rows: Tensor, segment: Tensor, count: int) -> Tensor:
        """The weighted sums of the segments, `[count, w]`."""
        weights = segment_softmax(torch.tanh(self.project(rows)) @ self.query, segment, count)
        return segment_sum(weights[:, None] * rows, segment, count)


class CrossAttention(nn.Module):
    """softmax(Q_text K_struct^T / sqrt(d)) V_struct over the M structured features (section 3.1.5).

    Each feature has a key and a value of its own, scaled by the feature's number: k_j = x_j a_j + b_j, v_j alike. The
    source leaves open which side asks and how the result is combined: here sentences ask, and it is added to them.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.keys = nn.Parameter(torch.randn(2, features, width) / math.sqrt(width))
        self.values = nn.Parameter(torch.randn(2, features, width) / math.sqrt(width))

    def forward(self, sentences: Tensor, x: Tensor, owner: Tensor) -> Tensor:
        """What the sentences `[T, w]` find in the features `x` `[B, F]` of their clients `owner` `[T]`: `[T, w]`."""
        asked = self.query(sentences) / math.sqrt(sentences.shape[1])
        # With k_j = x_j a_j + b_j the products are two matrices; the keys of each client are never laid out.
        known = x[owner]
        weights = torch.softmax(known * (asked @ self.keys[0].T) + asked @ self.keys[1].T, dim=1)
        found: Tensor = (weights * known) @ self.values[0] + weights @ self.values[1]
        return found


class TextSide(nn.Module):
    """From the states of a client's sentences to E (sections 3.1.4, 3.1.5)."""

    def __init__(self, conf: NetworkConf, shape: Shape) -> None:
        super().__init__()
        self.adapters = DomainAdapters(shape.domains, shape.state, conf.adapter) if conf.adapter else None
        self.project = nn.Linear(shape.state, conf.width)
        self.cross = CrossAttention(shape.features, conf.width) if conf.cross_attention and conf.structured else None
        pools = conf.hierarchical_attention
        self.of_sentences = AttentionPool(conf.width) if pools else None
        self.of_documents = AttentionPool(conf.width) if pools else None

    def forward(self, batch: Batch, states: Tensor) -> Tensor:
        """E of each client, `[B, w]`; zero for a client without a sentence."""
        if self.adapters is not None:
            states = self.adapters(states, batch.domains)
        sentences = self.project(states)
        owner = batch.client[batch.document]
        if self.cross is not None:
            sentences = sentences + self.cross(sentences, batch.x, owner)
        if self.of_sentences is None or self.of_documents is None:
            return segment_mean(sentences, owner, len(batch.x))
        documents = self.of_sentences(sentences, batch.document, len(batch.client))
        pooled: Tensor = self.of_documents(documents, batch.client, len(batch.x))
        return pooled


class Branches(nn.Module):
    """r_m = phi_m(W_m z + b_m), h_m = r_m + z, logit = sum_m alpha_m v_m · h_m + b (sections 3.3, 3.4, eq. 8).

    alpha is a softmax of free numbers, so it stays on the simplex; one branch alone needs none.
    """

    def __init__(self, conf: NetworkConf) -> None:
        super().__init__()
        self.activations = conf.branches
        self.residual = conf.residual
        self.linear = nn.ModuleList(nn.Linear(conf.width, conf.width) for _ in conf.branches)
        self.read = nn.Parameter(torch.randn(len(conf.branches), conf.width) / math.sqrt(conf.width))
        self.bias = nn.Parameter(torch.zeros(1))
        self.mix = nn.Parameter(torch.zeros(len(conf.branches))) if len(conf.branches) > 1 else None

    @property
    def alpha(self) -> Tensor:
        """Weight of each branch, `[M]`; they add up to one."""
        return torch.ones(1, device=self.bias.device) if self.mix is None else torch.softmax(self.mix, 0)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds `[B]`, and the branches before the residual, `[M, B, w]`."""
        pairs = zip(self.linear, self.activations, strict=True)
        before = torch.stack([ACTIVATIONS[name](linear(z)) for linear, name in pairs])
        after = before + z if self.residual else before
        logit = torch.einsum("m,mw,mbw->b", self.alpha, self.read, after) + self.bias
        return logit, before


class Alimn(nn.Module):
    """The whole network, for a binary task."""

    feature_mean: Tensor
    feature_scale: Tensor
    state_mean: Tensor
    state_scale: Tensor

    def __init__(self, conf: NetworkConf, shape: Shape) -> None:
        super().__init__()
        self.conf, self.shape = conf, shape
        self.text = TextSide(conf, shape) if conf.text else None
        self.structured = nn.Linear(shape.features, conf.width) if conf.structured else None
        both = conf.inputs == "both"
        self.gate = nn.Linear(2 * conf.width, conf.width) if both and conf.fusion == "gate" else None
        self.concat = nn.Linear(2 * conf.width, conf.width) if both and conf.fusion == "concat" else None
        self.dropout = nn.Dropout(conf.dropout)
        self.branches = Branches(conf)
        # A one-hot column deviates by a third of what a z-score does; the penalty would fall on it nine times as hard.
        if conf.structured:
            self.register_buffer("feature_mean", torch.zeros(shape.features))
            self.register_buffer("feature_scale", torch.ones(shape.features))
        # States of a language model have a few large constant numbers; the training clients' mean goes out.
        if conf.text:
            self.register_buffer("state_mean", torch.zeros(shape.state))
            self.register_buffer("state_scale", torch.ones(shape.state))

    def standardised_states(self, states: Tensor) -> Tensor:
        """Sentence states with the training clients' mean and deviation taken out."""
        scaled: Tensor = (states - self.state_mean) / self.state_scale
        return scaled

    def standardised_features(self, x: Tensor) -> Tensor:
        """Structured features with the training clients' mean and deviation taken out."""
        scaled: Tensor = (x - self.feature_mean) / self.feature_scale
        return scaled

    def forward(self, batch: Batch, features: Tensor | None = None, states: Tensor | None = None) -> Output:
        """Scores a batch.

        Args:
            batch: the clients.
            features: standardised features, where a caller wants their gradient.
            states: standardised states, likewise.
        """
        z = self.dropout(self.fused(batch, features, states))
        logit, before = self.branches(z)
        # Before the residual: after it, the distance to z would be the size of the branch's own output, and pull
        # every branch to zero.
        auxiliary = (before - z).square().mean(dim=(1, 2)).sum() if self.conf.auxiliary else logit.new_zeros(())
        return Output(logit=logit, auxiliary=auxiliary)

    def fused(self, batch: Batch, features: Tensor | None = None, states: Tensor | None = None) -> Tensor:
        """z of each client, `[B, w]`."""
        x: Tensor | None = None
        if self.structured is not None:
            batch = replace(batch, x=self.standardised_features(batch.x) if features is None else features)
            x = self.structured(batch.x)
        if self.text is None:
            assert x is not None  # a network sees one side at the least
            return x
        e: Tensor = self.text(batch, self.standardised_states(batch.states) if states is None else states)
        if x is None:
            return e
        if self.gate is not None:
            return gated_fusion(torch.sigmoid(self.gate(torch.cat([e, x], dim=1))), e, x)
        if self.concat is not None:
            mixed: Tensor = self.concat(torch.cat([e, x], dim=1))
            return mixed
        return (e + x) / 2
