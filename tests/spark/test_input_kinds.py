"""Files as banks write them: each value is read exactly, set aside with its reason, or the file is refused by name.

The kinds are those of `docs/input.md`. Many share one ingest, since each costs a Spark job or two.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import Column, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import DataError, SpecError
from ledgerlm.events.attributes import damaged_attributes, dictionaries
from ledgerlm.events.identity import damaged_id, identity, nobody
from ledgerlm.events.ingest import IngestCounts, ingest_events
from ledgerlm.events.labels import client_attributes, first_events, labels_of
from ledgerlm.events.numbers import amount_of, exact_double, exact_number, number, plain_number, product
from ledgerlm.events.spec import DataSetSpec, PseudonymSpec
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.events.spec_times import TimeSpec
from ledgerlm.events.times import CLOCK_CHOICES, LOSSY, time_of
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.text.numbers import plain_amount

HEAD = "id;client;time;amount;mcc;note"
WHEN = "2024-05-01 10:00:00"


def spec_of(folder: Path, files: Sequence[Mapping[str, Any]], **keys: Any) -> DataSetSpec:
    content: dict[str, Any] = {
        "name": "small",
        "source": {"path": str(folder), "files": [{"separator": ";"} | dict(file) for file in files]},
        "client": "client",
        "time": {"column": "time"},
        "event_id": {"columns": ["id"]},
        "amount": {"column": "amount"},
        "fields": [{"name": "mcc"}, {"name": "note", "kind": "text"}],
        "as_of": "2026-01-01",
    }
    return DataSetSpec.model_validate(content | keys)


def ingested(spark: SparkSession, spec: DataSetSpec) -> tuple[dict[str, Row], list[Row], IngestCounts]:
    """Events by id, quarantine, and counts that add up."""
    result = ingest_events(spark, spec)
    events = result.events.collect()
    counts = result.counts()
    counts.check("test")
    quarantine = result.quarantine.collect() if counts.quarantined else []
    assert (len(events), len(quarantine)) == (counts.rows_out, counts.quarantined)
    return {row.event_id: row for row in events}, quarantine, counts


GERMAN = {"decimal": ",", "thousands": "."}
RICH = {"parentheses": True, "trailing_minus": True, "marks": {"CR": "+", "DR": "-"}}
RICH |= {"currency_signs": {"€": "EUR", "EUR": "EUR", "$": "USD"}}
NUMBERS: list[tuple[dict[str, Any], dict[str, str | None]]] = [
    (
        GERMAN,
        {"1.234,50": "1234.50", "3.000": "3000", "12.50": None, "-110.7": None, "1.23.4": None, "12.5,0": None,
         "1.234.567,8": "1234567.8", "0.500": None, ",5": ".5", "-1.234": "-1234", "1.2345": None},
    ),
    ({"decimal": ","}, {"3.000": None, "12.50": None, "12,50": "12.50", "1,5e2": "1.5e2"}),
    (
        {"thousands": ","},
        {"1,234.50": "1234.50", "12,50": None, "173,900": "173900", ",5": None, "1,234,56": None, "1.5": "1.5"},
    ),
    (
        {"thousands": ","},
        {"2,45,500.25": "245500.25", "1,00,00,000": "10000000", "2,45,50": None, "-9,99,000": "-999000"},
    ),
    ({"thousands": " "}, {"1\u00a0234.5": "1234.5", "1\u202f234": "1234", "12 34": None, "1 234 567": "1234567"}),
    ({"thousands": "'"}, {"1’234.5": "1234.5", "1'234": "1234"}),
    (
        {},
        {"\u221212.50": "-12.50", "\uff0b5": "+5", "12.50-": None, "(12.50)": None, "€12.50": None, "1e3": "1e3",
         "0x1p3": None, "3d": None, "1_000": None, "--5": None, "5.": "5.", "Infinity": None, "1,5": None, "1 2": None},
    ),
    (
        RICH,
        {"(12.50)": "-12.50", "12.50-": "-12.50", "€12.50": "12.50", "12.50 EUR": "12.50", "$-12.50": "-12.50",
         "-$12.50": "-12.50", "12.50 CR": "12.50", "12.50 DR": "-12.50", "-12.50 DR": None, "(-12.50)": None,
         "€12.50 $": None, "(12.50": None, "12.50)": None, "(€12.50)": "-12.50", "12.50 XYZ": None, "- 12.50": "-12.50",
         "€ 12.50 CR": "12.50", "-12.50-": None, "CR": None},
    ),
]  # fmt: skip


def test_numbers_follow_a_grammar(spark: SparkSession) -> None:
    columns = {}
    for place, (conf, cases) in enumerate(NUMBERS):
        for text in cases:
            columns[f"{place} {text}"] = plain_number(F.lit(text), FileSpec(glob="x", **conf))[0]
    found = spark.range(1).select(F.array(*columns.values()).alias("a")).first()
    assert found is not None
    expected = [value for _, cases in NUMBERS for value in cases.values()]
    assert dict(zip(columns, found.a, strict=True)) == dict(zip(columns, expected, strict=True))


def test_amounts_keep_their_digits_or_none(spark: SparkSession) -> None:
    cases = {
        "0.00001234": None, "1.00005": None, "1.0000500": None, "0.000000000000000001": None, "12.3400000": "12.3400",
        "99999999999999.9999": "99999999999999.9999", "123456789012345678.99": None, "1.5E3": "1500.0000",
        "1e-30": None, "1e-400": None, "-1e-400": None, "0e-400": "0.0000",
        "1.23456789012345678e5": None, "-0.00": "0.0000", "1e30": None,
    }  # fmt: skip
    doubles = {
        0.1 + 0.2: "0.3000", 12.5: "12.5000", 1e7 + 0.5: "10000000.5000", 0.00001: None, 1e300: None,
        float("inf"): None, float("nan"): None, 3 * 1.1: "3.3000",
        -2.675: "-2.6750", 12345678901.34: "12345678901.3400",
    }  # fmt: skip

    def read(text: str) -> Column:
        return exact_number(F.lit(text))

    exact = [amount_of(read(text)).cast("string") for text in cases]
    rounded = [amount_of(read(text), 2, rounded=True).cast("string") for text in ("1.005", "-1.005", "7")]
    pairs = (("2.95", "10"), ("0.001", "0.001"))
    products = [amount_of(product(read(one), read(other))).cast("string") for one, other in pairs]
    computed = [amount_of(exact_double(F.lit(value))).cast("string") for value in doubles]
    wide = [number(F.lit(text)) for text in ("1e300", "5e38", "3e38", "-1e-300", "1e-400", "0e-400")]
    found = {"e": exact, "r": rounded, "p": products, "w": wide, "d": computed}
    row = spark.range(1).select(*(F.array(*columns).alias(name) for name, columns in found.items())).first()
    assert row is not None
    assert dict(zip(cases, row.e, strict=True)) == cases
    assert row.r == ["1.0100", "-1.0100", "7.0000"]
    assert row.p == ["29.5000", None]
    assert row.w == [None, None, 3e38, -1e-300, None, 0.0]
    assert dict(zip(doubles, row.d, strict=True)) == doubles


def test_identity_is_one_text_for_one_thing(spark: SparkSession) -> None:
    same = {
        "\u00a0123": "123", "123\t": "123", "\ufeff123": "123", "1\u200b23": "123", '="0742"': "0742", "'0742": "0742",
        "007": "007", "'s": "'s", "=x": "=x", "Cafe\u0301": "Café", "a\u0302\u0301": "ấ", "â\u0301": "ấ",
        "\u212b": "Å", "й": "й", "\u2003x\u3000": "x", "17.0": "17.0", "#12": "#12",
    }  # fmt: skip
    damage = {"4.11111E+15": True, "1.2345678E7": True, "#REF!": True, "####": True, "1E5": False, "12E4": False,
              "7.0": False, "#12": False}  # fmt: skip
    names = {"null": True, "None": True, "NaN": True, r"\N": True, "Nulla": False}
    row = spark.range(1).select(
        F.array(*(identity(F.lit(text)) for text in same)).alias("same"),
        F.array(*(damaged_id(F.lit(text)) for text in damage)).alias("damage"),
        F.array(*(nobody(F.lit(text)) for text in names)).alias("names"),
    ).first()  # fmt: skip
    assert row is not None
    assert dict(zip(same, row.same, strict=True)) == same
    assert all(unicodedata.normalize("NFC", one) == one for one in row.same)
    assert dict(zip(damage, row.damage, strict=True)) == damage
    assert dict(zip(names, row.names, strict=True)) == names


def test_zones_and_epochs_in_values(spark: SparkSession) -> None:
    eight = dt.datetime(2024, 5, 1, 8)
    cases: list[tuple[dict[str, Any], str, dt.datetime | None]] = [
        ({}, "2024-05-01 10:00:00+02", eight),
        ({}, "2024-05-01 10:00:00 Europe/Berlin", eight),
        ({}, "2024-05-01T10:00:00+02:00[Europe/Berlin]", eight),
        ({}, "2024-05-01T10:00+0200", eight),
        ({}, "2024-05-01 08:00:00 UTC", eight),
        ({}, "2024-05-01 10:00:00", eight),
        ({}, "2024-05-01 10:00 PM", None),
        ({}, "2024-05-01T10:00[Asia/Tokyo]", dt.datetime(2024, 5, 1, 1)),
        ({}, "2024-05-01T10:00:00+0200[Europe/Berlin]", eight),
        ({}, "2024-05-01 11:00 UTC+3", eight),
        ({}, "2024-05-01 05:00:00.0GMT-3", eight),
        ({}, "2024-05-01T10:00:00 +2", eight),
        *(
            ({}, f"2024-05-01 10:00{gap}{zone}", None)
            for zone in ("IST", "CST", "EST", "CET", "MST7MDT")
            for gap in ("", ":00 ")
        ),
        ({}, "2024-05-01 1:2:3 IST", None),
        ({}, "2024-05", None),
        ({}, "2024-5-01T10", eight),
        ({}, "2024-05-01 09:59:60", eight.replace(hour=7, minute=59, second=59)),
        ({}, "2024-05-01T07:59:60.5Z", eight.replace(hour=7, minute=59, second=59, microsecond=500000)),
        (
            {"format": "yyyy-MM-dd HH:mm:ss.SSS"},
            "2024-05-01 09:59:60.500",
            eight.replace(hour=7, minute=59, second=59, microsecond=500000),
        ),
        ({"format": "yyyy-MM"}, "2024-05", dt.datetime(2024, 4, 30, 22)),
        ({"format": "yyyy-MM-dd'T'HH:mm:ss'Z'"}, "2024-05-01T08:00:00Z", eight),
        ({"format": "dd.MM.yyyy HH:mm"}, "01.05.2024 10:00", eight),
        ({"format": "epoch_ms"}, "1714550400000", eight),
        ({"format": "epoch_us"}, "1714550400123456", eight.replace(microsecond=123456)),
        ({"format": "epoch_ns"}, "1714550400123456789", eight.replace(microsecond=123456)),
        ({"format": "epoch"}, "1714550400.123456", eight.replace(microsecond=123456)),
    ]
    columns = [
        time_of(F.lit(text), T.StringType(), TimeSpec(column="t", zone="Europe/Berlin", **form)).cast("timestamp_ntz")
        for form, text, _ in cases
    ]
    row = spark.range(1).select(F.array(*columns).alias("t")).first()
    assert row is not None
    assert row.t == [expected for _, _, expected in cases]


def lines_of(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def test_dialects_of_text_files(spark: SparkSession, tmp_path: Path) -> None:
    put: dict[str, bytes] = {
        # Each month by its own header: another order, another case.
        "m1.csv": lines_of(HEAD, *(f"a{n};c;{WHEN};12.50;5411;x" for n in range(9))).encode(),
        "m2.csv": lines_of("NOTE;Amount;TIME; Client ;ID;MCC", f"y;7.50;{WHEN};c;a10;5411").encode(),
        # RFC 4180: a memo of three lines, CR LF inside, a bare CR outside of quotes.
        "lines.csv": lines_of(
            HEAD, f'b1;c;{WHEN};12.50;5411;"line one', f"b99;c;{WHEN};-1000000;6011;forged", 'line three"',
            f'b2;c;{WHEN};7;5411;"two\r\nlines"', f"b3;c;{WHEN};7;5411;a\rb", f'b4;c;{WHEN};7;5411;3" pipe',
        ).encode(),
        # An open quote and another, and no value between them: none of the lines is believed.
        "torn.csv": lines_of(
            HEAD, f'd1;c;{WHEN};1;1;"open', f"d2;c;{WHEN};1;1;forged", f'd3;c;{WHEN};1;1;"x" y"', f"d4;c;{WHEN};1;1;x"
        ).encode(),
        "cp1252.csv": lines_of(HEAD, f"e1;c;{WHEN};5;Škoda;“Žižka” – 10 €").encode("cp1252"),
        "cp1251.csv": lines_of(HEAD, f"e2;c;{WHEN};5;Магазин;x").encode("cp1251"),
        # Two letters whose bytes, taken crosswise, are a line end: the row is not believed.
        "utf16.csv": lines_of(
            HEAD, f"f1;c;{WHEN};5;Käse;Ā€", f"f4;c;{WHEN};5;1;ਊĀ", f"f5;c;{WHEN};5;1;x", end="\r\n"
        ).encode("utf-16"),
        "utf16be.csv": b"\xfe\xff" + lines_of(HEAD, f"f2;c;{WHEN};5;Käse;x").encode("utf-16-be"),
        "bom.csv": b"\xef\xbb\xbf" + lines_of(HEAD, f"f3;c;{WHEN};5;Käse;x").encode(),
        "c1.csv": lines_of(HEAD, f"g1;c;{WHEN};5;\x8akoda;x", f"g2;c;{WHEN};5;1;x").encode(),
        "sep.csv": lines_of("sep=|", HEAD.replace(";", "|"), f"h1;c;{WHEN};5;1;x".replace(";", "|")).encode(),
        "above.csv": lines_of("Konto;DE00", "Zeitraum;Mai", "", HEAD, f"i1;c;{WHEN};5;1;x").encode(),
        "tail.csv": lines_of(
            HEAD + ";;", f"j1;c;{WHEN};5;1;x;;", f"j2;c;{WHEN};5;1;x", f"j3;c;{WHEN};5;1;x;y;"
        ).encode(),
        "tail2.csv": lines_of(HEAD, f"j4;c;{WHEN};5;1;x;", f"j5;c;{WHEN};5;1;;").encode(),
        "index.csv": lines_of(";" + HEAD, f"0;k1;c;{WHEN};5;1;x").encode(),
        "mac.csv": lines_of(HEAD, f"l1;c;{WHEN};5;1;x", end="\r").encode(),
        "twice.csv": lines_of(HEAD + ";note", f"m1;c;{WHEN};5;1;x;other").encode(),
    }  # fmt: skip
    for name, data in put.items():
        (tmp_path / name).write_bytes(data)
    folder = tmp_path / "parts" / "mcc=0742" / "land=a%2Fb +c"
    folder.mkdir(parents=True)
    (folder / "x.csv").write_text(lines_of("id;client;time;amount;note", f"n1;c;{WHEN};5;x"))
    own: dict[str, dict[str, Any]] = {
        "cp1252.csv": {"encoding": "iso-8859-1"},
        "cp1251.csv": {"encoding": "windows-1251"},
        "twice.csv": {"columns": ["id", "client", "time", "amount", "mcc", "note", "more"]},
    }
    files = [{"glob": "m?.csv"}, {"glob": "parts"}]
    files += [{"glob": name} | own.get(name, {}) for name in put if name not in ("m1.csv", "m2.csv")]
    fields = [{"name": "mcc"}, {"name": "note", "kind": "text"}]
    events, quarantine, counts = ingested(spark, spec_of(tmp_path, files, fields=fields, mask=[]))
    values = {name: (str(row.amount), row.mcc, row.note) for name, row in events.items()}
    assert {name for name in values if name.startswith("a")} == {f"a{n}" for n in (*range(9), 10)}
    assert values["a10"] == ("7.5000", "5411", "y")
    assert values["b1"] == ("12.5000", "5411", f"line one\nb99;c;{WHEN};-1000000;6011;forged\nline three")
    assert [values[name][2] for name in ("b2", "b3", "b4")] == ["two\r\nlines", "a\rb", '3" pipe']
    assert values["e1"] == ("5.0000", "Škoda", "“Žižka” – 10 €")
    assert (values["e2"][1], values["f1"][1:], values["f2"][1]) == ("Магазин", ("Käse", "Ā€"), "Käse")
    assert values["f3"][1] == "Käse"
    assert {"h1", "i1", "j1", "j2", "j4", "k1", "l1", "m1", "d4", "f5", "g2"} <= set(values)
    assert (values["j5"][2], values["n1"][1]) == (None, "0742")
    aside = sorted((row.reason, row.payload.split(";")[0]) for row in quarantine if row.reason != "bad_encoding")
    assert [row.source_file.split("/")[-1] for row in quarantine if row.reason == "bad_encoding"] == ["utf16.csv"] * 2
    assert aside == [
        ("control_sign", "g1"),
        ("unclosed_quote", "d1"),
        ("unclosed_quote", "d2"),
        ("unclosed_quote", "d3"),
        ("wrong_column_count", "j3"),
    ]
    assert counts.duplicates == 0


def refusal(spark: SparkSession, folder: Path, **keys: Any) -> str:
    """What the user is told of a data set that is refused."""
    files = keys.pop("files", [{"glob": "*.csv"}])
    with pytest.raises(SpecError) as caught:
        ingest_events(spark, spec_of(folder, files, **keys))
    return str(caught.value)


def refused(spark: SparkSession, folder: Path, says: str, **keys: Any) -> None:
    assert says in refusal(spark, folder, **keys)


def test_files_that_are_refused_by_name(spark: SparkSession, tmp_path: Path) -> None:
    good = lines_of(HEAD, f"1;c;{WHEN};5;1;x").encode()
    cases: list[tuple[dict[str, bytes], str]] = [
        ({"a.csv": good, "b.csv": good.replace(b"mcc", b"mmc")}, "b.csv has no column 'mcc': did you mean 'mmc'"),
        ({"a.csv": good.replace(b"note", b"amount")}, "a.csv: the header has 'amount' twice"),
        ({"a.csv": HEAD.encode() + b"\n"}, "no rows in *.csv"),
        ({"a.csv": b""}, "no rows in *.csv"),
        ({"a.csv": good, "_b.csv": good}, "_b.csv: the pattern *.csv matches it, but Spark passes over"),
        ({"a.csv": good, ".c.csv": good}, ".c.csv: the pattern"),
        ({"a.csv": b"PK\x03\x04xx"}, "a.csv is a zip archive or an Excel workbook"),
        ({"a.csv": b"\x1f\x8bxx"}, "gzip file without the name .gz"),
        ({"a.csv": good.decode().encode("utf-16-le")}, "looks like UTF-16 without a byte order mark"),
        ({"a.csv": good.replace(b"client", b"Note").replace(b"note", b"NOTE")}, "write 'note' as one of them"),
        ({"a.csv": good, "b.csv": b""}, "b.csv has no byte, as a delivery that was cut off"),
        ({"a.csv": good.replace(b"\n", b"\r").rstrip(b"\r") + b"\n"}, "a.csv: its header holds line ends of CR alone"),
        ({"a.csv": b"\x28\xb5\x2f\xfdxx"}, "a.csv is a zstd archive"),
        ({}, "nothing is there"),
    ]
    for place, (files, says) in enumerate(cases):
        folder = tmp_path / str(place)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        client = "time" if "as one of them" in says else "client"
        fields = [{"name": "mcc"}, {"name": "note", "kind": "text"}]
        assert says in refusal(spark, folder, client=client, fields=fields)
    (tmp_path / "a.json").write_text("[\n{}\n]")
    refused(spark, tmp_path, "is one JSON array", files=[{"glob": "a.json", "format": "json"}])
    (tmp_path / "a.json").write_text('{\n"id": 1\n}\n')
    refused(spark, tmp_path, "stands on several lines", files=[{"glob": "a.json", "format": "json"}])
    (tmp_path / "a.json").write_text('{"id": 1, "client": "c", "time": "x", "amount": 1, "mmc": 2, "note": 3}\n')
    refused(
        spark,
        tmp_path,
        "no line of a.json has a column 'mcc': did you mean 'mmc'",
        files=[{"glob": "a.json", "format": "json"}],
    )
    names = ["id", "client", "time", "mcc", "amount", "note"]
    (tmp_path / "n.csv").write_bytes(good)
    refused(
        spark, tmp_path, "'columns' has 'mcc' at place 4, the header at 5", files=[{"glob": "n.csv", "columns": names}]
    )
    (tmp_path / "a.parquet").write_text("no Parquet")
    refused(spark, tmp_path, "a.parquet is no Parquet file", files=[{"glob": "a.parquet", "format": "parquet"}])


def test_parquet_that_is_more_than_its_files_or_means_two_things(spark: SparkSession, tmp_path: Path) -> None:
    """Files of a table hold rows that are gone; times of 96 bits say nothing of a zone."""
    when = dt.datetime(2024, 1, 1, 10)
    columns = {"id": ["1"], "client": ["c"], "amount": [1.0], "mcc": ["1"], "note": ["x"]}
    plain = pa.table(columns | {"time": pa.array([when], pa.timestamp("us")), "clock": [dt.time(1, 2, 3)]})
    for name in ("delta", "parts/day=1", "hudi", "ice/data", "old"):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(plain, tmp_path / name / "a.parquet", use_deprecated_int96_timestamps=name == "old")
    for log in ("delta/_delta_log", "parts/_delta_log", "hudi/.hoodie", "ice/metadata"):
        (tmp_path / log).mkdir()
    (tmp_path / "ice" / "metadata" / "v1.metadata.json").write_text("{}")
    for glob, says in (
        (
            "delta",
            "delta is a Delta table, and some of its files hold rows that were deleted since; read it with 'form",
        ),
        ("parts/*/*.parquet", "parts is a Delta table"),
        ("hudi/*.parquet", "hudi belongs to a Hudi table"),
        ("ice/data/*.parquet", "data belongs to an Iceberg table"),
    ):
        refused(spark, tmp_path, says, files=[{"glob": glob, "format": "parquet"}])
    berlin = {"column": "time", "zone": "Europe/Berlin"}
    old = {"glob": "old/*.parquet", "format": "parquet"}
    refused(spark, tmp_path, "'time' holds times of 96 bits, which do not say whether", files=[old], time=berlin)
    clock = [{"name": "clock"}]
    refused(spark, tmp_path, "column 'clock' is a time of day, which Spark cannot read", files=[old], fields=clock)

    def hour(time: dict[str, Any], **more: str) -> int:
        """In UTC."""
        events, _, _ = ingested(spark, spec_of(tmp_path, [old | more], time=time, fields=[{"name": "mcc"}]))
        return int(events["1"].event_time.hour)

    assert hour({"column": "time"}) == hour(berlin, int96="instants") == 10
    assert hour(berlin, int96="local") == 9


def test_instants_as_texts_are_told_in_the_zone_of_the_data(spark: SparkSession, tmp_path: Path) -> None:
    when = pa.array([dt.datetime(2024, 1, 1, 10)], pa.timestamp("us", "America/New_York"))
    columns = {"id": ["1"], "client": ["c"], "amount": [1.0], "time": when, "booked": when}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    spec = spec_of(
        tmp_path,
        [{"glob": "*.parquet", "format": "parquet"}],
        time={"column": "time", "zone": "Europe/Berlin"},
        fields=[{"name": "booked"}],
    )
    events, _, _ = ingested(spark, spec)
    assert events["1"].booked == "2024-01-01 11:00:00"


def test_an_hour_is_added_to_days_that_are_whole(spark: SparkSession, tmp_path: Path) -> None:
    lines = ["1;c;1.75;5;20", "2;c;2;5;20", "3;c;-1;5;0", "4;c;1.5;5;0"]
    (tmp_path / "a.csv").write_text(lines_of("id;client;day;amount;hour", *lines))
    time = {"column": "day", "format": "days", "origin": "2024-01-10", "hour": "hour"}
    events, quarantine, _ = ingested(
        spark, spec_of(tmp_path, [{"glob": "a.csv"}], time=time, fields=[{"name": "hour"}])
    )
    assert {key: str(row.event_time) for key, row in events.items()} == {
        "2": "2024-01-12 20:00:00",
        "3": "2024-01-09 00:00:00",
    }
    assert sorted((row.reason, row.detail) for row in quarantine) == [
        ("bad_time", "day: 1.5"),
        ("bad_time", "day: 1.75"),
    ]
    before = {"column": "day", "format": "days_before", "origin": "2024-01-10"}
    events, quarantine, _ = ingested(
        spark, spec_of(tmp_path, [{"glob": "a.csv"}], time=before, fields=[{"name": "hour"}])
    )
    assert set(events) == {"2", "3"} and {row.reason for row in quarantine} == {"bad_time"}


def test_labels_at_a_limit_have_all_their_digits_or_none(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *(f"{n};c{n};{WHEN};5;1;x" for n in range(4))))
    ages = ["17.9999999999999999999", "18", "17.99999999999999", "0.1234567890123456789"]
    (tmp_path / "l.csv").write_text(lines_of("client;age", *(f"c{n};{age}" for n, age in enumerate(ages))))
    label = {"file": {"glob": "l.csv", "separator": ";"}, "id": "client", "column": "age"}
    spec = spec_of(
        tmp_path,
        [{"glob": "a.csv"}],
        labels=[
            label | {"name": "adult", "kind": "binary", "thresholds": [18]},
            label | {"name": "age", "kind": "regression", "between": [0, 18]},
        ],
    )
    events = ingest_events(spark, spec).events
    labelled = labels_of(spark, spec, first_events(events))
    found = {(row.task, row.client_id): row.label for row in labelled.labels.collect()}
    assert {key[1]: value for key, value in found.items() if key[0] == "adult"} == {"c1": 1.0, "c2": 0.0, "c3": 0.0}
    assert {key[1] for key in found if key[0] == "age"} == {"c1", "c2", "c3"}
    bad = [(row.reason, row.detail) for row in labelled.quarantine.collect()]
    assert sorted(bad) == [("bad_label", f"task {task}: {ages[0]}") for task in ("adult", "age")]
    assert [one.cut for one in labelled.by_task().values()] == [1, 1], "c3, whose class is clear"


def test_leave_out_and_compressed_files(spark: SparkSession, tmp_path: Path) -> None:
    import gzip

    good = lines_of(HEAD, f"1;c;{WHEN};5;1;x")
    (tmp_path / "_old.csv").write_text(good)
    for mark in ("_SUCCESS.csv.crc", ".DS_Store", "._b.csv"):
        (tmp_path / mark).write_text("no row")
    (tmp_path / "a [1]{x}.csv").write_text(good)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(good.replace("1;c", "2;c").encode()))
    events, _, _ = ingested(spark, spec_of(tmp_path, [{"glob": "*.csv*", "leave_out": ["_old*"]}]))
    assert set(events) == {"1", "2"}


def test_columns_of_any_name_mean_the_datas_own(spark: SparkSession, tmp_path: Path) -> None:
    text = lines_of(
        "id;account.id;client_id;booking time;event_time;amount;amount (EUR);source_file;_id;reason;hour;`q`",
        f"1;ACC1;holder;{WHEN};value-date;100.00 JPY;0.61;S1;I1;R1;H1;Q1",
    )
    (tmp_path / "a.csv").write_text(text)
    names = ["client_id", "event_time", "amount", "source_file", "_id", "reason", "hour", "`q`"]
    fields = [{"name": f"f{place}", "column": name} for place, name in enumerate(names)]
    keys = {"client": "account.id", "time": {"column": "booking time"}, "amount": {"column": "amount (EUR)"}}
    events, _, _ = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], fields=fields, **keys))
    row = events["1"]
    assert (row.client_id, str(row.amount), row.source_file.split("/")[-1]) == ("ACC1", "0.6100", "a.csv")
    expected = ["holder", "value-date", "100.00 JPY", "S1", "I1", "R1", "H1", "Q1"]
    assert [row[f"f{place}"] for place in range(len(names))] == expected
    table = {
        name.replace("account.id", "acc.id"): [value]
        for name, value in zip(text.split("\n")[0].split(";"), text.split("\n")[1].split(";"), strict=True)
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    keys["client"] = "acc.id"
    events, _, _ = ingested(
        spark, spec_of(tmp_path, [{"glob": "a.parquet", "format": "parquet"}], fields=fields, **keys)
    )
    assert [events["1"][f"f{place}"] for place in range(len(names))] == expected


def test_json_numbers_keep_their_digits(spark: SparkSession, tmp_path: Path) -> None:
    row = f'"client": "c", "time": "{WHEN}", "mcc": "1"'
    lines = [
        '{"id": 9007199254740993, "amount": 12345678901234.5678, "note": {"deep": [1.10]}, ' + row + "}",
        '{"id": 2, "amount": 0.30000000000000004, ' + row + "}",
        '{"id": 3, "amount": 1, "amount": 2, ' + row + "}",
        '{"ID": 4, "Amount": "5", ' + row + "}",
        '{"id": 1.2345678E7, "amount": 1, ' + row + "}",
        '{"id": "007", "amount": 1, "late": "l", ' + row + "}",
        # An exponent is no double, whose digits and size have an end; inside a text it is the text.
        '{"id": 1e3, "amount": 1e2, "note": 1e400, ' + row + "}",
        '{"id":1001,"amount":1.5E-3,"late":"[:1e3, \\\\",' + row + "}",
        '{"id": 1002, "amount": 1e-400, ' + row + "}",
        '{"id": 1003, "amount": 1, "note": [-1e400, 1e2, "a\\" 1e3"], "late": ' + f"{'12' * 30}, " + row + "}",
        '{"id": 4.11E+15, "amount": 1, ' + row + "}",
        '{"id": 1004, "amount": 01e3, ' + row + "}",
    ]
    (tmp_path / "a.json").write_text("\n".join(lines))
    fields = [{"name": "mcc"}, {"name": "note", "kind": "text"}, {"name": "late", "optional": True}]
    events, quarantine, _ = ingested(spark, spec_of(tmp_path, [{"glob": "a.json", "format": "json"}], fields=fields))
    assert {name: (str(one.amount), one.late) for name, one in events.items()} == {
        "9007199254740993": ("12345678901234.5678", None),
        "4": ("5.0000", None),
        "007": ("1.0000", "l"),
        "1000": ("100.0000", None),
        "1001": ("0.0015", "[:1e3, \\"),
        "1003": ("1.0000", "12" * 30),
    }
    assert (events["1000"].note, events["1003"].note) == ("1e400", '["-1e400",100,"a\\" 1e3"]')
    assert sorted((row.reason, row.detail) for row in quarantine if row.detail) == [
        ("bad_amount", "amount: 0.30000000000000004"),
        ("bad_amount", "amount: 1e-400"),
        ("damaged_id", "id: 1.2345678E7"),
        ("damaged_id", "id: 4.11E+15"),
    ]
    assert [row.reason for row in quarantine if not row.detail] == ["bad_json"] * 2


def test_typed_files_of_several_schemas(spark: SparkSession, tmp_path: Path) -> None:
    when = 1_714_557_600_123_456_789
    base = {"client": ["c"], "note": ["x"], "time": pa.array([when], pa.timestamp("ns"))}
    tables: dict[str, dict[str, Any]] = {
        "a": {"id": ["1"], "amount": [0.1 + 0.2], "mcc": [5411]},
        "b": {"id": ["2"], "amount": [Decimal("1.23456")], "mcc": ["0742"]},
        "c": {"id": ["3"], "amount": [1e7 + 0.5], "mcc": [b"caf\xe9"]},
        "d": {"id": [4111111111111111.0], "amount": [2.5], "mcc": [7.0]},
        "e": {"id": ["5"], "amount": ["7.10"], "mcc": [Decimal("5411.00")]},
        "f": {"id": ["6"], "amount": [float("nan")], "mcc": [7.0]},
        "g": {"id": ["7"], "amount": [float("-inf")], "mcc": [7.0]},
        "h": {"id": ["8"], "amount": pa.array([None], pa.float64()), "mcc": [float("nan")]},
        "k": {"id": ["10"], "amount": [1.0], "mcc": ["1"], "time": pa.array([when // 1000 * 1000], pa.timestamp("ns"))},
        "i": {"id": ["9"], "amount": pa.array([float("nan")], pa.float32()), "mcc": ["1"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(base | columns), tmp_path / f"{name}.parquet")
    time = {"column": "time", "zone": "Europe/Berlin"}
    spec = spec_of(tmp_path, [{"glob": "*.parquet", "format": "parquet"}], time=time)
    events, quarantine, counts = ingested(spark, spec)
    assert counts.choices == {CLOCK_CHOICES[LOSSY]: 4}, "and not k, whose nanoseconds are zero"
    assert {name: (str(row.amount), row.mcc) for name, row in events.items()} == {
        "1": ("0.3000", "5411"),
        "4111111111111111": ("2.5000", "7"),
        "5": ("7.1000", "5411"),
        "10": ("1.0000", "1"),
        "8": ("None", None),
    }
    naive = dt.datetime.fromtimestamp(when // 10**9, dt.UTC) - dt.timedelta(hours=2)
    shown = spark.createDataFrame([(events["1"].event_time,)], "t timestamp").selectExpr(
        "date_format(t, 'HH:mm:ss.SSSSSS') s"
    )
    assert [row.s for row in shown.collect()] == [f"{naive:%H:%M:%S}.123456"]
    assert sorted((row.reason, row.detail) for row in quarantine if row.reason == "bad_amount") == [
        ("bad_amount", "amount: -Infinity"),
        ("bad_amount", "amount: 1.23456"),
        ("bad_amount", "amount: NaN"),
        ("bad_amount", "amount: NaN"),
    ]
    assert [row.reason for row in quarantine if row.reason != "bad_amount"] == ["bad_utf8"]
    pq.write_table(pa.table(base | tables["a"] | {"time": [WHEN]}), tmp_path / "j.parquet")
    refused(spark, tmp_path, "give such files entries of their own", files=[{"glob": "*.parquet", "format": "parquet"}])


def test_signs_flags_nulls_and_times_in_columns(spark: SparkSession, tmp_path: Path) -> None:
    rows = [
        ("1", "12.50", "D", "1"), ("2", "-12.50", "D", "0"), ("3", "12.50", "C", "TRUE"), ("4", "12.50", "d", ""),
        ("5", "n/a", "", "1.0"), ("6", "5", "C", "2"), ("7", "5 USD", "C", "0"),
    ]  # fmt: skip
    lines = [f"{i};c;2024;5;1;10:0{i};{amount};{sign};{flag};x" for i, amount, sign, flag in rows]
    (tmp_path / "a.csv").write_text(lines_of("id;client;y;m;d;t;amount;mcc;flag;note", *lines))
    sign = {"column": "mcc", "negative": ["D"], "positive": ["C"]}
    amount = {"column": "amount", "nulls": ["n/a"], "sign": sign, "currency": "EUR"}
    time = {"columns": ["y", "m", "d", "t"], "format": "yyyy M d HH:mm"}
    fields = [{"name": "note", "kind": "text"}, {"name": "set", "flags": {"flag": "on"}}]
    file = {"glob": "a.csv", "currency_signs": {"USD": "USD"}}
    events, quarantine, _ = ingested(spark, spec_of(tmp_path, [file], amount=amount, time=time, fields=fields))
    assert {name: (row.amount and str(row.amount), row.set) for name, row in events.items()} == {
        "1": ("-12.5000", "on"),
        "3": ("12.5000", "on"),
        "5": (None, "on"),
    }
    assert events["5"].event_time.minute == 5
    assert sorted((row.reason, row.detail) for row in quarantine) == [
        ("bad_amount", "amount: 12.50, mcc: d"),
        ("bad_amount", "amount: 5 USD, mcc: C"),
        ("bad_flag", "flag: 2"),
        ("signed_amount", "amount: -12.50, mcc: D"),
    ]
    counted = amount | {"sign": sign | {"signed": "column", "positive": ["C", "d"]}}
    events, _, counts = ingested(spark, spec_of(tmp_path, [file], amount=counted, time=time, fields=fields))
    assert str(events["2"].amount) == "-12.5000"
    assert counts.choices == {"amounts with a sign of their own beside sign": 1}


def test_rounding_is_a_setting_that_is_counted(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines_of(HEAD, f"1;c;{WHEN};1.00005;1;x", f"2;c;{WHEN};2;1;x"))
    amount = {"column": "amount", "round": True}
    events, _, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], amount=amount))
    assert str(events["1"].amount) == "1.0001"
    assert counts.choices == {"rounded amounts": 1}


def test_currencies_have_one_name(spark: SparkSession, tmp_path: Path) -> None:
    rows = {"1": ("12.50", "EUR"), "2": ("12.50", " eur"), "3": ("12.50", "€"), "4": ("€12.50", "eur"), "5": ("$1", ""),
            "6": ("$1", "EUR"), "7": ("1", "kč"), "8": ("1", "978"), "9": ("1", "xyz"), "10": ("1", "")}  # fmt: skip
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *(f"{one};c;{WHEN};{a};{c};x" for one, (a, c) in rows.items())))
    (tmp_path / "b.csv").write_text(lines_of(HEAD, f"11;c;{WHEN};1;€;x", f"12;c;{WHEN};1;usd;x"))
    pq.write_table(
        pa.table({"id": ["13"], "client": ["c"], "time": [WHEN], "amount": [1.5], "mcc": [978], "note": ["x"]}),
        tmp_path / "c.parquet",
    )
    signs = {"€": "eur", "$": "USD", "Kč": "CZK"}
    codes = {"values": {"mcc": {"978": "eur"}}}
    files: list[dict[str, Any]] = [
        {"glob": "a.csv", "currency_signs": signs} | codes,
        {"glob": "b.csv"},
        {"glob": "c.parquet", "format": "parquet"} | codes,
    ]
    amount = {"column": "amount", "currency_column": "mcc"}
    events, quarantine, _ = ingested(spark, spec_of(tmp_path, files, amount=amount))
    assert {one: (row.currency, row.mcc) for one, row in events.items()} == {
        "1": ("EUR", "EUR"), "2": ("EUR", "eur"), "3": ("EUR", "€"), "4": ("EUR", "eur"), "5": ("USD", None),
        "7": ("CZK", "kč"), "8": ("EUR", "eur"), "9": ("XYZ", "xyz"), "10": (None, None), "11": ("€", "€"),
        "12": ("USD", "usd"), "13": ("EUR", "eur"),
    }  # fmt: skip
    assert [row.detail for row in quarantine] == ["amount: $1"]
    convert = {"into": "eur", "rates": {"usd": 2, "czk": "0.5"}}
    events, quarantine, _ = ingested(spark, spec_of(tmp_path, files[:1], amount=amount | {"convert": convert}))
    assert {one: str(row.amount) for one, row in events.items() if one in "12357"} == {
        "1": "12.5000", "2": "12.5000", "3": "12.5000", "5": "2.0000", "7": "0.5000"
    }  # fmt: skip
    assert {row.currency for row in events.values()} == {"EUR"}
    assert len(quarantine) == 3


def test_rates_turn_amounts_into_one_currency(spark: SparkSession, tmp_path: Path) -> None:
    rows = {"1": ("10", "EUR"), "2": ("10000", "JPY"), "3": ("-0.10", "USD"), "4": ("5", "GBP"), "5": ("5", ""),
            "6": ("1.23456", "USD"), "7": ("0.00001234", "BTC"), "8": ("123456789012.34", "JPY"), "9": ("", "JPY"),
            "10": ("1.23456", "EUR")}  # fmt: skip
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *(f"{one};c;{WHEN};{a};{c};x" for one, (a, c) in rows.items())))
    rates = {"USD": 0.925, "JPY": "0.0061", "BTC": 60000}
    amount = {"column": "amount", "currency_column": "mcc", "convert": {"into": "EUR", "rates": rates}}
    events, quarantine, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], amount=amount))
    assert {one: str(row.amount) for one, row in events.items()} == {
        "1": "10.0000", "2": "61.0000", "3": "-0.0925", "6": "1.1420", "7": "0.7404", "8": "753086412.9753",
        "9": "None",
    }  # fmt: skip
    assert {row.currency for row in events.values()} == {"EUR", None}
    assert counts.choices == {"amounts turned into another currency": 5}
    assert sorted(row.detail for row in quarantine) == [
        "amount: 1.23456, currency: EUR", "amount: 5, currency: GBP", "amount: 5, currency: absent"
    ]  # fmt: skip


def test_wide_lines_become_a_row_for_each_period(spark: SparkSession, tmp_path: Path) -> None:
    months = {"2005-08-31": {"amount": "B2", "mcc": "S2"}, "2005-09-30": {"amount": "B1", "mcc": "S1"}}
    unpivot = {"name": "time", "rows": months}
    (tmp_path / "w.csv").write_text(
        "id;client;B1;B2;S1;S2;note\n1;a;1.234,50;-2;x;y;n\n2;b;;;;;n\n3;c;3,5;;z;;n\n4;d;oops;7;;;n\nbroken;line\n"
    )
    pq.write_table(
        pa.table({"id": [5], "client": ["e"], "B1": [2.5], "B2": pa.array([None], pa.float64()), "S1": ["x"],
                  "S2": pa.array([None], pa.string()), "note": ["n"]}),
        tmp_path / "w.parquet",
    )  # fmt: skip
    csv = {
        "glob": "w.csv",
        "separator": ";",
        "decimal": ",",
        "thousands": ".",
        "values": {"mcc": {"x": "paid"}},
        "unpivot": unpivot,
    }
    files = [csv, {"glob": "w.parquet", "format": "parquet", "unpivot": unpivot}]
    keys = {"time": {"column": "time", "format": "yyyy-MM-dd"}, "event_id": {"columns": ["id", "time"]}}
    events, quarantine, counts = ingested(spark, spec_of(tmp_path, files, **keys))
    assert {one: (str(row.event_time)[:10], str(row.amount), row.mcc) for one, row in events.items()} == {
        r"1|2005-08-31": ("2005-08-31", "-2.0000", "y"),
        r"1|2005-09-30": ("2005-09-30", "1234.5000", "paid"),
        r"3|2005-09-30": ("2005-09-30", "3.5000", "z"),
        r"4|2005-08-31": ("2005-08-31", "7.0000", None),
        r"5|2005-09-30": ("2005-09-30", "2.5000", "x"),
    }
    assert counts.choices == {"empty periods of wide lines": 4}
    assert sorted(row.reason for row in quarantine) == ["bad_amount", "wrong_column_count", "wrong_column_count"]
    assert counts.rows_in == 8
    # Without ids, the months of a line are rows of their own, and the same line again is one as well.
    spec = spec_of(tmp_path, [csv], **keys | {"event_id": {}})
    assert len({row.event_id for row in ingest_events(spark, spec).events.collect()}) == 4
    label = {"name": "y", "kind": "regression", "file": csv, "id": "client", "column": "amount"}
    spec = spec_of(tmp_path, files, labels=[label | {"as_of": {"column": "time", "format": "yyyy-MM-dd"}}], **keys)
    firsts = spark.createDataFrame(
        [(one, dt.datetime(2000, 1, 1)) for one in "abcd"], "client_id string, first_event_time timestamp"
    )
    labelled = labels_of(spark, spec, firsts)
    found = {(row.client_id, str(row.as_of)[:10]): row.label for row in labelled.labels.collect()}
    assert found == {
        ("a", "2005-08-31"): -2.0,
        ("a", "2005-09-30"): 1234.5,
        ("c", "2005-09-30"): 3.5,
        ("d", "2005-08-31"): 7.0,
    }
    assert labelled.counts().left_out == 3


def test_finer_amounts_keep_their_digits(spark: SparkSession, tmp_path: Path) -> None:
    cases = {"0.00001234": "0.0000123400", "-0.00004999": "-0.0000499900", "12.5": "12.5000000000", "1e-18": None}
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *(f"{one};c;{WHEN};{one};1;x" for one in cases)))
    sign = {"column": "note", "negative": ["y"], "positive": ["x"], "signed": "both"}
    amount = {"column": "amount", "scale": 10, "sign": sign}
    spec = spec_of(tmp_path, [{"glob": "a.csv"}], amount=amount)
    events, quarantine, _ = ingested(spark, spec)
    assert {one: str(events[one].amount) if one in events else None for one in cases} == {
        one: None if value is None else f"{Decimal(value):.10f}" for one, value in cases.items()
    }
    assert [row.reason for row in quarantine] == ["bad_amount"]
    lake = Lake(str(tmp_path / "lake"), spark)
    lake.write("events", ingest_events(spark, spec).events, by=Author(attempt="1", stage="test/ingest", run_id="r"))
    assert {str(row.amount) for row in lake.read("events").collect()} == {one for one in cases.values() if one}
    told = lake.read("events").select(plain_amount(F.col("amount")).alias("text")).collect()
    assert {row.text for row in told} == {"0.00001234", "-0.00004999", "12.50"}


def test_deliveries_that_overlap_count_once(spark: SparkSession, tmp_path: Path) -> None:
    coffee, bread = f"1;c;{WHEN};3;1;coffee", f"1;c;{WHEN};4;1;bread"
    (tmp_path / "may1.csv").write_text(lines_of(HEAD, coffee, coffee, bread))
    (tmp_path / "may2.csv").write_text(lines_of(HEAD, coffee, bread))
    events, _, counts = ingested(spark, spec_of(tmp_path, [{"glob": "may*.csv"}], event_id={}))
    assert sorted(row.note for row in events.values()) == ["bread", "coffee", "coffee"]
    assert (counts.rows_in, counts.duplicates) == (5, 2)
    # However the rows are written: other quotes, another order of columns or keys, capitals, line ends.
    (tmp_path / "may3.csv").write_text(
        lines_of(HEAD.replace("mcc", "MCC"), f'1;"c";{WHEN};3;1;"coffee"'), newline="\r\n"
    )
    (tmp_path / "may4.csv").write_text(lines_of("note;id;client;time;amount;mcc", f"bread;1;c;{WHEN};4;1"))
    row = {"id": 1, "client": "c", "time": WHEN, "amount": 7, "mcc": "1", "note": "tea"}
    (tmp_path / "may1.json").write_text(json.dumps(row))
    (tmp_path / "may2.json").write_text(json.dumps(dict(reversed(row.items()))))
    files = [{"glob": "may*.csv"}, {"glob": "may*.json", "format": "json"}]
    events, _, counts = ingested(spark, spec_of(tmp_path, files, event_id={}))
    assert sorted(row.note for row in events.values()) == ["bread", "coffee", "coffee", "tea"]
    assert (counts.rows_in, counts.duplicates) == (9, 5)


def test_conflicting_rows_of_an_id_and_ids_of_parts(spark: SparkSession, tmp_path: Path) -> None:
    rows = [
        f"T1;a;{WHEN};1.00;pending;x", "T1;a;2024-05-01 18:00:00;62.40;posted;x", f"T2;a;{WHEN};5;1;x",
        f"T2;a;{WHEN};5;1;x", f"T3|;a;{WHEN};5;|4;x", f"T3;a;{WHEN};5;||4;x",
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *rows))
    events, quarantine, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}]))
    assert (set(events), counts.duplicates) == ({"T2", "T3|", "T3"}, 1)
    assert [(row.reason, row.detail) for row in quarantine] == [("conflicting_event", "event_id: T1")] * 2
    last = {"columns": ["id"], "conflicts": "last"}
    events, _, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], event_id=last))
    assert (str(events["T1"].amount), counts.duplicates) == ("62.4000", 2)
    parts = {"columns": ["id", "mcc"], "conflicts": "last"}
    events, _, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], event_id=parts))
    assert {r"T3\||\|4", r"T3|\|\|4"} <= set(events)


def test_order_of_file_and_of_numbers(spark: SparkSession, tmp_path: Path) -> None:
    ids = ["9007199254740993", "9007199254740992", "9", "10", "B2"]
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *(f"{one};a;{WHEN};1;1;x" for one in ids)))

    def order(**time: Any) -> tuple[list[str], Mapping[str, int]]:
        events, _, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], time={"column": "time"} | time))
        return sorted(events, key=lambda one: events[one].event_seq), counts.choices

    assert order() == (["9", "10", "9007199254740992", "9007199254740993", "B2"], {})
    assert order(order="file") == (ids, {})
    numbered = ["B2", "9", "10", "9007199254740992", "9007199254740993"]
    assert order(order="id") == (numbered, {"events whose order is no number": 1})


def test_the_tenth_file_stands_behind_the_ninth(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "night-9.csv").write_text(lines_of(HEAD, f"1;a;{WHEN};9;1;x", f"2;a;{WHEN};9;1;x", f"3;a;{WHEN};9;D;x"))
    (tmp_path / "night-10.csv").write_text(
        lines_of(HEAD, f"1;a;{WHEN};10;1;x", f"2;a;{WHEN};0;D;x", f"3;a;{WHEN};3;1;x")
    )
    rule = {"columns": ["id"], "conflicts": "last", "deleted": {"mcc": ["D"]}, "kept": {"mcc": ["1"]}}
    events, _, _ = ingested(spark, spec_of(tmp_path, [{"glob": "*.csv"}], event_id=rule))
    assert {one: int(event.amount) for one, event in events.items()} == {"1": 10, "3": 3}


def test_an_operation_that_the_spec_does_not_name_is_set_aside(spark: SparkSession, tmp_path: Path) -> None:
    rows = (f"{n};c;{WHEN};{n};{op};x" for n, op in enumerate(("I", "U", "", "D", "d", "TRUNCATE")))
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *rows))
    rule = {"columns": ["id"], "deleted": {"mcc": ["D"]}, "kept": {"mcc": ["I", "U"]}}
    events, quarantine, counts = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv"}], event_id=rule))
    assert (sorted(events), counts.withdrawn) == (["0", "1", "2"], 1)
    assert sorted((row.reason, row.detail) for row in quarantine) == [
        ("bad_operation", "mcc: TRUNCATE"),
        ("bad_operation", "mcc: d"),
    ]


def test_number_fields_beyond_the_digits_of_a_double_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    kept = (
        "9007199254740992",
        "0.1234567890123456",
        "1,000,000,000,000,000,000",
        "-0.000000000000000000001",
        "15" + "0" * 21,
    )
    cut = ("9007199254740993", "0.12345678901234567890", "1.00000000000000001")
    for name, values in (("kept", kept), ("cut", cut)):
        rows = (f'{n};c;{WHEN};1;1;"{value}"' for n, value in enumerate(values))
        (tmp_path / f"{name}.csv").write_text(lines_of(HEAD, *rows))
        spec = spec_of(
            tmp_path, [{"glob": f"{name}.csv", "thousands": ","}], fields=[{"name": "note", "kind": "numeric"}]
        )
        events, _, counts = ingested(spark, spec)
        assert len(events) == len(values)
        lost = {"rows with a number of more digits than a double keeps": len(cut)} if name == "cut" else {}
        assert counts.choices == lost


def test_what_the_counts_refuse(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines_of("id;client;time;amount;mcc;note", "1;c;2024-05-01;5;1;x"))
    # Quotes that only show beyond the head of a file.
    filler = (f"{n};c;{WHEN};5;1;{'x' * 1000}" for n in range(1200))
    torn = [f'1200;c;{WHEN};5;1;"one', f"1201;c;{WHEN};-9;1;forged", 'two"']
    (tmp_path / "a.csv").write_text(lines_of(HEAD, *filler, *torn))
    with pytest.raises(DataError, match="say 'line_breaks: true'"):
        ingested(spark, spec_of(tmp_path, [{"glob": "a.csv", "quote": '"'}]))
    events, _, _ = ingested(spark, spec_of(tmp_path, [{"glob": "a.csv", "line_breaks": True}]))
    assert (len(events), events["1200"].note) == (1201, f"one\n1201;c;{WHEN};-9;1;forged\ntwo")


@pytest.mark.parametrize(
    ("rule", "a"), [("absent", (None, None)), ("first", ("Aachen", "31")), ("last", ("Berlin", "30"))]
)
def test_rows_without_a_value_contradict_nobody(
    spark: SparkSession, tmp_path: Path, rule: str, a: tuple[str | None, str | None]
) -> None:
    (tmp_path / "e.csv").write_text(lines_of(HEAD, f"1;a;{WHEN};1;5411;x"))
    (tmp_path / "c.csv").write_text("client,city,age\na,Berlin,30\na,Aachen,31\na,,\nb,Bonn,\nb,,\nd,,\n")
    one = {"file": {"glob": "c.csv"}, "id": "client", "attributes": {"city": "city", "age": "age"}, "conflicts": rule}
    spec = spec_of(tmp_path, [{"glob": "e.csv"}], clients=[one])
    *_, counts = ingested(spark, spec)
    assert counts.choices == {"clients.0 conflicting keys": 1}
    firsts = spark.createDataFrame([("a",), ("b",), ("d",)], "client_id string")
    found = {row.client_id: (row.city, row.age) for row in client_attributes(spark, spec, firsts).collect()}
    assert found == {"a": a, "b": ("Bonn", None), "d": (None, None)}


def test_attributes_codes_and_labels(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(lines_of(HEAD, f"1;a;{WHEN};1;5411;x", f"2;b;{WHEN};1;5812;x", f"3;d;{WHEN};1;9;x"))
    (tmp_path / "c.csv").write_text(
        "client,city,since\na,Aachen,2020-01-01\na,Berlin,2024-01-01\na,Zwickau,2031-01-01\nb,Bonn,2020-01-01\n"
        "b,Essen,2020-01-01\n\u00a0d,Köln,2020-01-01\n"
    )
    (tmp_path / "m.csv").write_text("mcc,name\n5411,Grocery\n5411,Bakery\n\ufeff5812,Restaurant\n")
    (tmp_path / "l.csv").write_text(
        "client,y,when\na,1,2024-06-01\n\tb,,2024-06-01\nd,7,2024-05-01 10:30:00\n#REF!,1,2024-06-01\n"
    )
    book = {"file": {"glob": str(tmp_path / "m.csv")}, "code": "mcc", "description": "name"}
    label = {"name": "y", "kind": "regression", "file": {"glob": "l.csv"}, "id": "client", "column": "y"}
    spec = spec_of(
        tmp_path,
        [{"glob": "e.csv"}],
        time={"column": "time", "zone": "Europe/Berlin"},
        fields=[{"name": "mcc", "dictionary": book}, {"name": "group", "column": "name"}],
        joins=[{"file": {"glob": "m.csv"}, "key": "mcc", "columns": ["name"], "conflicts": "last"}],
        clients=[{"file": {"glob": "c.csv"}, "id": "client", "attributes": {"city": "city"}, "valid_from": "since"}],
        labels=[label | {"between": [0, 5], "as_of": {"column": "when"}}],
    )
    events, _, counts = ingested(spark, spec)
    assert [events[one].group for one in "123"] == ["Grocery", "Restaurant", None]
    conflicts = {"clients.0": 1, "fields.0.dictionary": 1, "joins.0": 1}
    assert counts.choices == {f"{name} conflicting keys": count for name, count in conflicts.items()}
    known = dictionaries(spark, spec)
    assert known is not None
    assert {tuple(row) for row in known.collect()} == {("mcc", "5812", "Restaurant")}
    schema = ingest_events(spark, spec).events.schema
    firsts = first_events(spark.createDataFrame(list(events.values()), schema))
    found = {row.client_id: row.city for row in client_attributes(spark, spec, firsts).collect()}
    assert found == {"a": "Berlin", "b": None, "d": "Köln"}
    labelled = labels_of(spark, spec, firsts)
    rows = labelled.labels.selectExpr("client_id", "label", "cast(as_of as string) t").collect()
    assert [tuple(row) for row in rows] == [("a", 1.0, "2024-05-31 22:00:00")]
    of_labels = labelled.counts()
    assert (of_labels.rows, of_labels.out, of_labels.quarantined, of_labels.duplicates) == (4, 1, 3, 0)
    assert sorted(row.reason for row in labelled.quarantine.collect()) == ["damaged_id", "label_outside", "no_label"]


def test_damaged_values_and_attributes_are_named(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, row = HEAD.encode(), f";c;{WHEN};5;1;".encode()
    lines = [b"1" + row + b"caf\xe9", b'2;"c;\xff";' + WHEN.encode() + b";5;1;x\r", b"3" + row + "b\x85a\x80d".encode(),
             b"4" + row + b"n\0l", b"5" + row + b"x"]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"\n".join([head, *lines]))
    json_row = f'"client": "c", "time": "{WHEN}", "amount": 1, "mcc": "1", "note": "'.encode()
    (tmp_path / "a.json").write_bytes(b'{"id": 6, ' + json_row + b'caf\xe9"}\n{"id": 7, ' + json_row + b'\xc2\x80"}')
    table = {"id": ["8"], "client": ["c"], "time": [WHEN], "amount": ["1"], "mcc": [b"caf\xe9"], "note": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    clients = [b"client,city,since", b"c,Bonn,2020-01-01", b"c,Essen,", b"c,Ulm,2024-13-01", b"c,K\xf6ln,2024-01-01",
               b"c,Mainz,2019-05"]  # fmt: skip
    (tmp_path / "c.csv").write_bytes(b"\n".join(clients))
    (tmp_path / "l.csv").write_bytes(b"client,y\nc,1\nc,\xb2")
    one = {"file": {"glob": "c.csv"}, "id": "client", "attributes": {"city": "city"}, "valid_from": "since"}
    label = {"name": "y", "kind": "regression", "file": {"glob": "l.csv"}, "id": "client", "column": "y"}
    files = [{"glob": "a.csv"}, {"glob": "a.json", "format": "json"}, {"glob": "a.parquet", "format": "parquet"}]
    spec = spec_of(tmp_path, files, clients=[one], labels=[label])
    events, quarantine, _ = ingested(spark, spec)
    assert set(events) == {"5"}
    assert sorted((row.reason, row.detail) for row in quarantine) == [
        ("bad_utf8", "client: c;\ufffd"),
        ("bad_utf8", "mcc: caf\ufffd"),
        ("bad_utf8", "note: caf\ufffd"),
        ("bad_utf8", "note: caf\ufffd"),
        ("control_sign", "note: b\x85a\x80d"),
        ("control_sign", "note: \x80"),
        ("nul_byte", "note: n\0l"),
    ]
    damaged = damaged_attributes(spark, spec)
    assert damaged is not None
    assert sorted((row.reason, row.detail) for row in damaged.collect()) == [
        ("bad_time", "since: 2019-05"),
        ("bad_time", "since: 2024-13-01"),
        ("bad_time", "since: absent"),
        ("bad_utf8", "city: K\ufffdln"),
    ]
    firsts = spark.createDataFrame([("c", dt.datetime(2000, 1, 1))], "client_id string, first_event_time timestamp")
    assert [row.city for row in client_attributes(spark, spec, firsts).collect()] == ["Bonn"]
    assert [tuple(row) for row in labels_of(spark, spec, firsts).quarantine.select("reason", "detail").collect()] == [
        ("bad_utf8", "task y: y: \ufffd")
    ]
    monkeypatch.setenv("LEDGERLM_PSEUDONYM_KEY", "secret")
    told = damaged_attributes(spark, spec.model_copy(update={"pseudonymise": PseudonymSpec()}))
    assert told is not None
    assert {(row.detail, len(row.payload)) for row in told.collect()} == {(None, 64)}


class Dialects:
    """Random rows in random dialects, and what must come of each."""

    def __init__(self, chance: random.Random) -> None:
        self.random = chance
        self.serial = 0

    def amount(self, file: Mapping[str, Any]) -> tuple[str, Decimal | None]:
        value = Decimal(self.random.randrange(-(10**9), 10**9)).scaleb(-self.random.randrange(5))
        text = f"{abs(value):,f}" if file["thousands"] else f"{abs(value):f}"
        text = text.translate(str.maketrans({",": file["thousands"], ".": file["decimal"]}))
        if self.random.random() < 0.1:
            return text + self.random.choice(
                ["00000" + "1" * 5 if file["decimal"] in text else file["decimal"] + "00001", "x", file["decimal"] * 2]
            ), None
        minus = self.random.choice(["-", "\u2212"]) if file["encoding"].startswith("utf") else "-"
        return (minus if value < 0 else "") + text, value

    def note(self, separator: str, quote: str) -> str:
        signs = ["a", "Ä", " b", "c ", separator, "'", "5", "€"] + ([quote, "\n", "\r\n", quote * 2] if quote else [])
        text = "".join(self.random.choice(signs) for _ in range(self.random.randrange(12)))
        return (text if quote else text.replace(separator, "")).strip()

    def file(self, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Decimal | None, str | None]]]:
        file: dict[str, Any] = {
            "glob": f"{self.serial}.csv",
            "separator": self.random.choice([";", "|", "\t"]),
            "quote": self.random.choice(['"', "'", ""]),
            "decimal": self.random.choice([".", ","]),
            "encoding": self.random.choice(["utf-8", "windows-1252", "utf-16", "iso-8859-15"]),
        }
        file["thousands"] = self.random.choice(["", "." if file["decimal"] == "," else ",", " "])
        names = ["id", "client", "time", "amount", "mcc", "note"]
        self.random.shuffle(names)
        expected: dict[str, tuple[Decimal | None, str | None]] = {}
        records = [[self.random.choice([name, name.upper()]) for name in names]]
        for _ in range(40):
            self.serial += 1
            amount, value = self.amount(file)
            note = self.note(file["separator"], file["quote"])
            row = {"id": f"r{self.serial}", "client": "c", "time": WHEN, "amount": amount, "mcc": "1", "note": note}
            records.append([row[name] for name in names])
            expected[row["id"]] = (value, note or None) if value is not None else (None, None)
        end = self.random.choice(["\n", "\r\n"])
        text = "".join(file["separator"].join(self.quoted(part, file) for part in row) + end for row in records)
        above = self.random.choice(["", f"Konto{file['separator']}12{end}{end}"])
        (folder / file["glob"]).write_bytes((above + text).encode(file["encoding"]))
        return file, expected

    def quoted(self, part: str, file: Mapping[str, Any]) -> str:
        sign: str = file["quote"]
        must = any(one in part for one in (file["separator"], "\n", "\r")) or (sign and sign in part)
        if sign and (must or self.random.random() < 0.3):
            return sign + part.replace(sign, sign * 2) + sign
        return part


Values = dict[str, tuple[Decimal | None, str | None]]


def read_and_written(spark: SparkSession, folder: Path, seeds: list[int]) -> tuple[Values, Values]:
    """Makes a file from each seed: the amounts and notes that are read of all, and those that were written."""
    expected: Values = {}
    files, serial = [], 0
    for seed in seeds:
        made = Dialects(random.Random(seed))
        made.serial = serial
        file, rows = made.file(folder)
        serial = made.serial
        files.append(file)
        expected |= rows
    events, quarantine, counts = ingested(spark, spec_of(folder, files, mask=[]))
    assert counts.rows_in == len(expected) == counts.rows_out + counts.quarantined
    assert {row.reason for row in quarantine} <= {"bad_amount"}
    good = {name: row for name, row in expected.items() if row[0] is not None}
    return {name: (row.amount, row.note) for name, row in events.items()}, good


def test_rows_in_other_dialects_are_read_exactly_or_set_aside(spark: SparkSession, tmp_path: Path) -> None:
    read, written = read_and_written(spark, tmp_path, [*range(6)])
    assert read == written


@pytest.mark.slow
@settings(
    max_examples=10,  # each is six files and three Spark jobs
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6, unique=True))
def test_random_rows_in_random_dialects_are_read_exactly_or_set_aside(
    spark: SparkSession, tmp_path: Path, seeds: list[int]
) -> None:
    """Each file is made from a seed of its own, so that a failure shrinks to small ones."""
    read, written = read_and_written(spark, Path(tempfile.mkdtemp(dir=tmp_path)), seeds)
    assert read == written


def test_json_of_random_texts_is_read_exactly(spark: SparkSession, tmp_path: Path) -> None:
    chance = random.Random(3)
    signs = ['"', "\\", "\n", "\t", "a", "é", "😀", "{", "}", ",", "/"]
    notes = ["x" + "".join(chance.choice(signs) for _ in range(8)) + "x" for _ in range(60)]
    rows = [
        {"id": n, "client": "c", "time": WHEN, "amount": n / 8, "mcc": "1", "note": note}
        for n, note in enumerate(notes)
    ]
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(rows)))
    events, _, _ = ingested(spark, spec_of(tmp_path, [{"glob": "a.json", "format": "json"}], mask=[]))
    assert {int(name): row.note for name, row in events.items()} == dict(enumerate(notes))
    assert all(row.amount == Decimal(int(name)) / 8 for name, row in events.items())
