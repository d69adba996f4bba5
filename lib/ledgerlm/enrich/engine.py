"""What an enrichment engine is, which ones there are, and the prompts that language models are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from string import Template
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from ledgerlm.config import Conf, find_file, load_yaml, nearest, parse
from ledgerlm.enrich.source import SourceDocument
from ledgerlm.enrich.tokens import defused
from ledgerlm.errors import ConfigError

FORMATS = ("json", "markdown", "html", "xml", "yaml", "table", "narrative", "grouped")

ENGINES = {
    "template": "ledgerlm.enrich.template:TemplateEngine",
    "transformers": "ledgerlm.enrich.engines.transformers_engine:TransformersEngine",
    "vllm": "ledgerlm.enrich.engines.vllm_engine:VllmEngine",
    "openai": "ledgerlm.enrich.engines.openai_engine:OpenAiEngine",
}
"""Name in a configuration to `module:Class`. The module is imported in the worker that runs the engine only."""

Wording = Literal["exact", "recognisable"]
"""Category names word for word, or in other words of which one is telling."""

FinishReason = Literal["stop", "length", "error"]


class Sampling(Conf):
    """Sampling settings that every language model engine understands; the defaults are those of LLM4ES."""

    temperature: float = Field(0.6, ge=0, description="0 picks the likeliest token")
    top_p: float = Field(0.9, gt=0, le=1, description="share of probability that tokens are drawn from")
    max_tokens: int = Field(8192, gt=0, description="tokens a rewrite may have; a longer one is cut off and refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One rewrite to be made.

    Attributes:
        seed: decides every free choice of this rewrite; the same seed gives the same text where the engine can.
        format: one of `FORMATS`, `free`, or a text recipe's name.
        source: the facts to be told.
        notes: texts that were written before and that this one builds on.
        messages: (role, content) turns for a chat template; empty for an engine without prompts.
    """

    seed: int
    format: str
    source: SourceDocument
    notes: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One rewrite as an engine made it.

    Attributes:
        finish_reason: `stop` ended by itself, `length` was cut off, `error` was not made.
        detail: what went wrong.
        input_tokens, output_tokens: tokens read and written, as the engine counts them.
    """

    text: str
    finish_reason: FinishReason
    detail: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@runtime_checkable
class EnrichmentEngine(Protocol):
    """Rewrites documents. Built once in each worker process: `Engine(Engine.Options(...))` loads the model.

    `generate` is given a batch and answers in its order, one generation a request. It may raise: the batch is then
    halved until the failing request stands alone. An `EngineError` says that the engine itself is out of order (a
    server that does not answer): it stops the stage, which goes on at the unfinished shards when it is run again.
    """

    Options: ClassVar[type[Conf]]
    """Its settings in a configuration: model, sampling, endpoint, what it needs."""
    uses_prompt: ClassVar[bool]
    """Whether requests carry messages made from the prompt file."""

    @property
    def engine_id(self) -> str:
        """Name, version and model: what tells two engines' texts apart."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Rewrites each request's source."""


def engine_class(name: str) -> type[EnrichmentEngine]:
    """The class behind an engine's name, or behind `module:Class`.

    Raises:
        ConfigError: unknown name, or a module or class that cannot be imported.
    """
    if name not in ENGINES and ":" not in name:
        raise ConfigError(f"unknown enrichment engine '{name}': {nearest(name, ENGINES)} Or write module:Class")
    module, _, attribute = ENGINES.get(name, name).partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"enrichment engine '{name}' cannot be imported: {error}") from error
    engine: type[EnrichmentEngine] = found
    return engine


def check_engine(name: str, options: dict[str, Any]) -> None:
    """Checks an engine's name and options without loading a model, so that a mistake is seen before workers start.

    Raises:
        ConfigError: unknown engine or wrong options.
    """
    parse(engine_class(name).Options, options, source=f"options of enrichment engine '{name}'")


def make_engine(name: str, options: dict[str, Any]) -> EnrichmentEngine:
    """Builds an engine from its configuration, loading its model.

    Raises:
        ConfigError: unknown engine or wrong options.
    """
    engine = engine_class(name)
    build: Any = engine
    made: EnrichmentEngine = build(parse(engine.Options, options, source=f"options of enrichment engine '{name}'"))
    return made


class Prompt(Conf):
    """A prompt file. `$format`, `$document`, `$notes` and `$mark` stand where they belong, each filled in one pass, so
    text of a document that looks like a placeholder stays text. `$mark` is a word that no document can foresee."""

    system: str = Field(description="the system turn")
    user: str = Field(description="the user turn")
    formats: dict[str, str] = Field(
        default_factory=dict, description="what `$format` says for each format; left out, the format's name"
    )
    wording: Wording = Field("exact", description="how category names may be told; the check follows it")

    @property
    def prompt_id(self) -> str:
        """Hash of the wording, so that a changed prompt is another prompt."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def characters(self) -> int:
        """Length of a request without its document."""
        return len(self.system) + len(self.user)

    def messages(self, *, format: str, document: str, notes: str = "", seed: int = 0) -> tuple[tuple[str, str], ...]:
        """The turns of one request; special tokens in the document and the notes have lost their force."""
        words = {
            "format": self.formats.get(format, format),
            "document": defused(document),
            "notes": defused(notes),
            "mark": hashlib.sha256(str(seed).encode()).hexdigest()[:8],
        }
        turns = (("system", self.system), ("user", self.user))
        return tuple((role, Template(text).substitute(words)) for role, text in turns)


def load_prompt(name: str) -> Prompt:
    """Reads a prompt file (a path, or one of the shipped `conf/prompts/`).

    Raises:
        ConfigError: missing file, unknown key, or an unknown placeholder.
    """
    path = find_file(name)
    prompt = parse(Prompt, load_yaml(path), source=str(path))
    try:
        prompt.messages(format="", document="")
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: placeholder {error} is not known; use $format, $document, $notes, $mark, and $$ for a dollar"
        ) from error
    return prompt
