"""The enrichment engine that needs no model: fixed templates that tell the same facts in many formats and wordings."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import FORMATS, Generation, Request
from ledgerlm.enrich.layouts import AMPLE, COMPACT, Page
from ledgerlm.enrich.recipes.rules import SUMMARIES, summary
from ledgerlm.enrich.wording import analysis, labels

VERSION = 1


class TemplateOptions(Conf):
    """Settings of the template engine."""

    density: Literal["compact", "any"] = Field(
        "compact", description="`compact`: only layouts of few tokens an event; `any`: all layouts"
    )


class TemplateEngine:
    """Writes the events of a document in a seeded layout and wording, and a short analysis that is true of them.

    The summaries that text recipes ask for are written by rules as well.
    """

    Options: ClassVar[type[Conf]] = TemplateOptions
    uses_prompt: ClassVar[bool] = False

    def __init__(self, options: TemplateOptions) -> None:
        self._options = options

    @property
    def engine_id(self) -> str:
        """Says that no model wrote the text."""
        return f"template-{VERSION}-{self._options.density}"

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Rewrites each request's source; the same request always gives the same text."""
        return [Generation(text=self._write(request), finish_reason="stop") for request in requests]

    def _write(self, request: Request) -> str:
        rng = Random(request.seed)
        if request.format in SUMMARIES:
            return summary(request.format, request.source, request.notes, rng)
        source, style = request.source, rng.choice(FORMATS) if request.format == "free" else request.format
        ample = () if self._options.density == "compact" else AMPLE.get(style, ())
        layout = rng.choice((*COMPACT[style], *ample))
        return layout(Page(source=source, names=labels(source.fields, rng), analysis=analysis(source, rng), rng=rng))
