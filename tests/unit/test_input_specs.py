"""Specs that would read something else than was meant are refused before Spark starts, with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ledgerlm.errors import SpecError
from ledgerlm.events.file_heads import folded, opens
from ledgerlm.events.spec import AmountSpec, DataSetSpec, load_spec
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.events.spec_times import TimeSpec

SPEC = """
name: small
source: {path: data, files: [{glob: events.csv, constants: {land: DE}}]}
time: {column: date}
as_of: 2020-01-01
fields:
  - {name: mcc, dictionary: {5411: Grocery}, nulls: [x]}
labels:
  - {name: churn, kind: binary, file: {glob: l.csv}, id: id, column: y, values: {A: 0, B: 1}}
"""


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("yyyy-mm-dd", "day and no month: MM"),
        ("dd.mm.yyyy HH:mm", "'m' stands in two places; MM is the month"),
        ("yyyy-MM-dd hh:mm", "hh counts to 12"),
        ("YYYY-MM-dd", "write yyyy"),
        ("yyyy-MM-DD", "DD is a day of the year"),
        ("%Y-%m-%d", "written for Python"),
        ("yyyy-MM-dd HH:MM", "'M' stands in two places"),
        ("dd.MM. HH:mm", "no year"),
        ("yyyy HH", "no month"),
        ("yyyy-MM HH:mm", "time of day and no day"),
        ("yyyy-MM-dd mm:ss", "minutes and no hour"),
        ("yyyy-MM-dd HH:ss", "seconds and no minutes"),
        ("yyyy-MM-dd HH:mm:SS", "parts of a second"),
        ("EEE, dd MMM yyyy", "names of weekdays"),
        ("yyyy-MM-ddTHH:mm", "no letter 'T'"),
        ("yyyy-MM-dd'T", "a quote is open"),
        ("epoch_millis", "did you mean 'epoch_ms'"),
        ("uuuu-MM-dd", "write yyyy"),
        ("yyyy-MM-dd HH:mm z", "mean several; write VV"),
    ],
)
def test_pattern_that_reads_another_time_is_refused(form: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TimeSpec(column="t", format=form)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "form", ["yyMMdd", "ddMMMyy:HH:mm:ss", "yyyyDDD", "yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "dd/MM/yyyy hh:mm a", "yyyyMM"]
)
def test_sound_patterns_are_taken(form: str) -> None:
    assert TimeSpec(column="t", format=form).format == form


@pytest.mark.parametrize("zone", ["Europe/Berlni", "Mars/Base", "+25:00"])
def test_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="no time zone"):
        TimeSpec(column="t", zone=zone)
    assert TimeSpec(column="t", zone="+02:00").zone == "+02:00"


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("{0742: Vets}", "{5411: Grocery}", "0742 is read as the number 482: quote it"),
        ("{1.10: Vets}", "{5411: Grocery}", "1.10 is read as the number 1.1: quote it"),
        ("{12:30: Vets}", "{5411: Grocery}", "12:30 is read as the number 750"),
        ("{land: NO}", "{land: DE}", "NO is read as the truth value False: quote it"),
        ("{A: 0, yes: 1}", "{A: 0, B: 1}", "yes is read as the truth value True"),
        ("nulls: [2020-01-01]", "nulls: [x]", "2020-01-01 is read as the date"),
        ("id: 0742", "id: id", "0742 is read as the number 482"),
    ],
)
def test_yaml_word_that_is_read_as_another_is_refused(tmp_path: Path, wrong: str, right: str, says: str) -> None:
    file = tmp_path / "small.yaml"
    assert right in SPEC
    file.write_text(SPEC.replace(right, wrong))
    with pytest.raises(SpecError, match="line ") as caught:
        load_spec(file)
    assert says in str(caught.value)


def test_quoted_words_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SPEC.replace("{5411: Grocery}", '{"0742": Vets, 5411: "no"}').replace("DE", '"NO"'))
    spec = load_spec(file)
    assert spec.field("mcc").dictionary == {"0742": "Vets", "5411": "no"}
    assert spec.source is not None
    assert spec.source.files[0].constants == {"land": "NO"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"decimal": ",", "thousands": ","}, "are both"),
        ({"thousands": "0"}, "no sign inside a number"),
        ({"marks": {"C R": "+"}}, "words without digits and blanks"),
        ({"columns": ["a", "a"]}, "named twice"),
        ({"separator": '"'}, "is the quote"),
        ({"encoding": "utf-7"}, "encoding"),
        ({"unpivot": {"name": "t", "rows": {"1": {"a": "x"}, "2": {"b": "y"}}}}, "names the same columns"),
        ({"unpivot": {"name": "a", "rows": {"1": {"a": "x"}}}}, "none is 'a'"),
    ],
)
def test_file_that_cannot_be_read_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FileSpec(glob="x.csv", **keys)


def test_amounts_finer_than_the_table_are_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 18"):
        AmountSpec(column="a", scale=19)
    with pytest.raises(ValidationError, match="both negative and positive"):
        AmountSpec.model_validate({"column": "a", "sign": {"column": "s", "negative": ["D"], "positive": ["C", "D"]}})


def test_rates_are_of_one_currency() -> None:
    rates = {"into": "EUR", "rates": {"USD": 0.92, "JPY": "0.0061"}}
    conf = AmountSpec.model_validate({"column": "a", "currency_column": "c", "convert": rates})
    assert conf.convert is not None
    assert str(conf.convert.rates["USD"]) == "0.92"
    for wrong, says in (
        ({"USD": 0}, "above zero"),
        ({"EUR": 2}, "that of EUR is 1"),
        ({"USD": "1e-12"}, "nine decimal"),
    ):
        with pytest.raises(ValidationError, match=says):
            AmountSpec.model_validate({"column": "a", "convert": {"into": "EUR", "rates": wrong}})
    with pytest.raises(ValidationError, match="leave 'currency' out"):
        AmountSpec.model_validate({"column": "a", "currency": "EUR", "convert": rates})


def test_epochs_begin_in_1971_unless_the_spec_says_otherwise() -> None:
    assert TimeSpec(column="t", format="epoch_ms").first_day.year == 1971
    assert TimeSpec(column="t").first_day.year == 1900
    with pytest.raises(ValidationError, match="'column' or 'columns'"):
        TimeSpec(format="epoch")


def test_open_quotes_and_names() -> None:
    assert opens('1;"a', ";", '"')
    assert not opens('1;3" pipe', ";", '"')
    assert not opens('1;"a ""b""";"";c', ";", '"')
    assert opens('1;"""a', ";", '"')
    assert folded("\ufeff Betr\u0061\u0308ge\u00a0") == folded("BETRÄGE")


FUTURE = {"name": "y", "kind": "regression", "future": {"days": 30}, "as_of": "2024-06-01"}
BINARY = FUTURE | {"kind": "binary", "thresholds": [1]}


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (FUTURE | {"id": "client"}, "without file, id and column"),
        (FUTURE | {"as_of": {"column": "when"}}, "goes with a fixed as_of or a grid"),
        (BINARY | {"thresholds": []}, "2 classes of 'future' need 1 in 'thresholds', not 0"),
        (BINARY | {"thresholds": [1, 2]}, "class numbers must be|need 1 in 'thresholds', not 2"),
        (BINARY | {"thresholds": [], "values": {"0": 0}}, "'values' are texts of a file"),
        (FUTURE | {"only": {"mc": ["5411"]}}, "no categorical field 'mc': did you mean 'mcc'"),
        (FUTURE | {"as_of": {"every": "month", "from": "2024-01-31"}}, "day 1 to 28"),
        (FUTURE | {"as_of": {"every": "month", "from": "2024-02-01", "to": "2024-01-01"}}, "lies before from"),
        (
            {"name": "y", "kind": "binary", "file": {"glob": "l.csv"}, "id": "c", "column": "y"}
            | {"as_of": {"every": "month", "from": "2024-01-01"}},
            "a grid of as_of goes with 'future'",
        ),
    ],
)
def test_labels_that_would_be_something_else_are_refused(label: dict[str, Any], says: str) -> None:
    content = {"name": "small", "fields": [{"name": "mcc"}], "amount": {"column": "a"}, "labels": [label]}
    with pytest.raises(ValidationError, match=says):
        DataSetSpec.model_validate(content)


def test_a_misspelt_as_of_is_told_by_its_own_kind(tmp_path: Path) -> None:
    label = "{name: y, kind: regression, future: {days: 30}, as_of: {every: mnth, form: 2024-01-01}}"
    file = tmp_path / "small.yaml"
    file.write_text(SPEC.split("labels:", maxsplit=1)[0] + f"amount: {{column: a}}\nlabels:\n  - {label}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    said = str(caught.value)
    assert "'labels.0.as_of.grid.from' is missing" in said
    assert "'labels.0.as_of.grid.every': Input should be 'week'" in said
    assert "column" not in said.replace(str(tmp_path), "")


def test_sums_without_amounts_are_refused() -> None:
    content = {"name": "small", "fields": [{"name": "mcc"}], "labels": [FUTURE]}
    with pytest.raises(ValidationError, match="no 'amount' to be summed; give it, or 'value: events'"):
        DataSetSpec.model_validate(content)
    counted = FUTURE | {"future": {"days": 30, "value": "events"}}
    assert DataSetSpec.model_validate(content | {"labels": [counted]}).labels[0].future is not None
