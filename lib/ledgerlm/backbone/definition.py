"""What an embedding is, written down: layers, norm, tokens, windows, precision and parts, under one id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from ledgerlm.config import Conf

Part = Literal["mean", "std", "max", "last_token", "last_event", "recent", "surprise"]
Norm = Literal["hf", "pre", "scaled"]
Precision = Literal["auto", "fp32", "bf16"]


class EmbeddingDefinition(Conf):
    """One way to turn a document into named vectors; two vectors compare only under the same definition.

    A token's state is the mean of the chosen layers' states (LLM4ES, `emb = mean_tokens(1/k sum_l H_l)`); the parts
    sum up the states of a document's tokens. `resolve` fills in what depends on the backbone, the machine and the
    documents.
    """

    last_k: int = Field(8, ge=1, description="hidden layers averaged, counted from the last; capped at the layers")
    norm: Norm = Field(
        "hf",
        description="hf: the last k tensors that transformers returns, the last one after the final norm; pre: all "
        "before the final norm; scaled: as pre, each layer's state of a token divided by its root mean square",
    )
    special_tokens: bool = Field(False, description="whether BOS and other special tokens are pooled")
    header: bool = Field(False, description="whether the first line of a document is pooled")
    context: int | None = Field(None, ge=8, description="tokens per window with BOS; left out, the backbone's own")
    max_tokens: int | None = Field(None, ge=8, description="newest tokens of a document that are read; left out, all")
    truncation: Literal["newest"] = Field("newest", description="which events win under max_tokens")
    windows: Literal["tokens", "equal"] = Field(
        "tokens",
        description="how the windows of a long document become one mean and deviation: tokens: each token counts the "
        "same, so a window counts by its tokens; equal: each window counts the same",
    )
    dtype: Precision = Field(
        "auto", description="fp32; bf16: matrix products in bfloat16, sums in fp32; auto: what is faster here"
    )
    parts: tuple[Part, ...] = Field(("mean", "std", "surprise"), min_length=1, description="named parts of the vector")
    recent_half_life: float = Field(16.0, gt=0, description="half-life of `recent`'s weights, in events")
    surprise_events: int = Field(8, ge=1, description="last events whose mean surprise is compared with the whole")
    fields: tuple[str, ...] = Field((), description="names of an event's fields in the text; empty: one, `text`")
    text_format: str = Field("", description="format of the documents")
    layers: tuple[int, ...] = Field((), description="hidden state indices used (0 is the input embedding)")
    projection: str = Field("", description="id of the axes that tokens' states are laid on; empty: none")
    axes: int = Field(0, ge=0, description="how many they are")
    definition_version: Literal[1] = Field(1, description="grows when the same settings give another vector")

    @field_validator("parts")
    @classmethod
    def _parts_once(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) != len(parts):
            raise ValueError("a part is named twice")
        return parts

    def resolve(
        self,
        *,
        layer_count: int,
        context: int,
        dtype: Literal["fp32", "bf16"],
        text_format: str,
        fields: tuple[str, ...],
    ) -> EmbeddingDefinition:
        """Fills in what depends on the backbone, the machine and the documents.

        Args:
            layer_count: layers of the backbone; caps `last_k`.
            context: longest window in tokens that the backbone can read; caps `context`.
            dtype: precision that `auto` stands for.
            text_format: format of the documents.
            fields: names of an event's fields, used when the definition names none.
        """
        k = min(self.last_k, layer_count)
        return self.model_copy(
            update={
                "last_k": k,
                "context": min(self.context or context, context),
                "dtype": dtype if self.dtype == "auto" else self.dtype,
                "text_format": text_format,
                "fields": self.fields or fields or ("text",),
                "layers": tuple(range(layer_count + 1 - k, layer_count + 1)),
            }
        )

    @property
    def resolved(self) -> bool:
        """Whether `resolve` has been called."""
        return bool(self.layers)

    @property
    def json_text(self) -> str:
        """Canonical JSON, stored beside each vector."""
        # Vectors that were made before there were projections keep their id.
        content = self.model_dump(mode="json", exclude=set() if self.projection else {"projection", "axes"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def definition_id(self) -> str:
        """Sixteen hexadecimal digits of the hash of `json_text`."""
        return hashlib.sha256(self.json_text.encode()).hexdigest()[:16]

    def component_names(self, widths: Mapping[str, int]) -> dict[str, list[str]]:
        """Name of each number of each part, such as `mean:0` or `surprise:amount:std`.

        Args:
            widths: numbers in each part.
        """
        return {
            part: surprise_names(self.fields) if part == "surprise" else [f"{part}:{i}" for i in range(widths[part])]
            for part in self.parts
        }


SURPRISE_STATISTICS = ("mean", "std", "max", "recent")


def surprise_names(fields: tuple[str, ...]) -> list[str]:
    """Names of the surprise profile's components: for each field its mean, std, max and recent minus whole."""
    return [f"surprise:{field}:{statistic}" for field in fields for statistic in SURPRISE_STATISTICS]
