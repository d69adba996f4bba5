from __future__ import annotations

import pytest

from ledgerlm.enrich.source import Kind, parse_source
from ledgerlm.errors import DataError

COMPACT = """days|weekday|hour|department|brand|amount|discount
+0d|Sat|19h|GROCERY|National|3.9|r0.47
+3d|Tue|17h|MEAT, FRESH|-|-12|r0
+11d|Sat|9h|GROCERY|Private|150|-"""


def test_fields_have_the_kind_of_their_values() -> None:
    kinds = [field.kind for field in parse_source(COMPACT).fields]
    assert kinds == [Kind.GAP, Kind.WEEKDAY, Kind.HOUR, Kind.CATEGORY, Kind.CATEGORY, Kind.AMOUNT, Kind.NUMBER]


def test_the_text_is_stated_again_word_for_word() -> None:
    assert parse_source(COMPACT + "\n").text == COMPACT


def test_newest_events_are_kept() -> None:
    source = parse_source(COMPACT, max_events=2)
    assert [event[0] for event in source.events] == ["+3d", "+11d"]
    assert source.untold == 1


def test_lines_with_dates_and_comma_blank_are_read() -> None:
    source = parse_source("time|Amount(USD)|mcc\n2017-04-03 19:32:00, 3.90, Grocery Stores\n2017-04-05, -7, Taxi")
    assert [field.kind for field in source.fields] == [Kind.DATE, Kind.AMOUNT, Kind.CATEGORY]
    assert source.events[1] == ("2017-04-05", "-7", "Taxi")


def test_one_odd_value_makes_a_field_a_category() -> None:
    assert parse_source("store|amount\ns12|1\ncorner shop|2").fields[0].kind is Kind.CATEGORY


@pytest.mark.parametrize("text", ["", "days|amount", "days|amount\n+0d|1|2", "days|amount\n+0d"])
def test_a_document_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_source(text)


def test_the_wrong_line_is_named() -> None:
    with pytest.raises(DataError, match="line 3 has 3 values where the header has 2"):
        parse_source("days|amount\n+0d|1\n+0d|1|2\n+0d|3", max_events=2)
