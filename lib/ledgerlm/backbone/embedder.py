"""The embedding engine: texts in, named vectors out, one forward pass over packs without padding or output head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.layout import NOT_FINITE, NOTHING_TO_POOL, StateLayout, parts_array, vectors_array
from ledgerlm.backbone.loss import CausalLoss
from ledgerlm.backbone.model import CARD, load_backbone, read_card, read_config, run_pack
from ledgerlm.backbone.pooling import DocumentSums
from ledgerlm.backbone.projection import Projection
from ledgerlm.backbone.surprise import SurpriseSums, token_surprise
from ledgerlm.backbone.tokens import PackTokens, TokenBuffer
from ledgerlm.errors import ArtefactError
from ledgerlm.text.tokenizer import load_tokenizer, window_start
from ledgerlm.training.cpu import bound_kernel_caches, faster_precision, keep_freed_memory


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of a buffer of documents, in the order of the texts.

    Attributes:
        parts: part name to fp32 `[D, width]`; rows with a reason hold zeros.
        token_count: tokens read, int32 [D].
        events_dropped: oldest events that `max_tokens` left out, int32 [D].
        reasons: why a document has no vector, else None.
    """

    parts: dict[str, NDArray[np.float32]]
    token_count: NDArray[np.int32]
    events_dropped: NDArray[np.int32]
    reasons: list[str | None]


@dataclass(frozen=True, slots=True)
class States:
    """The running sums of a buffer of texts, in their order.

    Attributes:
        sums: `StateLayout` says what the numbers are; fp32 of what was added up in fp64, `[D, size]`; zeros in rows
            with a reason.
        event_count: events of each text, int32 [D].
        token_count: tokens read, int32 [D].
        reasons: why a text has no state, else None.
    """

    sums: NDArray[np.float32]
    event_count: NDArray[np.int32]
    token_count: NDArray[np.int32]
    reasons: list[str | None]


class LayerMean:
    """Adds the states of the chosen layers into one fp32 buffer while the model runs: memory is flat in k."""

    def __init__(self, model: PreTrainedModel, definition: EmbeddingDefinition) -> None:
        layers, norm = getattr(model, "layers", None), getattr(model, "norm", None)
        if not isinstance(layers, nn.ModuleList) or norm is None:
            raise ArtefactError(f"{type(model).__name__} has no 'layers' and 'norm'; use Llama, Qwen3 or Mistral")
        self._scaled = definition.norm == "scaled"
        self._count = len(definition.layers)
        self._sum: Tensor | None = None
        for index in definition.layers:
            final = index == len(layers) and definition.norm == "hf"
            (norm if final else layers[index - 1]).register_forward_hook(self._add)

    def _add(self, _module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = (output[0] if isinstance(output, tuple) else output)[0]
        if self._scaled:
            states = states.float()
            states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-12)
        if self._sum is None:
            self._sum = states.to(torch.float32, copy=True)
        else:
            self._sum += states

    def take(self) -> Tensor:
        """The mean over the chosen layers of the last forward pass, fp32 `[T, d]`; forgets it."""
        assert self._sum is not None  # the model has just run
        mean, self._sum = self._sum.div_(self._count), None
        return mean


class Axes:
    """A projection on a device: states `[N, d]` to `[N, size]`, fp32."""

    def __init__(self, projection: Projection, device: torch.device) -> None:
        self._center = torch.from_numpy(projection.center).to(device)
        self._axes = torch.from_numpy(projection.axes).to(device)
        self.size = len(projection.axes)

    def __call__(self, states: Tensor) -> Tensor:
        """Places of the states along the axes."""
        return (states - self._center) @ self._axes.T


class PackReader:
    """A model that reads packs, and adds up what their tokens give under a definition.

    Args:
        causal: the model with its output head, on its device.
        definition: a resolved definition.
        axes: what states are projected on before they are added up.
    """

    def __init__(self, causal: PreTrainedModel, definition: EmbeddingDefinition, axes: Axes | None = None) -> None:
        self.device = causal.device
        self.model: PreTrainedModel = causal.base_model
        self.head = _output_weights(causal) if "surprise" in definition.parts else None
        self._layer_mean = LayerMean(self.model, definition)
        self._axes = axes

    def add(self, tokens: PackTokens, sums: DocumentSums, surprise: SurpriseSums) -> None:
        """Runs the model over one pack, and adds its states and the surprise of its tokens to the sums."""
        ids = self._tensor(tokens.pack.input_ids).long()
        final = run_pack(self.model, tokens.pack, self.device)
        states = self._layer_mean.take()
        document, age = self._tensor(tokens.document), self._tensor(tokens.age)
        last, weight = self._tensor(tokens.last), self._tensor(tokens.weight)
        pooled = states[self._tensor(tokens.pooled)]
        sums.add(pooled if self._axes is None else self._axes(pooled), document, age, last, weight)
        if self.head is None:
            return
        at = self._tensor(tokens.scored)
        surprise.add(
            token_surprise(final[at - 1], ids[at], self.head),
            self._tensor(tokens.scored_document),
            self._tensor(tokens.scored_field),
            self._tensor(tokens.scored_age).long(),
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class Embedder:
    """A backbone opened for embedding under one definition.

    The vector of a document does not depend on the other documents of a call nor on their order: to 1e-5 of the
    largest component in fp32, 2e-2 in bf16, where products round differently by the shape of a pack.
    """

    def __init__(
        self,
        folder: Path | str,
        definition: EmbeddingDefinition,
        *,
        projection: Path | None = None,
        threads: int | None = None,
        device: str = "cpu",
        pack_tokens: int = 4096,
    ) -> None:
        """Opens a backbone.

        Args:
            folder: Hugging Face folder with weights in safetensors and a fast tokenizer.
            definition: a resolved definition (`resolve_definition`).
            projection: folder of the projection that the definition names.
            threads: torch's threads of this process; left out, torch decides.
            device: `cpu` or `cuda`.
            pack_tokens: most tokens of one forward pass; about 4,096 suit a CPU's caches, a GPU wants more.

        Raises:
            ArtefactError: no such backbone, the definition is not resolved, or it names another projection.
        """
        if not definition.resolved:
            raise ArtefactError("the embedding definition is not resolved; call resolve_definition first")
        if definition.projection != (projection.name if projection else ""):
            raise ArtefactError(f"the definition names projection '{definition.projection}', but {projection} is given")
        if threads is not None:
            torch.set_num_threads(threads)
        keep_freed_memory()
        bound_kernel_caches()
        self.definition = definition
        self._device = torch.device(device)
        self._pack_tokens = pack_tokens
        self._tokenizer = load_tokenizer(folder)
        self._start_id = window_start(self._tokenizer)
        logging.disable_progress_bar()  # a bar per worker would flood the log
        causal = load_backbone(folder, torch.bfloat16 if definition.dtype == "bf16" else torch.float32).eval()
        causal = causal.to(self._device)
        axes = None if projection is None else Axes(Projection.load(projection), self._device)
        self._reader = PackReader(causal, definition, axes)
        self._scores = self._reader.head is not None
        self.width: int = causal.config.hidden_size if axes is None else axes.size

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embeds documents; memory grows with their tokens, so give a bounded number at once."""
        buffer, sums, surprise = self._read(texts)
        results = sums.result()
        if self._scores:
            results["surprise"] = surprise.profile()
        parts: dict[str, NDArray[np.float32]] = {part: results[part].cpu().numpy() for part in self.definition.parts}
        reasons = _reasons(list(parts.values()), buffer.pooled_count)
        for part in parts.values():
            part[[reason is not None for reason in reasons]] = 0.0
        return Embedded(parts, buffer.token_count, buffer.events_dropped, reasons)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> States:
        """Reads texts as `embed` does, and gives what is added up before it becomes vectors; see `StateLayout`.

        Raises:
            ConfigError: a definition that reads the newest tokens alone.
        """
        layout = StateLayout(self.definition, self.width)
        buffer, sums, surprise = self._read(texts)
        blocks = sums.blocks() | (surprise.blocks() if self._scores else {})
        packed = layout.packed(blocks).astype(np.float32)
        reasons = _reasons([packed], buffer.pooled_count)
        packed[[reason is not None for reason in reasons]] = 0.0
        return States(packed, buffer.event_count, buffer.token_count, reasons)

    def _read(self, texts: Sequence[str]) -> tuple[TokenBuffer, DocumentSums, SurpriseSums]:
        """Runs the model over texts and adds up what their tokens give."""
        definition = self.definition
        buffer = TokenBuffer(texts, self._tokenizer, self._start_id, definition)
        sums = DocumentSums(len(texts), self.width, definition.parts, definition.recent_half_life, self._device)
        surprise = SurpriseSums(len(texts), len(definition.fields), definition.surprise_events, self._device)
        for members in buffer.plan(self._pack_tokens):
            self._reader.add(buffer.pack(members), sums, surprise)
        return buffer, sums, surprise

    def embed_batches(
        self, batches: Iterable[pa.RecordBatch], *, buffer_rows: int = 2048, buffer_chars: int = 16_000_000
    ) -> Iterator[pa.RecordBatch]:
        """Embeds a stream of Arrow batches in bounded memory.

        Args:
            batches: with a string column `text`; other columns are handed through.
            buffer_rows: most documents that are held and sorted by length at once.
            buffer_chars: characters of text at which a buffer counts as full.

        Yields:
            The same rows in the same order without `text`, with `parts` map<string, list<float>>, `token_count`,
            `events_dropped` and `reason` (null where there is a vector).
        """
        for rows in buffered(batches, buffer_rows, buffer_chars):
            done = self.embed(rows.column("text").to_pylist())
            yield _beside(
                rows,
                parts=parts_array(done.parts),
                token_count=pa.array(done.token_count),
                events_dropped=pa.array(done.events_dropped),
                reason=pa.array(done.reasons, pa.string()),
            )

    def state_batches(
        self, batches: Iterable[pa.RecordBatch], *, buffer_rows: int = 2048, buffer_chars: int = 16_000_000
    ) -> Iterator[pa.RecordBatch]:
        """The states of a stream of Arrow batches, in bounded memory.

        Args:
            batches: as for `embed_batches`.
            buffer_rows: as for `embed_batches`.
            buffer_chars: as for `embed_batches`.

        Yields:
            The same rows in the same order without `text`, with `event_count`, `token_count`, `sums` list<float> and
            `reason` (null where there is a state).
        """
        for rows in buffered(batches, buffer_rows, buffer_chars):
            done = self.states(rows.column("text").to_pylist())
            yield _beside(
                rows,
                event_count=pa.array(done.event_count),
                token_count=pa.array(done.token_count),
                sums=vectors_array(done.sums),
                reason=pa.array(done.reasons, pa.string()),
            )


def resolve_definition(
    folder: Path | str,
    definition: EmbeddingDefinition,
    *,
    text_format: str,
    fields: tuple[str, ...],
    device: str = "cpu",
) -> EmbeddingDefinition:
    """Fills in what a definition leaves to the backbone, this machine and the documents.

    Args:
        folder: backbone folder. Its card says the context; without one it is what the model's positions allow.
        definition: as configured.
        text_format: format of the documents.
        fields: names of an event's fields in the documents.
        device: `cpu` or `cuda`, for `dtype: auto`.

    Raises:
        ArtefactError: no backbone can be read there, or its files were changed.
    """
    config = read_config(folder)
    limits = [config.max_position_embeddings, getattr(config, "sliding_window", None)]
    if Path(folder, CARD).is_file():
        limits.append(read_card(Path(folder)).context)
    return definition.resolve(
        layer_count=config.num_hidden_layers,
        context=min(limit for limit in limits if limit),
        dtype=faster_precision(device)[0] if definition.dtype == "auto" else definition.dtype,
        text_format=text_format,
        fields=fields,
    )


def _output_weights(causal: PreTrainedModel) -> Tensor:
    """Weights of the output head, `[vocabulary, d]`; refuses a head that is more than a matrix, as training does."""
    CausalLoss(causal)  # raises where the head is not plain
    weights: Tensor = causal.get_output_embeddings().weight
    return weights.detach()


def buffered(batches: Iterable[pa.RecordBatch], most_rows: int, full_chars: int) -> Iterator[pa.RecordBatch]:
    """Cuts and joins batches into buffers of at most `most_rows` rows that stop growing at `full_chars` characters."""
    held: list[pa.RecordBatch] = []
    rows = chars = 0
    for batch in batches:
        lengths = np.cumsum(pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False))
        start = 0
        while start < len(batch):
            before = int(lengths[start - 1]) if start else 0
            full = int(np.searchsorted(lengths, before + full_chars - chars, side="right")) + 1
            stop = min(start + most_rows - rows, max(full, start + 1), len(batch))
            held.append(batch.slice(start, stop - start))
            rows += stop - start
            chars += int(lengths[stop - 1]) - before
            start = stop
            if rows == most_rows or chars >= full_chars:
                yield pa.concat_batches(held)
                held, rows, chars = [], 0, 0
    if held:
        yield pa.concat_batches(held)


def _beside(rows: pa.RecordBatch, **made: pa.Array) -> pa.RecordBatch:
    """The rows without their text, with what was made of it."""
    kept = rows.drop_columns(["text"])
    return pa.RecordBatch.from_pydict({**{name: kept.column(name) for name in kept.schema.names}, **made})


def _reasons(parts: list[NDArray[np.float32]], pooled: NDArray[np.int64]) -> list[str | None]:
    finite = np.all([np.isfinite(part).all(axis=1) for part in parts], axis=0)
    return [
        NOTHING_TO_POOL if count == 0 else None if good else NOT_FINITE
        for count, good in zip(pooled, finite, strict=True)
    ]
