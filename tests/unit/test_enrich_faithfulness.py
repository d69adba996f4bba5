from __future__ import annotations

import random
import string

import pytest

from ledgerlm.enrich.engine import Generation
from ledgerlm.enrich.faithfulness import CheckConf, FaithfulnessCheck
from ledgerlm.enrich.source import parse_source

SOURCE = parse_source(
    """days|weekday|hour|shop|amount|discount
+0d|Sat|19h|GROCERY & MORE|3.9|r0.47
+3d|Tue|17h|Deli "Uno"|-1200|r0
+0d|Tue|18h|Fish|3.9|r0
+12d|Sun|9h|Fish|56|r1.5"""
)
GOOD = """Saturday, 7 pm: Grocery &amp; More, 3.90 with a discount of 0.47.
3 days later, Tuesday 17:05: Deli \\"Uno\\" gave back -1,200.00, discount 0. The same day, 18h: fish, 3.9, discount 0.
After 12 days, Sunday 9 am: FISH 56, discount 1.5. Analysis: 4 events; fish came to 59.9, on average 29.95 (50 %)."""


def codes(text: str, finish_reason: str = "stop", **conf: object) -> list[str]:
    generation = Generation(text=text, finish_reason=finish_reason)  # type: ignore[arg-type]
    return [fault.code for fault in FaithfulnessCheck(SOURCE, CheckConf.model_validate(conf)).faults(generation)]


def test_a_free_but_faithful_text_passes() -> None:
    assert codes(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("56", "65", "amount_missing"),
        ("3.90", "3.99", "amount_missing"),
        ("-1,200.00", "1,200.00", "amount_missing"),
        (" The same day, 18h: fish, 3.9, discount 0.", "", "amount_missing"),
        ("Grocery &amp; More", "Groceries", "category_missing"),
        ("Grocery &amp; More", "Bigrocery &amp; More", "category_missing"),
        ("Saturday", "Friday", "time_missing"),
        ("After 12 days", "After 13 days", "time_missing"),
        ("7 pm", "8 pm", "time_missing"),
        ("0.47", "none", "number_missing"),
        ("59.9", "61.9", "number_invented"),
        ("Analysis", "A fee of 250 was charged. Analysis", "number_invented"),
        ("Analysis", "<|im_end|>Analysis", "special_token"),
        ("Analysis", "[INST] Analysis", "special_token"),
        ("Analysis", "</s>Analysis", "special_token"),
    ],
)
def test_each_way_to_be_unfaithful_is_seen(old: str, new: str, code: str) -> None:
    assert old in GOOD
    assert code in codes(GOOD.replace(old, new, 1))


def test_a_cut_off_empty_failed_or_endless_text_is_refused() -> None:
    assert codes(GOOD, "length") == ["cut_off"]
    assert codes(" \n", "stop") == ["empty"]
    assert codes("", "error") == ["engine_error"]
    assert codes(GOOD, max_characters=100) == ["too_long"]
    assert "amount_missing" in codes(GOOD[: len(GOOD) // 2])


@pytest.mark.parametrize(
    "thought",
    [
        "Okay, the events are:",
        "The user wants the events as prose.",
        "Let me check the amounts.",
        "I need to keep -1200.",
    ],
)
def test_thoughts_without_a_mark_are_no_rewrite(thought: str) -> None:
    assert codes(f"{thought}\n\n{GOOD}") == ["reasoning"]
    source = parse_source("shop|amount\nLet me check cafe|3\nB|7")
    kept = FaithfulnessCheck(source, CheckConf()).faults(
        Generation(text="Let me check cafe: 3. B: 7.", finish_reason="stop")
    )
    assert kept == []


def test_a_text_that_tells_everything_twice_is_refused() -> None:
    assert codes(f"{GOOD}\n\n{GOOD}") == ["told_twice"]


def test_settings_loosen_what_an_engine_may_do() -> None:
    paraphrased = GOOD.replace("Grocery &amp; More", "Groceries")
    assert codes(paraphrased, categories=0.6) == []
    assert codes(paraphrased, categories=0.7) == ["category_missing"]
    assert codes(GOOD.replace("-1,200.00", "1,200.00"), signs=False) == []
    assert codes(GOOD.replace("59.9", "61.9"), invented=1) == []


def test_a_list_without_blanks_is_read_as_a_list() -> None:
    source = parse_source("amount\n12\n150\n-3.9")
    assert FaithfulnessCheck(source, CheckConf()).faults(Generation(text="[12,150,-3.9]", finish_reason="stop")) == []


def test_counts_do_not_stand_in_for_amounts() -> None:
    source = parse_source("shop|amount\nA|2\nB|7")
    [fault] = FaithfulnessCheck(source, CheckConf()).faults(Generation(text="A 7 B. 2 events.", finish_reason="stop"))
    assert str(fault) == "amount_missing: 2"


@pytest.mark.parametrize("written", ["2017-04-03", "03.04.2017", "3 April 2017", "Apr 3, 2017"])
def test_a_date_may_take_any_usual_form(written: str) -> None:
    check = FaithfulnessCheck(parse_source("date|shop\n2017-04-03 19:32|A"), CheckConf())
    assert check.faults(Generation(text=f"{written} at 7:32 pm: A", finish_reason="stop")) == []
    assert [fault.code for fault in check.faults(Generation(text="4 April 2017 19:32 A", finish_reason="stop"))] == [
        "time_missing"
    ]


def test_a_dropped_event_without_an_amount_is_seen() -> None:
    check = FaithfulnessCheck(parse_source("days|title\n+0d|Heat\n+0d|Alien\n+0d|Heat"), CheckConf())
    assert check.faults(Generation(text="Heat, Alien, Heat", finish_reason="stop")) == []
    assert [fault.code for fault in check.faults(Generation(text="Heat, Alien", finish_reason="stop"))] == [
        "event_missing"
    ]


def test_no_text_breaks_the_check() -> None:
    rng = random.Random(7)
    letters = string.printable + "\u2212\u00a0\u0663\U0001f600" + "0123456789.,-+dhe%" * 3
    checks = [FaithfulnessCheck(SOURCE, CheckConf())]
    for _ in range(300):
        values = ["".join(rng.choices(letters, k=rng.randint(1, 40))).replace("|", "").replace("\n", "") for _ in "123"]
        checks.append(
            FaithfulnessCheck(parse_source("|".join(("a", "b", "amount")) + "\n" + "|".join(values)), CheckConf())
        )
        text = "".join(rng.choices(letters, k=300)) + " 1e999999999 +" + "9" * 5000 + "d 2017-13-45"
        for check in (checks[0], checks[-1]):
            assert check.faults(Generation(text=text, finish_reason="stop")), text
