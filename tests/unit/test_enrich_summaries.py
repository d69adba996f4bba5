"""Text recipes: what the rules write is true, what the writer asks an engine for, and what becomes a row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import ClassVar

import pytest
from pydantic import ValidationError

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import Generation, Request, make_engine
from ledgerlm.enrich.recipes.writer import RecipeConf, RecipeWriter
from ledgerlm.enrich.rewrite import Document, Rewrite

SHOPS, DAYS = ("GROCERY", "FUEL", "TRAVEL"), ("Mon", "Tue", "Sat")
LINES = [f"+{n % 4}d|{DAYS[n % 3]}|{8 + n % 12}h|{SHOPS[n % 5 % 3]}|s{n % 7}|{n * 1.5}" for n in range(50)]
TEXT = "\n".join(["days|weekday|hour|department|store|amount", *LINES])


class Chatty:
    """A language model that answers each request with its kind, and now and then with what is refused."""

    Options: ClassVar[type[Conf]] = Conf
    uses_prompt: ClassVar[bool] = True
    engine_id = "chatty-1"

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.answers = answers or {}
        self.seen: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        first = len(self.seen)
        self.seen += requests
        return [
            Generation(
                text=self.answers.get(request.format, f"{request.format} {first + place}"),
                finish_reason="length" if self.answers.get(request.format) == "cut" else "stop",
                input_tokens=10,
                output_tokens=1,
            )
            for place, request in enumerate(requests)
        ]


def document(text: str = TEXT, client: str = "c") -> Document:
    return Document(client_id=client, as_of=datetime(2025, 1, 1, tzinfo=UTC), text=text, input_hash="h")


def made(engine: object = None, *documents: Document, **conf: object) -> list[Rewrite]:
    settings = RecipeConf.model_validate(conf if engine is None else {**conf, "engine": f"{__name__}:Chatty"})
    writer = RecipeWriter(engine or make_engine("template", {}), settings, 5)  # type: ignore[arg-type]
    return writer.make(writer.plan(documents or (document(),)))


@pytest.mark.parametrize(
    "conf",
    [{}, {"way": "recurrent"}, {"recipe": "hkfr"}, {"recipe": "tallrec"}, {"recipe": "tallrec", "preference": "store"}],
)
def test_what_rules_write_passes_the_check_and_is_the_same_again(conf: dict[str, str]) -> None:
    documents = [document("\n".join(TEXT.split("\n")[: 3 + 7 * n]), f"c{n}") for n in range(6)]
    rewrites = made(None, *documents, **conf)
    assert [rewrite.detail for rewrite in rewrites] == [None] * 6
    assert [one.generation.text for one in made(None, *documents[::-1], **conf)][::-1] == [
        one.generation.text for one in rewrites
    ]
    assert {rewrite.task.format for rewrite in rewrites} == {conf.get("recipe", "trsr")}


def test_summaries_say_what_the_events_show() -> None:
    [whole] = made(block_events=20)
    assert whole.generation.text.count("\nPart ") == 3
    assert "By department: FUEL (20 times), GROCERY (20 times), TRAVEL (10 times)." in whole.generation.text
    assert "Part 1: " in whole.generation.text and "10 " in whole.generation.text.split("Part 1: ")[1][:60]
    [running] = made(way="recurrent", block_events=20)
    assert running.generation.text.startswith("Lately: ") and running.generation.text.count("Before: ") == 1
    assert "to 73.5." in running.generation.text.split("Before: ")[0]
    [profile] = made(recipe="hkfr")
    assert profile.generation.text.startswith("Profile from 50 events. By department: FUEL (20 times)")
    assert "Amounts from 0 to 73.5." in profile.generation.text


def test_a_hierarchical_summary_asks_for_each_block_and_then_for_the_whole() -> None:
    engine = Chatty()
    [rewrite] = made(engine, block_events=16)
    assert [request.format for request in engine.seen] == ["trsr_block"] * 4 + ["trsr_whole"]
    assert [len(request.source.events) for request in engine.seen] == [2, 16, 16, 16, 50]
    told = engine.seen[-1].messages[1][1]
    assert all(f"{place + 1}. trsr_block {place}" in told for place in range(4))
    assert rewrite.reason is None and rewrite.generation.text == "trsr_whole 4"
    assert (rewrite.generation.input_tokens, rewrite.generation.output_tokens) == (50, 5)


def test_a_recurrent_summary_carries_the_one_before() -> None:
    engine = Chatty()
    short = document("\n".join(TEXT.split("\n")[:11]), "short")
    long, little = made(engine, document(), short, way="recurrent", block_events=16)
    assert [request.format for request in engine.seen] == ["trsr_block"] * 2 + ["trsr_update"] * 3
    assert "1. trsr_block 0" in engine.seen[2].messages[1][1] and LINES[2] in engine.seen[2].messages[1][1]
    assert "1. trsr_update 3" in engine.seen[4].messages[1][1]
    assert (long.generation.text, little.generation.text) == ("trsr_update 4", "trsr_block 1")


def test_invented_figures_and_cut_off_blocks_are_refused_after_all_attempts() -> None:
    engine = Chatty({"hkfr": "Spends 4711.5 a month on sailing."})
    [rewrite] = made(engine, recipe="hkfr", attempts=2)
    assert rewrite.reason == "number_invented" and len(engine.seen) == 2
    assert engine.seen[0].seed != engine.seen[1].seed
    [cut] = made(Chatty({"trsr_block": "cut"}), attempts=1)
    assert cut.reason == "cut_off"


def test_an_instruction_row_asks_for_the_newest_event_and_does_not_show_it() -> None:
    documents = [document(client=f"c{n}") for n in range(40)]
    rows = made(None, *documents, recipe="tallrec")
    answers = set()
    for row in rows:
        body, question = row.generation.text.split("\nQuestion: is the department of the next event ")
        asked, answer = question.split("?\nAnswer: ")
        assert LINES[-1] not in body and LINES[-2] in body
        assert (asked == LINES[-1].split("|")[3]) == (answer == "Yes")
        answers.add(answer)
    assert answers == {"Yes", "No"}
    [lonely] = made(None, document("days|shop|amount\n+0d|deli|3"), recipe="tallrec")
    assert lonely.reason == "source_unreadable" and "two events" in str(lonely.detail)


def test_a_recipe_cannot_take_the_place_of_serialised_documents() -> None:
    with pytest.raises(ValidationError, match="format of the serialize job"):
        RecipeConf(name="compact")
    assert RecipeConf(recipe="hkfr").format == "hkfr"
