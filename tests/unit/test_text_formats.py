"""Formats and their settings: defaults from the data set, errors that name the remedy, tables of the E12 series."""

from __future__ import annotations

from typing import Any

import pytest

from ledgerlm.config import parse
from ledgerlm.errors import ConfigError
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.formats import FORMATS, Shown
from ledgerlm.text.numbers import _labels, _steps
from ledgerlm.text.serialize import DocumentConf, shown_fields

FIELDS: list[dict[str, Any]] = [
    {"name": "balance", "kind": "numeric"},
    {"name": "mcc", "title": "category"},
    {"name": "note", "kind": "text"},
    {"name": "bonus", "kind": "numeric"},
    {"name": "discount", "kind": "numeric", "short": "r"},
]


def spec_of(**keys: Any) -> DataSetSpec:
    content = {"name": "small", "amount": {"column": "amount", "currency": "EUR"}, "fields": FIELDS}
    return DataSetSpec.model_validate(content | keys)


def names(spec: DataSetSpec, **conf: Any) -> list[str]:
    return [shown.name for shown in shown_fields(spec, DocumentConf(**conf))]


def test_compact_shows_the_clock_only_where_there_is_one() -> None:
    rest = ["mcc", "note", "amount", "balance", "bonus", "discount"]
    assert names(spec_of()) == ["days", "weekday", "hour", *rest]
    assert names(spec_of(time={"column": "day", "format": "yyyy-MM-dd"})) == ["days", "weekday", *rest]


def test_readable_formats_show_time_amount_and_all_fields_in_order() -> None:
    spec = spec_of(amount={"column": "amount", "currency_column": "currency"})
    assert names(spec, format="lines") == ["time", "amount", "currency", *(field.name for field in spec.fields)]
    assert names(spec_of(amount=None), format="lines")[:2] == ["time", "balance"]


def test_numbers_have_prefixes_of_their_own() -> None:
    shorts = {shown.name: shown.short for shown in shown_fields(spec_of(), DocumentConf())}
    assert shorts == {
        "days": "", "weekday": "", "hour": "", "mcc": "", "note": "", "amount": "",
        "balance": "b", "bonus": "bo", "discount": "r",
    }  # fmt: skip


def test_a_field_of_the_data_set_wins_over_a_derived_one() -> None:
    spec = spec_of(fields=[{"name": "hour", "kind": "numeric"}])
    assert [(shown.name, shown.kind) for shown in shown_fields(spec, DocumentConf())] == [
        ("days", "gap"), ("weekday", "time"), ("hour", "number"), ("amount", "number"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("mc",), "no field 'mc' in data set small: did you mean 'mcc'"),
        (("mcc", "days", "amount"), "put one of 'days' and 'pause' first or last; found mcc|days|amount"),
        (("days", "mcc", "pause"), "put one of 'days' and 'pause' first or last"),
    ],
)
def test_wrong_fields_are_refused(fields: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shown_fields(spec_of(), DocumentConf(fields=fields))


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'format'.*'compact', 'lines'"):
        parse(DocumentConf, {"format": "toml"}, source="file.yaml")


def test_titles_cannot_break_a_header() -> None:
    shown = [Shown(name="a", title="one|two\nthree <b>", kind="word"), Shown(name="c", title="c\\d", kind="word")]
    assert FORMATS["lines"].head(shown) == "one two three <b>|c\\d\n"
    assert FORMATS["markdown"].head(shown) == "| one two three <b> | c\\\\d |\n| --- | --- |\n"
    assert "<th>one two three &lt;b&gt;</th>" in FORMATS["html"].head(shown)


def test_every_mantissa_is_assigned_its_nearest_e12_value() -> None:
    values = [1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2, 10.0]
    for twentieth, step in enumerate(_steps()):
        mantissa = twentieth / 20 + 0.01  # inside the twentieth
        if 1 <= mantissa < 10:
            assert int(step) == min(range(13), key=lambda i: abs(values[i] - mantissa))


def test_labels_have_no_exponent() -> None:
    labels = _labels()
    assert labels[:2] == ["0.0000001", "0.00000012"]
    assert labels[7 * 12 :][:13] == [
        "1",
        "1.2",
        "1.5",
        "1.8",
        "2.2",
        "2.7",
        "3.3",
        "3.9",
        "4.7",
        "5.6",
        "6.8",
        "8.2",
        "10",
    ]
    assert labels[-1] == "82000000000000000"
