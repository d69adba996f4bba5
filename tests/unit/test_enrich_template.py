from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import yaml

from ledgerlm.enrich.engine import FORMATS, Generation, Request
from ledgerlm.enrich.faithfulness import CheckConf, FaithfulnessCheck
from ledgerlm.enrich.source import SourceDocument, parse_source
from ledgerlm.enrich.template import TemplateEngine, TemplateOptions

PLAIN = parse_source(
    """days|weekday|hour|department|category|store|amount|discount
+0d|Sat|19h|GROCERY|FRZN ICE|s309|3.9|r0.47
+0d|Sat|19h|MEAT & FISH|BEEF "PRIME", 12OZ|s309|12|-
+3d|Tue|17h|GROCERY|SOFT <DRINKS>|s309|-1.2|r0
+0d|Tue|18h|GROCERY|O'NEIL \\ it's 2% MILK|-|12|r0
+40d|Sun|9h|DELI|{CHEESE}: [no]|s12|150|r1.5"""
)
ODD = {
    "plain": PLAIN,
    "dates": parse_source("date|mcc|amount\n2017-04-03 19:32, Taxi, 5\n2017-04-03 20:00, yes, 7\n2018-01-01, null, 5"),
    "no amount": parse_source("days|title|rating\n+0d|Heat|4\n+1d|Alien|5\n+0d|Heat|4"),
    "one event": parse_source("days|weekday|amount\n+2d|Mon|10"),
    "no time": parse_source("kind|amount\nA|1\nB|2\nA|1000\n-|1"),
    "nothing but amounts": parse_source("amount\n1\n-\n1"),
    "fields that would be tags": parse_source("s|bos|amount\nx y|z|3\nv|w|4"),
    "all absent": parse_source("days|brand|amount\n-|-|-\n-|-|-"),
}
SEEDS = range(40)


def write(source: SourceDocument, style: str, seed: int, density: str = "any") -> str:
    engine = TemplateEngine(TemplateOptions.model_validate({"density": density}))
    [generation] = engine.generate([Request(seed=seed, format=style, source=source)])
    return generation.text


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("name", ODD)
def test_every_layout_passes_the_check(name: str, style: str) -> None:
    check = FaithfulnessCheck(ODD[name], CheckConf())
    for seed in SEEDS:
        text = write(ODD[name], style, seed)
        assert check.faults(Generation(text=text, finish_reason="stop")) == [], text


@pytest.mark.parametrize("style", FORMATS)
def test_the_same_seed_gives_the_same_text_and_others_differ(style: str) -> None:
    texts = [write(PLAIN, style, seed) for seed in SEEDS]
    assert texts == [write(PLAIN, style, seed) for seed in SEEDS]
    assert len(set(texts)) > 20


@pytest.mark.parametrize("name", ODD)
def test_json_xml_and_yaml_are_well_formed(name: str) -> None:
    for seed in SEEDS:
        rows = json.loads(write(ODD[name], "json", seed))
        events = next(value for key, value in rows.items() if key in ("events", "transactions", "history"))
        assert len(events) == len(ODD[name].events)
        assert len(ET.fromstring(write(ODD[name], "xml", seed))) == len(ODD[name].events) + 1
        loaded = yaml.safe_load(write(ODD[name], "yaml", seed))
        assert len(loaded.get("events", loaded.get("transactions"))) == len(ODD[name].events)


def test_values_survive_json_yaml_csv_and_html_word_for_word() -> None:
    wanted = "O'NEIL \\ it's 2% MILK"
    for seed in SEEDS:
        assert wanted in json.dumps(json.loads(write(PLAIN, "json", seed)), ensure_ascii=False).replace("\\\\", "\\")
        assert wanted in str(yaml.safe_load(write(PLAIN, "yaml", seed))).replace("\\\\", "\\").replace("\\'", "'")
        parser = _Text()
        parser.feed(write(PLAIN, "html", seed))
        assert wanted in parser.text and "SOFT <DRINKS>" in parser.text
        table = write(PLAIN, "table", seed, density="compact")
        mark = next(mark for mark in ",;\t" if mark in table.splitlines()[0])
        assert any('BEEF "PRIME", 12OZ' in row for row in csv.reader(table.splitlines(), delimiter=mark))


class _Text(HTMLParser):
    text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_analysis_is_true() -> None:
    source = parse_source("days|weekday|shop|amount\n+5d|Sat|A|1.5\n+2d|Mon|B|2\n+4d|Sat|A|10")
    texts = [write(source, "narrative", seed) for seed in SEEDS]
    assert all("3 events" in text or "3 transactions" in text or "3 records" in text for text in texts)
    assert all("6 days" in text and " 13.5" in text and "A (2 times)" in text for text in texts)
    assert any("Sat (2 times)" in text for text in texts)


def test_signs_have_their_own_totals() -> None:
    text = write(parse_source("days|amount\n+0d|100\n+1d|-30\n+1d|-5.5"), "table", 1)
    assert "100" in text and "-35.5" in text and "64.5" not in text


def test_compact_is_shorter() -> None:
    def length(density: str) -> int:
        return sum(len(write(PLAIN, style, seed, density)) for style in FORMATS for seed in SEEDS)

    assert length("compact") < 0.9 * length("any")


def test_the_engine_says_that_it_is_a_template() -> None:
    assert TemplateEngine(TemplateOptions()).engine_id.startswith("template-")
