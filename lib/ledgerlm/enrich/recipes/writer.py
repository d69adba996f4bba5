"""Three text recipes as document makers, on the pool and the engines of the enrichment.

* `trsr`, LLM-TRSR (Zheng et al., "Harnessing Large Language Models for Text-Rich Sequential Recommendation", WWW 2024,
  arXiv 2403.13325): the history is cut into blocks, each block is summarised, and the summaries become one text:
  hierarchical (all at once) or recurrent (the summary so far and the next block give the next summary).
* `hkfr`, HKFR (Yin et al., "Heterogeneous Knowledge Fusion: A Novel Approach for Personalized Recommendation via LLM",
  RecSys 2023, arXiv 2308.03333): what, where, when and how much are fused into one profile text.
* `tallrec`, TALLRec (Bao et al., "TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model
  with Recommendation", RecSys 2023, arXiv 2305.00447): instruction, history, question about the client's preference,
  and the answer Yes or No. Here the question is whether the newest event, which the history leaves out, is of a
  category; for No, another category of the same client is asked for. No engine is needed.

The papers fine-tune on their texts and recommend; LLM4ES (arXiv 2508.05688) takes the texts in place of serialised
histories, for training alone or for training and embedding. So do we: the documents have a format of their own, which
`finetune` and `embed` take by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from ledgerlm.enrich.engine import EnrichmentEngine, Generation, Prompt, Request, engine_class, load_prompt
from ledgerlm.enrich.faithfulness import FaithfulnessCheck
from ledgerlm.enrich.rewrite import Document, Task, Writer, WriterConf, seed_of
from ledgerlm.enrich.source import ABSENT, Kind, SourceDocument, parse_source
from ledgerlm.errors import DataError
from ledgerlm.text.formats import FORMATS

VERSION = 1
_STEPS = {
    ("trsr", "hierarchical"): ("trsr_block", "trsr_whole"),
    ("trsr", "recurrent"): ("trsr_block", "trsr_update"),
    ("hkfr", "hierarchical"): ("hkfr",),
    ("hkfr", "recurrent"): ("hkfr",),
}


class RecipeConf(WriterConf):
    """Which recipe makes documents, and by which engine."""

    recipe: Literal["trsr", "hkfr", "tallrec"] = Field("trsr", description="LLM-TRSR, HKFR or TALLRec")
    name: str = Field("", description="format of the documents that are written; left out, the recipe's name")
    max_events: int = Field(256, ge=1, description="newest events of a document that the recipe reads")
    way: Literal["hierarchical", "recurrent"] = Field(
        "hierarchical", description="trsr: summaries of all blocks merged at once, or each with the summary before it"
    )
    block_events: int = Field(16, ge=1, description="trsr: events of a block; the oldest block may have fewer")
    preference: str | None = Field(
        None, description="tallrec: field whose category is asked for; left out, the first category field"
    )
    prompts: dict[Literal["trsr_block", "trsr_whole", "trsr_update", "hkfr"], str] = Field(
        default_factory=dict, description="prompt files in place of prompts/STEP.yaml, by step"
    )

    @model_validator(mode="after")
    def _own_format(self) -> RecipeConf:
        if self.format in FORMATS:
            raise ValueError(f"'{self.format}' is a format of the serialize job; choose another name")
        if not self.format.replace("_", "").isalnum():
            raise ValueError(f"a name of letters, digits and '_' is needed, not '{self.format}'")
        return self

    @property
    def format(self) -> str:
        """Format of the documents that are written."""
        return self.name or self.recipe

    @property
    def steps(self) -> tuple[str, ...]:
        """Kinds of requests that an engine is asked for."""
        return _STEPS.get((self.recipe, self.way), ())

    def load_prompts(self) -> dict[str, Prompt]:
        """The prompt of each step; none for engines without prompts."""
        if not engine_class(self.engine).uses_prompt:
            return {}
        named: dict[Any, str] = dict(self.prompts)
        return {step: load_prompt(named.get(step, f"prompts/{step}.yaml")) for step in self.steps}

    def prompt_characters(self, events: float, /) -> float:
        """Characters of the prompts of one document's requests, without its events."""
        prompts = self.load_prompts()
        blocks = max(1.0, events / self.block_events)
        often = {"trsr_block": blocks if self.way == "hierarchical" else 1.0, "trsr_update": blocks - 1}
        return sum(prompt.characters * often.get(step, 1.0) for step, prompt in prompts.items())


class RecipeWriter(Writer):
    """Turns documents into summaries, profiles or instruction rows.

    Args:
        engine: what writes summaries.
        conf: the recipe.
        seed: the run's seed.
    """

    def __init__(self, engine: EnrichmentEngine, conf: RecipeConf, seed: int) -> None:
        super().__init__(engine, conf, seed)
        self._recipe = conf
        self._prompts = conf.load_prompts()
        if conf.recipe == "tallrec":
            self.engine_id = f"tallrec-{VERSION}"
        self.prompt_id = "-".join(prompt.prompt_id for prompt in self._prompts.values()) or self.engine_id

    def _tasks(self, document: Document) -> Iterator[Task]:
        seed = seed_of(self._seed, document, 0)
        request, check, fault = None, None, ""
        try:
            source = parse_source(document.text, max_events=self._conf.max_events)
            if self._recipe.recipe == "tallrec":
                _preference(source, self._recipe.preference)
            check = FaithfulnessCheck(source, self._check("exact", complete=False), self._blocks(source))
            request = Request(seed=seed, format=self._recipe.recipe, source=source)
        except DataError as error:
            fault = str(error)
        format = self._recipe.format
        yield Task(document=document, variant=0, format=format, seed=seed, request=request, check=check, fault=fault)

    def _reseeded(self, task: Task, attempt: int) -> Task:
        assert task.request is not None, "an unreadable source is not tried again"
        seed = seed_of(self._seed, task.document, 0, attempt)
        return replace(task, seed=seed, attempt=attempt, request=replace(task.request, seed=seed))

    def _generations(self, tasks: Sequence[Task]) -> list[Generation]:
        requests = [task.request for task in tasks if task.request is not None]
        if self._recipe.recipe == "tallrec":
            return [self._instruction(request) for request in requests]
        if self._recipe.recipe == "hkfr":
            return self._ask([self._request("hkfr", request, request.source) for request in requests])
        return self._recurrent(requests) if self._recipe.way == "recurrent" else self._hierarchical(requests)

    def _hierarchical(self, requests: Sequence[Request]) -> list[Generation]:
        blocks = [self._blocks(request.source) for request in requests]
        asked = [
            self._request("trsr_block", request, block, place)
            for request, own in zip(requests, blocks, strict=True)
            for place, block in enumerate(own)
        ]
        made = iter(self._ask(asked))
        parts = [[next(made) for _ in own] for own in blocks]
        merged = [place for place, own in enumerate(parts) if len(own) > 1 and _first_failure(own) is None]
        notes = [[one.text for one in own] for own in parts]
        asked = [self._request("trsr_whole", requests[one], requests[one].source, notes=notes[one]) for one in merged]
        whole = self._ask(asked)
        answers = [_first_failure(own) or own[0] for own in parts]
        for place, generation in zip(merged, whole, strict=True):
            answers[place] = _with_tokens(generation, parts[place])
        return answers

    def _recurrent(self, requests: Sequence[Request]) -> list[Generation]:
        blocks = [self._blocks(request.source) for request in requests]
        answers = self._ask(
            [self._request("trsr_block", request, own[0]) for request, own in zip(requests, blocks, strict=True)]
        )
        for step in range(1, max(map(len, blocks), default=0)):
            going = [
                place for place, own in enumerate(blocks) if len(own) > step and answers[place].finish_reason == "stop"
            ]
            asked = [
                self._request("trsr_update", requests[place], blocks[place][step], step, [answers[place].text])
                for place in going
            ]
            for place, generation in zip(going, self._ask(asked), strict=True):
                answers[place] = _with_tokens(generation, [answers[place]])
        return answers

    def _request(
        self, step: str, task: Request, source: SourceDocument, place: int = 0, notes: Sequence[str] = ()
    ) -> Request:
        seed = (task.seed + place) % 2**63
        prompt = self._prompts.get(step)
        told = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
        messages = prompt.messages(format=step, document=source.text, notes=told, seed=seed) if prompt else ()
        return Request(seed=seed, format=step, source=source, notes=tuple(notes), messages=messages)

    def _blocks(self, source: SourceDocument) -> list[SourceDocument]:
        """Consecutive parts, oldest first; the newest is full."""
        size, events = self._recipe.block_events, source.events
        starts = range(len(events) % size, len(events), size)
        cuts = sorted({0, *starts, len(events)})
        return [replace(source, events=events[one:other]) for one, other in pairwise(cuts)]

    def _instruction(self, request: Request) -> Generation:
        source, rng = request.source, Random(request.seed)
        place = _preference(source, self._recipe.preference)
        told, newest = replace(source, events=source.events[:-1]), source.events[-1][place]
        others = sorted({event[place] for event in told.events} - {newest, ABSENT})
        asked, answer = (rng.choice(others), "No") if others and rng.random() < 0.5 else (newest, "Yes")
        text = (
            "Instruction: Below is what a client bought and paid, oldest first. Say whether the client's next event is "
            f"of the kind asked for. Answer Yes or No.\nHistory:\n{told.text}\n"
            f"Question: is the {source.fields[place].name} of the next event {asked}?\nAnswer: {answer}"
        )
        return Generation(text=text, finish_reason="stop")


def _preference(source: SourceDocument, name: str | None) -> int:
    """Place of the category that is asked for.

    Raises:
        DataError: for fewer than two events, a field that the document lacks, or a newest event without a value.
    """
    known = {field.name: place for place, field in enumerate(source.fields)}
    place = next(iter(source.places(Kind.CATEGORY)), None) if name is None else known.get(name)
    if place is None:
        raise DataError(f"no field '{name or 'of kind category'}' in the document; it has {', '.join(known)}")
    if len(source.events) < 2 or source.events[-1][place] == ABSENT:
        raise DataError(f"a row needs two events, and the newest needs a {source.fields[place].name}")
    return place


def _first_failure(generations: Sequence[Generation]) -> Generation | None:
    return next((one for one in generations if one.finish_reason != "stop"), None)


def _with_tokens(generation: Generation, before: Sequence[Generation]) -> Generation:
    """A generation that also counts the tokens of those that it builds on."""
    return replace(
        generation,
        input_tokens=generation.input_tokens + sum(one.input_tokens for one in before),
        output_tokens=generation.output_tokens + sum(one.output_tokens for one in before),
    )
