"""One document into its rewrites: requests with their seeds and formats, and generations held against the source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Literal

from pydantic import Field

from ledgerlm.enrich.engine import FORMATS, EnrichmentEngine, Generation, Prompt, Request, load_prompt
from ledgerlm.enrich.faithfulness import CheckConf, FaithfulnessCheck
from ledgerlm.enrich.source import SourceDocument, parse_source
from ledgerlm.errors import DataError, EngineError
from ledgerlm.runs.config import Conf

_DETAIL = 500  # characters of an error that are kept


class RewriteConf(Conf):
    """What is written for each document, and by which engine."""

    engine: str = Field("template", description="name of an enrichment engine, or module:Class of another one")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of that engine (model, sampling, density ...)"
    )
    prompt: str = Field("prompts/rewrite.yaml", description="prompt file, for engines that are language models")
    variants: int = Field(1, ge=1, le=32, description="rewrites of each document")
    formats: Literal["mixed", "json", "markdown", "html", "xml", "yaml", "table", "narrative", "grouped"] = Field(
        "mixed", description="one format for all, or `mixed`: each variant of a document another one, in seeded order"
    )
    max_events: int = Field(40, ge=1, description="newest events of a document that a rewrite tells")
    batch_size: int = Field(64, ge=1, description="rewrites an engine is asked for at once; bounds a worker's memory")
    check: CheckConf = Field(CheckConf(), description="how strictly rewrites are held against their source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A row of the `documents` table, as far as it is needed here."""

    client_id: str
    as_of: datetime
    text: str
    input_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One rewrite to be made.

    Attributes:
        request: what the engine is asked; None where the document can't be read, and `fault` says why.
        check: holds a text against the document's facts.
    """

    document: Document
    variant: int
    format: str
    seed: int
    request: Request | None
    check: FaithfulnessCheck | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A finished task: an enriched document, or, where `reason` is set, a row for quarantine."""

    task: Task
    generation: Generation
    reason: str | None
    detail: str | None

    @property
    def payload(self) -> str:
        """The row as JSON, for quarantine."""
        document, task = self.task.document, self.task
        content = {
            "client_id": document.client_id,
            "as_of": document.as_of.isoformat(),
            "variant": task.variant,
            "format": task.format,
            "seed": task.seed,
            "text": self.generation.text,
        }
        return json.dumps(content, ensure_ascii=False)


def seed_of(base: int, document: Document, variant: int) -> int:
    """A seed of 63 bits that depends on the run's seed, the client, its `as_of` and the variant alone."""
    name = f"{base}\0{document.client_id}\0{document.as_of.isoformat()}\0{variant}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


class Rewriter:
    """Turns documents into rewrites with one engine.

    Args:
        engine: what writes.
        conf: what is written.
        seed: the run's seed.
    """

    def __init__(self, engine: EnrichmentEngine, conf: RewriteConf, seed: int) -> None:
        self.engine_id = engine.engine_id
        self.prompt_id = self.engine_id
        self._engine = engine
        self._conf = conf
        self._seed = seed
        self._prompt: Prompt | None = None
        if engine.uses_prompt:
            self._prompt = load_prompt(conf.prompt)
            self.prompt_id = self._prompt.prompt_id

    def plan(self, documents: Sequence[Document]) -> list[Task]:
        """The rewrites to be made of some documents, in a fixed order."""
        return [task for document in documents for task in self._tasks(document)]

    def _tasks(self, document: Document) -> Iterator[Task]:
        source, check, fault = None, None, ""
        try:
            source = parse_source(document.text, max_events=self._conf.max_events)
            check = FaithfulnessCheck(source, self._conf.check)
        except DataError as error:
            fault = str(error)
        mixed = list(FORMATS)
        Random(seed_of(self._seed, document, -1)).shuffle(mixed)
        for variant in range(self._conf.variants):
            style = mixed[variant % len(mixed)] if self._conf.formats == "mixed" else self._conf.formats
            seed = seed_of(self._seed, document, variant)
            yield Task(
                document=document,
                variant=variant,
                format=style,
                seed=seed,
                request=self._request(source, style, seed) if source else None,
                check=check,
                fault=fault,
            )

    def _request(self, source: SourceDocument, style: str, seed: int) -> Request:
        messages = self._prompt.messages(format=style, document=source.text) if self._prompt else ()
        return Request(seed=seed, format=style, source=source, messages=messages)

    def make(self, tasks: Sequence[Task]) -> list[Rewrite]:
        """Makes and checks rewrites, one a task and in their order; one that the engine fails on is refused alone."""
        requests = [task.request for task in tasks if task.request is not None]
        made = iter(self._generate(requests))
        nothing = Generation(text="", finish_reason="error")
        return [judge(task, nothing if task.request is None else next(made)) for task in tasks]

    def _generate(self, requests: Sequence[Request]) -> list[Generation]:
        if not requests:
            return []
        try:
            generations = list(self._engine.generate(requests))
            if len(generations) != len(requests):
                raise EngineError(f"{self.engine_id} returned {len(generations)} texts for {len(requests)} requests")
        except Exception as error:  # an engine may raise anything; the row that makes it raise is found and set aside
            if len(requests) == 1:
                return [Generation(text="", finish_reason="error", detail=f"{type(error).__name__}: {error}"[:_DETAIL])]
            middle = len(requests) // 2
            return self._generate(requests[:middle]) + self._generate(requests[middle:])
        return generations


def judge(task: Task, generation: Generation) -> Rewrite:
    """Accepts a generation, or says why not: the first reason, and all of them in the detail."""
    if task.check is None:
        return Rewrite(task=task, generation=generation, reason="source_unreadable", detail=task.fault)
    faults = task.check.faults(generation)
    reason = faults[0].code if faults else None
    return Rewrite(task=task, generation=generation, reason=reason, detail="; ".join(map(str, faults)) or None)
