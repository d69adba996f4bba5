"""The likelihood of each of a closed set of answers: every token of every name, nothing generated, nothing parsed.

What prompts share is computed once: the layers' keys and values of the instruction once for a scorer, those of a
body once for all answers, and the answers' common beginnings once, as a trie whose tokens look only at the prompt and
at their own ancestors. A whole batch is one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ledgerlm.backbone.loss import CausalLoss
from ledgerlm.backbone.model import load_backbone
from ledgerlm.heads.tasks import Floats
from ledgerlm.instruct.tokens import PromptTokens, encode_bodies, plain_tokenizer

_LOGITS = 1 << 24  # numbers of logits held at once


@dataclass(frozen=True, slots=True)
class Trie:
    """Answers as one tree. Its inner nodes are fed to the model; the last token of an answer is only looked up.

    Attributes:
        tokens: token of each inner node, parents first.
        parents: inner node above each inner node, -1 for the prompt itself.
        depths: tokens from the prompt to each inner node, from 1.
        edges: for every step of every answer: answer, inner node that predicts it (-1: the prompt), token.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    edges: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> Trie:
        """The trie of answers, none of which begins another."""
        places: dict[tuple[int, ...], int] = {(): -1}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        edges: list[tuple[int, int, int]] = []
        for number, answer in enumerate(answers):
            for step, token in enumerate(answer):
                prefix = tuple(answer[:step])
                edges.append((number, places[prefix], token))
                longer = (*prefix, token)
                if step < len(answer) - 1 and longer not in places:
                    places[longer] = len(tokens)
                    tokens.append(token)
                    parents.append(places[prefix])
                    depths.append(step + 1)
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(edges))

    def sees(self) -> Tensor:
        """Which inner nodes each one looks at: its ancestors and itself, bool [N, N]."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
        return seen


class Scorer:
    """An opened model with the answers that it chooses from."""

    def __init__(self, model: PreTrainedModel, tokens: PromptTokens, *, device: str = "cpu") -> None:
        """Prepares a model for scoring.

        Args:
            model: with its adapters merged, if there are any.
            tokens: prompt and answers.
            device: where the model is put.
        """
        CausalLoss(model)  # refuses heads that are more than a matrix
        model.set_attn_implementation("sdpa")  # that of packs takes no tree
        self._model = model.to(device).eval()
        self._tokens, self._device, self._trie = tokens, device, Trie.of(tokens.answers)
        self._tokenizer = plain_tokenizer(tokens.tokenizer)

    @classmethod
    def open(cls, folder: str, adapter: str | None, tokens: PromptTokens, *, device: str = "cpu") -> Scorer:
        """Opens a model folder, with an adapter's weights added where there is one."""
        from ledgerlm.backbone.lora import merge

        model = load_backbone(folder, torch.float32 if device == "cpu" else torch.bfloat16)
        return cls(model if adapter is None else merge(model, Path(adapter)), tokens, device=device)

    def log_likelihoods(self, bodies: Sequence[str], *, batch_tokens: int = 8192) -> Floats:
        """Logarithm of the probability that the model gives to each whole answer, among the answers if they are closed.

        Args:
            bodies: texts between instruction and question.
            batch_tokens: most tokens of a forward pass, padding and answers included.

        Returns:
            Bodies x answers, in nats; not normalised over the answers.
        """
        rows = [[*ids, *self._tokens.tail] for ids in encode_bodies(bodies, self._tokenizer, self._tokens)]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = np.zeros((len(rows), len(self._tokens.answers)))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and self._padded(len(rows[order[stop]]), stop + 1 - start) <= batch_tokens:
                stop += 1
            members = order[start:stop]
            found[members] = self._batch([rows[place] for place in members])
            start = stop
        return found

    def _padded(self, longest: int, rows: int) -> int:
        return (longest + len(self._trie.tokens)) * rows

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        longest, nodes = int(lengths.max()), len(self._trie.tokens)
        ids = torch.zeros((len(rows), longest + nodes), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        ids[:, longest:] = torch.tensor(self._trie.tokens, dtype=torch.long)
        states = self._model.base_model(
            input_ids=ids.to(self._device),
            attention_mask=self._mask(lengths, longest),
            position_ids=self._positions(lengths, longest),
            past_key_values=self._cache(len(rows)),
            use_cache=True,
        ).last_hidden_state
        last = states[torch.arange(len(rows), device=self._device), lengths - 1]
        return self._sums(torch.cat((last[:, None], states[:, longest:]), dim=1))

    def _sums(self, states: Tensor) -> NDArray[np.float64]:
        """Log-likelihood of each answer from the states of the prompt's end and the inner nodes, [B, 1 + N, d]."""
        weight = self._model.get_output_embeddings().weight
        answer, source, token = torch.tensor(self._trie.edges, device=self._device).T
        rivals = None
        if self._tokens.closed:
            known, token = token.unique(return_inverse=True)
            weight = weight[known]
            rivals = torch.zeros((states.shape[1], len(known)), dtype=torch.bool, device=self._device)
            rivals[source + 1, token] = True
        found = torch.zeros((len(states), len(self._tokens.answers)), dtype=torch.float64, device=self._device)
        for part, out in zip(
            (parts := torch.split(states, max(1, _LOGITS // (states.shape[1] * len(weight))))),
            torch.split(found, [len(part) for part in parts]),
            strict=True,
        ):
            logits = torch.nn.functional.linear(part, weight).float()
            if rivals is not None:
                logits = logits.masked_fill(~rivals, -torch.inf)
            total = logits.logsumexp(-1)
            out.index_add_(1, answer, (logits[:, source + 1, token] - total[:, source + 1]).double())
        return found.cpu().numpy()

    def _mask(self, lengths: Tensor, longest: int) -> Tensor:
        """What each token looks at, bool [B, 1, S + N, H + S + N]: instruction, padded body, inner nodes."""
        nodes, rows = len(self._trie.tokens), len(lengths)
        head = torch.ones((rows, longest + nodes, len(self._tokens.head)), dtype=torch.bool, device=self._device)
        real = torch.arange(longest, device=self._device) < lengths[:, None]
        causal = torch.ones((longest, longest), dtype=torch.bool, device=self._device).tril()
        to_body = torch.cat((causal.expand(rows, -1, -1), real[:, None].expand(-1, nodes, -1)), dim=1)
        to_nodes = torch.zeros((longest + nodes, nodes), dtype=torch.bool, device=self._device)
        to_nodes[longest:] = self._seen
        return torch.cat((head, to_body, to_nodes.expand(rows, -1, -1)), dim=2)[:, None]

    def _positions(self, lengths: Tensor, longest: int) -> Tensor:
        depths = torch.tensor(self._trie.depths, dtype=torch.long, device=self._device)
        body = torch.arange(longest, device=self._device).expand(len(lengths), -1)
        return len(self._tokens.head) + torch.cat((body, lengths[:, None] + depths - 1), dim=1)

    @cached_property
    def _seen(self) -> Tensor:
        return self._trie.sees().to(self._device)

    @cached_property
    def _head(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the instruction, of each layer."""
        cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([self._tokens.head], device=self._device)
        with torch.inference_mode():
            self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: Sequence[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]

    def _cache(self, rows: int) -> DynamicCache:
        """The instruction's keys and values for a batch; nothing is copied."""
        shared = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self._head]
        return DynamicCache(shared, config=self._model.config)
