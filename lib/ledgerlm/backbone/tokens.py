"""From texts to the flat token arrays that embedding works on: ids, and what each token counts for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.packs import Pack, pack, pack_plan
from ledgerlm.backbone.windows import windows
from ledgerlm.text.tokenizer import token_events, token_fields

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Document:
    ids: NDArray[np.int32]
    events: NDArray[np.int32]
    fields: NDArray[np.int16]
    cuts: list[slice]
    events_dropped: int


@dataclass(frozen=True, slots=True)
class PackTokens:
    """A pack and what its tokens count for; positions are places in the flat row.

    Attributes:
        pack: the windows in one flat row.
        pooled: positions of the pooled tokens, int64 [N].
        document: row of each pooled token's document, int64 [N].
        age: how many events follow the token's event in its document, int32 [N].
        last: whether it is its document's last token, bool [N].
        weight: how much it counts in means over the document, float32 [N].
        scored: positions of the tokens whose surprise counts, int64 [M]; none is the first of its window.
        scored_document: row of each scored token's document, int64 [M].
        scored_field: field of each scored token, int64 [M].
        scored_age: as `age`, int32 [M].
    """

    pack: Pack
    pooled: NDArray[np.int64]
    document: NDArray[np.int64]
    age: NDArray[np.int32]
    last: NDArray[np.bool_]
    weight: NDArray[np.float32]
    scored: NDArray[np.int64]
    scored_document: NDArray[np.int64]
    scored_field: NDArray[np.int64]
    scored_age: NDArray[np.int32]


class TokenBuffer:
    """The tokens of a buffer of documents, flat, cut into windows.

    Attributes:
        token_count: tokens read of each document, window starts not counted, int32 [D].
        pooled_count: tokens pooled of each document, int64 [D].
        events_dropped: oldest events of each document that `max_tokens` left out, int32 [D].
        event_count: events of each document, those left out among them, int32 [D].
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, start_id: int, definition: EmbeddingDefinition
    ) -> None:
        # Line breaks at the end would open an event without content, which `last_event` would then read.
        stripped = [text.rstrip("\n") for text in texts]
        encodings = tokenizer.backend_tokenizer.encode_batch(stripped, add_special_tokens=False)
        documents = [_read(text, code, definition) for text, code in zip(stripped, encodings, strict=True)]
        lengths = np.fromiter((len(document.ids) for document in documents), np.int64, len(documents))
        first = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        self._definition = definition
        self._start_id = start_id
        self.token_count = lengths.astype(np.int32)
        self.events_dropped = np.fromiter((doc.events_dropped for doc in documents), np.int32, len(documents))
        self._ids = _joined([document.ids for document in documents], np.int32)
        self._fields = _joined([document.fields for document in documents], np.int16)
        events = _joined([document.events for document in documents], np.int32)
        self._document = np.repeat(np.arange(len(documents)), lengths)
        newest = events[np.maximum(first[1:] - 1, 0)] if len(events) else np.zeros(len(documents), np.int32)
        self.event_count = np.where(lengths > 0, newest + 1, 0).astype(np.int32)
        self._age = newest[self._document] - events
        self._in_scope = np.ones(len(events), bool) if definition.header else events >= 0
        self._last = np.zeros(len(events), bool)
        self._last[first[1:][lengths > 0] - 1] = True
        if len(definition.fields) == 1:
            self._fields = np.zeros_like(self._fields)
        counts = [len(document.cuts) for document in documents]
        self._owner = np.repeat(np.arange(len(documents)), counts)
        cuts = [cut for document in documents for cut in document.cuts]
        self._start = np.fromiter((cut.start for cut in cuts), np.int64, len(cuts)) + first[self._owner]
        self._stop = np.fromiter((cut.stop for cut in cuts), np.int64, len(cuts)) + first[self._owner]
        self.pooled_count = np.bincount(self._document[self._in_scope], minlength=len(documents))

    def plan(self, token_budget: int) -> list[NDArray[np.int64]]:
        """Window numbers of each pack, windows of similar length together."""
        return pack_plan(self._stop - self._start + 1, token_budget)

    def pack(self, members: NDArray[np.int64]) -> PackTokens:
        """The pack of these windows, each after its window start token."""
        start = np.array([self._start_id], np.int32)
        rows = [np.concatenate((start, self._ids[self._start[w] : self._stop[w]])) for w in members]
        packed = pack(rows, members)
        first = packed.position_ids == 0
        # Place of each position in the flat arrays; a window start stands for the token after it.
        place = np.repeat(self._start[packed.owners], packed.lengths) + np.maximum(packed.position_ids - 1, 0)
        text = self._in_scope[place] & ~first
        pooled = np.flatnonzero(text | first if self._definition.special_tokens else text)
        at = place[pooled]
        scored = np.flatnonzero(text & (self._fields[place] >= 0))
        scored_at = place[scored]
        return PackTokens(
            pack=packed,
            pooled=pooled,
            document=self._document[at],
            age=self._age[at],
            last=self._last[at] & ~first[pooled],
            weight=self._weights(np.repeat(np.arange(len(members)), packed.lengths)[pooled]),
            scored=scored,
            scored_document=self._document[scored_at],
            scored_field=self._fields[scored_at].astype(np.int64),
            scored_age=self._age[scored_at],
        )

    def _weights(self, window: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weight of each pooled token, given its window's number in the pack."""
        if self._definition.windows == "tokens":
            return np.ones(len(window), np.float32)
        return (1 / np.bincount(window)[window]).astype(np.float32)


def _read(text: str, encoding: Encoding, definition: EmbeddingDefinition) -> _Document:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    ids = np.array(encoding.ids, dtype=np.int32)
    events = token_events(text, offsets)
    keep = slice(0, len(ids))
    if definition.max_tokens is not None and len(ids) > definition.max_tokens:
        keep = windows(events, definition.max_tokens)[-1]
    dropped = max(int(events[keep.start]), 0) if keep.start > 0 else 0
    assert definition.context is not None  # a resolved definition has one
    return _Document(
        ids=ids[keep],
        events=events[keep],
        fields=token_fields(text, offsets)[keep],
        cuts=windows(events[keep], definition.context - 1) if len(ids) else [],
        events_dropped=dropped,
    )


def _joined(arrays: list[NDArray[T]], dtype: type[T]) -> NDArray[T]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
