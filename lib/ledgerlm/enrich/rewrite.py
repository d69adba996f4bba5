"""One document into its texts: requests with their seeds and formats, and generations held against the source."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import Any, Literal

from pydantic import Field

from ledgerlm.config import Conf, FileName
from ledgerlm.enrich.engine import (
    FORMATS,
    EnrichmentEngine,
    Generation,
    Prompt,
    Request,
    Wording,
    engine_class,
    load_prompt,
)
from ledgerlm.enrich.faithfulness import CheckConf, FaithfulnessCheck
from ledgerlm.enrich.source import SourceDocument, parse_source
from ledgerlm.enrich.tidy import tidied
from ledgerlm.errors import DataError, EngineError

_DETAIL = 500  # characters of an error that are kept
_UNREADABLE = "source_unreadable"


class WriterConf(Conf):
    """Which engine writes, and how its texts are judged."""

    engine: str = Field("template", description="name of an enrichment engine, or module:Class of another one")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of that engine (model, sampling, density ...)"
    )
    max_events: int = Field(40, ge=1, description="newest events of a document that a rewrite tells")
    batch_size: int = Field(64, ge=1, description="rewrites an engine is asked for at once; bounds a worker's memory")
    attempts: int = Field(
        3, ge=1, le=20, description="how often a refused rewrite is tried, each time with another seed"
    )
    check: CheckConf = Field(CheckConf(), description="how strictly rewrites are held against their source")

    @property
    def texts(self) -> int:
        """Texts made of each document."""
        return 1

    def prompt_characters(self, _events: float, /) -> float:
        """Characters of prompts for one text about so many events, its document left out; 0 without prompts."""
        return 0.0


class RewriteConf(WriterConf):
    """What is written for each document, and by which engine."""

    prompt: FileName | None = Field(
        None,
        description="prompt file, for engines that are language models; left out, prompts/free.yaml for formats: free, "
        "else prompts/fixed.yaml",
    )
    variants: int = Field(1, ge=1, le=32, description="rewrites of each document")
    formats: Literal["mixed", "free", "json", "markdown", "html", "xml", "yaml", "table", "narrative", "grouped"] = (
        Field(
            "mixed",
            description="one format for all; `mixed`: each variant of a document another one, in seeded order; `free`: "
            "the engine's choice",
        )
    )

    @property
    def texts(self) -> int:
        """Rewrites of each document."""
        return self.variants

    def load_prompt(self) -> Prompt:
        """The prompt that is set or, left out, that goes with the formats."""
        return load_prompt(self.prompt or ("prompts/free.yaml" if self.formats == "free" else "prompts/fixed.yaml"))

    def prompt_characters(self, _events: float, /) -> float:
        """Characters of a request without its document."""
        return float(self.load_prompt().characters) if engine_class(self.engine).uses_prompt else 0.0


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
        attempt: counts from 0.
    """

    document: Document
    variant: int
    format: str
    seed: int
    request: Request | None
    check: FaithfulnessCheck | None
    fault: str = ""
    attempt: int = 0


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


def seed_of(base: int, document: Document, variant: int, attempt: int = 0) -> int:
    """A seed of 63 bits that depends on the run's seed, the client, its `as_of`, the variant and the attempt alone."""
    again = f"\0{attempt}" if attempt else ""
    name = f"{base}\0{document.client_id}\0{document.as_of.isoformat()}\0{variant}{again}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


class Writer(ABC):
    """Turns documents into texts with one engine and judges them; what is asked for is a subclass's affair.

    Args:
        engine: what writes.
        conf: which texts, and how they are judged.
        seed: the run's seed.
    """

    def __init__(self, engine: EnrichmentEngine, conf: WriterConf, seed: int) -> None:
        self.engine_id = engine.engine_id
        self.prompt_id = self.engine_id
        self.texts = conf.texts
        self._engine = engine
        self._conf = conf
        self._seed = seed

    def plan(self, documents: Sequence[Document]) -> list[Task]:
        """The texts to be made of some documents, in a fixed order."""
        return [task for document in documents for task in self._tasks(document)]

    @abstractmethod
    def _tasks(self, document: Document) -> Iterator[Task]:
        """The texts to be made of one document."""

    @abstractmethod
    def _reseeded(self, task: Task, attempt: int) -> Task:
        """The same task with the seed of another attempt."""

    def make(self, tasks: Sequence[Task]) -> list[Rewrite]:
        """Makes and judges texts, one a task and in their order; one that the engine fails on is refused alone.

        A refused text is made again with another seed while there are attempts left; its row stays one row.
        """
        rewrites = self._judged(tasks)
        for attempt in range(1, self._conf.attempts):
            again = [place for place, made in enumerate(rewrites) if made.reason not in (None, _UNREADABLE)]
            if not again:
                break
            fresh = self._judged([self._reseeded(tasks[place], attempt) for place in again])
            for place, made in zip(again, fresh, strict=True):
                rewrites[place] = _with_tokens_of(rewrites[place], made)
        return rewrites

    def _judged(self, tasks: Sequence[Task]) -> list[Rewrite]:
        readable = [task for task in tasks if task.request is not None]
        made = iter(self._generations(readable))
        nothing = Generation(text="", finish_reason="error")
        return [judge(task, nothing if task.request is None else next(made)) for task in tasks]

    def _generations(self, tasks: Sequence[Task]) -> list[Generation]:
        """One text for each readable task."""
        return self._ask([task.request for task in tasks if task.request is not None])

    def _ask(self, requests: Sequence[Request]) -> list[Generation]:
        """The engine's answers; where it raises, the batch is halved until the failing request stands alone."""
        if not requests:
            return []
        try:
            generations = list(self._engine.generate(requests))
            if len(generations) != len(requests):
                raise RuntimeError(f"{self.engine_id} returned {len(generations)} texts for {len(requests)} requests")
        except EngineError:
            raise
        except Exception as error:  # an engine may raise anything; the row that makes it raise is found and set aside
            if len(requests) == 1:
                return [Generation(text="", finish_reason="error", detail=f"{type(error).__name__}: {error}"[:_DETAIL])]
            middle = len(requests) // 2
            return self._ask(requests[:middle]) + self._ask(requests[middle:])
        if not self._engine.uses_prompt:
            return generations
        return [replace(generation, text=tidied(generation.text)) for generation in generations]

    def _check(self, wording: Wording, **changes: object) -> CheckConf:
        """How texts are judged: as configured, with the prompt's rule for names where the configuration has none."""
        return self._conf.check.model_copy(update={"wording": self._conf.check.wording or wording, **changes})


class Rewriter(Writer):
    """Turns documents into rewrites: the same events in other formats.

    Args:
        engine: what writes.
        conf: what is written.
        seed: the run's seed.
    """

    def __init__(self, engine: EnrichmentEngine, conf: RewriteConf, seed: int) -> None:
        super().__init__(engine, conf, seed)
        self._formats = conf.formats
        self._prompt = conf.load_prompt() if engine.uses_prompt else None
        if self._prompt is not None:
            self.prompt_id = self._prompt.prompt_id

    def _tasks(self, document: Document) -> Iterator[Task]:
        source, check, fault = None, None, ""
        try:
            source = parse_source(document.text, max_events=self._conf.max_events)
            check = FaithfulnessCheck(source, self._check(self._prompt.wording if self._prompt else "exact"))
        except DataError as error:
            fault = str(error)
        mixed = list(FORMATS)
        Random(seed_of(self._seed, document, -1)).shuffle(mixed)
        for variant in range(self.texts):
            style = mixed[variant % len(mixed)] if self._formats == "mixed" else self._formats
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
        prompt = self._prompt
        messages = prompt.messages(format=style, document=source.text, seed=seed) if prompt else ()
        return Request(seed=seed, format=style, source=source, messages=messages)

    def _reseeded(self, task: Task, attempt: int) -> Task:
        assert task.request is not None, "an unreadable source is not tried again"
        seed = seed_of(self._seed, task.document, task.variant, attempt)
        request = self._request(task.request.source, task.format, seed)
        return replace(task, seed=seed, attempt=attempt, request=request)


def _with_tokens_of(refused: Rewrite, made: Rewrite) -> Rewrite:
    """A later attempt, with the tokens of the attempts before it."""
    before, generation = refused.generation, made.generation
    return replace(
        made,
        generation=replace(
            generation,
            input_tokens=generation.input_tokens + before.input_tokens,
            output_tokens=generation.output_tokens + before.output_tokens,
        ),
    )


def judge(task: Task, generation: Generation) -> Rewrite:
    """Accepts a generation, or says why not: the first reason, and all of them in the detail."""
    if task.check is None:
        return Rewrite(task=task, generation=generation, reason=_UNREADABLE, detail=task.fault)
    faults = task.check.faults(generation)
    reason = faults[0].code if faults else None
    return Rewrite(task=task, generation=generation, reason=reason, detail="; ".join(map(str, faults)) or None)
