"""Ingest: damaged files lose nothing, and every form of file, time, number and label is read as its spec says."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.errors import DataError, SpecError
from ledgerlm.events.ingest import IngestCounts, damaged_attributes, dictionaries, ingest_events, unknown_codes
from ledgerlm.events.labels import client_attributes, first_events, labels_of
from ledgerlm.events.masks import masked
from ledgerlm.events.quality import pseudonymised, without_client
from ledgerlm.events.spec import DataSetSpec, EventIdSpec, Mask, PseudonymSpec, SplitSpec
from ledgerlm.events.spec_times import TimeSpec
from ledgerlm.events.splits import with_split
from ledgerlm.events.times import time_of

EVENTS: dict[str, Any] = {"glob": "events.csv", "separator": ";"}
RANGE = {"earliest": "2000-01-01", "far_future": "2030-01-01"}
FIELDS: list[dict[str, Any]] = [
    {"name": "mcc"},
    {"name": "balance", "kind": "numeric"},
    {"name": "note", "kind": "text"},
]


@pytest.fixture(scope="module", autouse=True)
def utc() -> Iterator[None]:
    """Python shows collected times in the zone of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def spec_of(folder: Path, files: Sequence[Mapping[str, Any]] = (EVENTS,), **keys: Any) -> DataSetSpec:
    content: dict[str, Any] = {
        "name": "small",
        "source": {"path": str(folder), "files": list(files)},
        "client": "client",
        "time": {
            "column": "time",
            "format": "yyyy-MM-dd HH:mm:ss",
            "earliest": "2000-01-01",
            "far_future": "2030-01-01",
        },
        "event_id": {"columns": ["id"]},
        "amount": {"column": "amount", "currency": "EUR"},
        "fields": FIELDS,
        "as_of": "2026-01-01",
    }
    return DataSetSpec.model_validate(content | keys)


def ingested(spark: SparkSession, spec: DataSetSpec) -> tuple[list[Row], list[Row], IngestCounts]:
    """Events by client and place, quarantine, and counts that add up."""
    result = ingest_events(spark, spec)
    events = result.events.collect()
    counts = result.counts()
    counts.check("test")
    quarantine = result.quarantine.collect()
    assert len(events) == counts.rows_out
    assert len(quarantine) == counts.quarantined
    return sorted(events, key=lambda row: (row.client_id, row.event_time, row.event_seq)), quarantine, counts


HEADER = b"id;client;time;amount;mcc;balance;note\r\n"
GOOD = [
    b"1;anna;2024-05-01 10:00:00;-12.50;5411;100;bread\r\n",
    b'2;anna;2024-05-01 10:00:00;7;5411;;"a ""quoted""; note"\r\n',
    b"3;bert;2024-05-02 23:59:60;;;;\n",
]
DAMAGE = [
    ("nul_byte", b"4;an\x00na;2024-05-01 10:00:00;1;5411;1;x\n"),
    ("bad_utf8", b"5;anna;2024-05-01 10:00:00;1;5411;1;caf\xe9\n"),
    ("unclosed_quote", b'6;anna;2024-05-01 10:00:00;1;5411;1;"open\n'),
    ("wrong_column_count", b"7;anna;2024-05-01 10:00:00;1\n"),
    ("wrong_column_count", b"8;anna;2024-05-01 10:00:00;1;5411;1;x;y\n"),
    ("wrong_column_count", b";" * 30_000 + b"\n"),
    ("no_client", b"9; ;2024-05-01 10:00:00;1;5411;1;x\n"),
    ("no_event_id", b";anna;2024-05-01 10:00:00;1;5411;1;x\n"),
    ("bad_time", b"10;anna;yesterday;1;5411;1;x\n"),
    ("bad_time", b"11;anna;;1;5411;1;x\n"),
    ("bad_time", b"12;anna;2024-02-30 10:00:00;1;5411;1;x\n"),
    ("time_in_far_future", b"13;anna;2999-12-31 00:00:00;1;5411;1;x\n"),
    ("time_before_range", b"14;anna;1970-01-01 00:00:00;1;5411;1;x\n"),
    ("bad_amount", b"15;anna;2024-05-01 10:00:00;12,50;5411;1;x\n"),
    ("bad_amount", b"16;anna;2024-05-01 10:00:00;1e30;5411;1;x\n"),
    ("bad_number", b"17;anna;2024-05-01 10:00:00;1;5411;3d;x\n"),
    ("bad_number", b"18;anna;2024-05-01 10:00:00;1;5411;NaN;x\n"),
    ("wrong_column_count", b"\x07\x1b garbage \x7f\n"),
]


@pytest.fixture(scope="module")
def dirty(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], list[Row], IngestCounts]:
    folder = tmp_path_factory.mktemp("dirty")
    blank, repeated = b"\n   \n", GOOD[0]
    lines = [b"\xef\xbb\xbf", HEADER, *GOOD, blank, HEADER, *(line for _, line in DAMAGE), repeated]
    (folder / "events.csv").write_bytes(b"".join(lines) + b"19;anna;2024-05-01 10:0")
    return ingested(spark, spec_of(folder))


def test_dirty_file_loses_nothing(dirty: tuple[list[Row], list[Row], IngestCounts]) -> None:
    events, quarantine, counts = dirty
    assert counts.rows_in == len(GOOD) + len(DAMAGE) + 2
    assert counts.duplicates == 1
    assert [event.event_id for event in events] == ["1", "2", "3"]
    reasons = sorted([*(reason for reason, _ in DAMAGE), "wrong_column_count"])
    assert sorted(row.reason for row in quarantine) == reasons
    assert {row.source_file.split("/")[-1] for row in quarantine} == {"events.csv"}


def test_quarantine_keeps_the_raw_row_and_says_what_is_wrong(
    dirty: tuple[list[Row], list[Row], IngestCounts],
) -> None:
    rows = dirty[1]
    payloads = {row.payload for row in rows}
    for _, line in DAMAGE:
        try:
            assert line.decode().strip("\r\n") in payloads
        except UnicodeDecodeError:
            assert "base64:" + base64.b64encode(line.strip(b"\n")).decode() in payloads
    details = {row.detail for row in rows if row.reason == "bad_time"}
    assert details == {"time: yesterday", "time: absent", "time: 2024-02-30 10:00:00"}


def test_values_of_good_rows(dirty: tuple[list[Row], list[Row], IngestCounts]) -> None:
    first, second, third = dirty[0]
    assert (first.client_id, str(first.amount), first.currency) == ("anna", "-12.5000", "EUR")
    assert (first.event_seq, second.event_seq) == (0, 1)
    assert second.note == 'a "quoted"; note'
    assert (second.balance, third.mcc, third.amount) == (None, None, None)
    assert third.event_time == dt.datetime(2024, 5, 2, 23, 59, 59)
    assert dirty[2].first == "2024-05-01 10:00:00"
    assert dirty[2].absent == {"mcc": 1, "balance": 2, "note": 1}


def test_json_lines(spark: SparkSession, tmp_path: Path) -> None:
    good = {"id": 7, "client": "anna", "time": "2024-05-01T10:00:00Z", "amount": 1.5, "mcc": "0742", "balance": 2}
    lines = [
        json.dumps(good | {"note": "x"}),
        json.dumps(good | {"id": 8, "note": {"deep": [1]}}),
        '{"id": 9, "client": ',
        '{"id": 10, "client": "anna"} trailing',
        '{"id": 11}{"id": 12}',
        '[{"id": 13}]',
        "5",
        '{"id": 14, "client": null, "time": "2024-05-01 10:00:00"}',
        "[" * 5000,
    ]
    (tmp_path / "events.json").write_text("\n".join(lines), encoding="utf-8")
    spec = spec_of(tmp_path, [{"glob": "*.json", "format": "json"}], time={"column": "time"})
    events, quarantine, _ = ingested(spark, spec)
    assert [(event.event_id, event.mcc, event.note) for event in events] == [
        ("7", "0742", "x"),
        ("8", "0742", '{"deep":[1]}'),
    ]
    assert sorted(row.reason for row in quarantine) == ["bad_json"] * 6 + ["no_client"]


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_typed_files(spark: SparkSession, tmp_path: Path, form: str) -> None:
    schema = "id bigint, client double, time timestamp, amount decimal(9,2), mcc double, balance double, note string"
    when = dt.datetime(2024, 5, 1, 10)
    rows = [
        (1, 100000000001.0, when, None, 5411.0, 1.5, "x"),
        (2, float("nan"), when, None, None, None, None),
        (3, 7.0, None, None, None, None, "lost"),
    ]
    spark.createDataFrame(rows, schema).write.format(form).save(str(tmp_path / "events"))
    events, quarantine, _ = ingested(spark, spec_of(tmp_path, [{"glob": "events", "format": form}]))
    assert [(event.client_id, event.mcc, event.event_time) for event in events] == [("100000000001", "5411", when)]
    assert {row.reason for row in quarantine} == {"no_client", "bad_time"}
    lost = next(row for row in quarantine if row.reason == "bad_time")
    assert json.loads(lost.payload) == {"id": 3, "client": 7.0, "note": "lost"}


def test_files_of_different_form_are_one_data_set(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("1|anna|2024-05-01 10:00:00|1.234,50|Käse|1 000,5|x\n".encode("iso-8859-1"))
    (tmp_path / "b.csv").write_text("nr,who,time,amount,code,balance\n2,anna,2024-05-01 10:00:00,3,cheese,4\n")
    columns = ["id", "client", "time", "amount", "mcc", "balance", "note"]
    one = {"glob": "a.csv", "separator": "|", "header": False, "columns": columns, "encoding": "iso-8859-1"}
    one |= {"decimal": ",", "thousands": ".", "values": {"mcc": {"Käse": "cheese"}}}
    other = {"glob": "b.csv", "rename": {"id": "nr", "client": "who", "mcc": "code"}, "constants": {"note": "from b"}}
    fields = [*FIELDS[:1], FIELDS[2]]
    events, _, _ = ingested(spark, spec_of(tmp_path, [one, other], fields=fields))
    assert [(event.mcc, str(event.amount), event.note) for event in events] == [
        ("cheese", "1234.5000", "x"),
        ("cheese", "3.0000", "from b"),
    ]


def test_missing_column_names_the_nearest_and_the_key(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(HEADER.replace(b"amount", b"ammount"))
    with pytest.raises(SpecError, match=r"amount\.column: .*\.csv has no column 'amount': did you mean 'ammount'"):
        ingest_events(spark, spec_of(tmp_path))
    with pytest.raises(SpecError, match=r"source\.path: cannot read .*nothing\.csv"):
        ingest_events(spark, spec_of(tmp_path, [EVENTS | {"glob": "nothing.csv"}]))


def test_header_in_another_order_inside_a_file_stops_with_the_remedy(spark: SparkSession, tmp_path: Path) -> None:
    other = b"ID;client;time;balance;mcc;amount;note\n2;a;2024-05-01 10:00:00;1;2;3;x\n"
    (tmp_path / "events.csv").write_bytes(HEADER + GOOD[0] * 3 + other)
    result = ingest_events(spark, spec_of(tmp_path))
    result.events.collect()
    with pytest.raises(DataError, match="header in another order"):
        result.counts().check("small")


def test_file_without_a_good_row(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(HEADER + DAMAGE[8][1] * 3)
    events, _, counts = ingested(spark, spec_of(tmp_path))
    assert events == []
    assert (counts.rows_in, counts.first) == (3, None)


def test_hashed_ids_are_stable_and_count_occurrences(spark: SparkSession, tmp_path: Path) -> None:
    line = b"1;anna;2024-05-01 10:00:00;1;5411;1;x\n"
    (tmp_path / "events.csv").write_bytes(HEADER + line + line + GOOD[2])
    events, _, counts = ingested(spark, spec_of(tmp_path, event_id={}))
    named = dict(zip(HEADER.decode().strip().split(";"), line.decode().strip().split(";"), strict=True))
    told = json.dumps(dict(sorted(named.items())), separators=(",", ":"))
    digest = hashlib.sha256(told.encode()).hexdigest()[:32]
    assert [event.event_id for event in events[:2]] == [f"{digest}-1", f"{digest}-2"]
    assert counts.duplicates == 0
    _, _, dropped = ingested(spark, spec_of(tmp_path, event_id={"repeats": "drop"}))
    assert (dropped.rows_out, dropped.duplicates) == (2, 1)


def test_result_does_not_depend_on_partitions(spark: SparkSession, tmp_path: Path) -> None:
    lines = [f"{n % 70};c{n % 7};2024-05-0{1 + n % 3} 10:00:00;{n};m{n % 5};{n};x\n" for n in range(200)]
    (tmp_path / "events.csv").write_bytes(HEADER + "".join(lines).encode())
    spec = spec_of(tmp_path)
    one, many = (sorted(ingest_events(spark, spec, parts).events.collect()) for parts in (1, 5))
    assert one == many
    seen = {(event.client_id, event.event_time, event.event_seq) for event in one}
    assert len(seen) == len(one) == len({(event.client_id, event.event_id) for event in one})


def test_order_column_and_sign(spark: SparkSession, tmp_path: Path) -> None:
    rows = [("100", "debit"), ("99", "credit"), ("7", "cash")]
    text = "id;client;time;amount;mcc;balance;note\n" + "".join(f"{i};a;2024-05-01 10:00:00;5;{t};;\n" for i, t in rows)
    (tmp_path / "events.csv").write_text(text)
    sign = {"column": "mcc", "negative": ["debit", "cash"], "positive": ["credit"]}
    ordered = {"column": "time", "order": "id"}
    events, _, _ = ingested(spark, spec_of(tmp_path, amount={"column": "amount", "sign": sign}, time=ordered))
    assert [(event.event_id, int(event.amount)) for event in events] == [("7", -5), ("99", 5), ("100", -5)]


def test_join_adds_columns_once(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(HEADER + GOOD[0] + GOOD[1].replace(b"5411", b"9999"))
    (tmp_path / "codes.csv").write_text('code,group\n5411,food\n5411,food\n1,"open\n')
    join = {"file": {"glob": "codes.csv", "rename": {"mcc": "code"}}, "key": "mcc", "columns": ["group"]}
    spec = spec_of(tmp_path, joins=[join], fields=[{"name": "mcc"}, {"name": "group"}])
    events, _, counts = ingested(spark, spec)
    assert [(event.mcc, event.group) for event in events] == [("5411", "food"), ("9999", None)]
    assert counts.unmatched == {"mcc": 1}
    damaged = damaged_attributes(spark, spec)
    assert damaged is not None
    assert [(row.reason, row.payload) for row in damaged.collect()] == [("unclosed_quote", '1,"open')]


def test_dictionaries_and_unknown_codes(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "types.csv").write_text("code;text\n1010;POS\n1010;Purchase\n;nothing\n")
    (tmp_path / "events.csv").write_bytes(HEADER)
    book = {
        "file": {"glob": "types.csv", "separator": ";"},
        "code": "code",
        "description": "text",
        "conflicts": "first",
    }
    fields = [
        {"name": "mcc", "dictionary": {"5411": "Grocery"}},
        {"name": "kind", "column": "note", "dictionary": book},
    ]
    spec = spec_of(tmp_path, fields=fields)
    known = dictionaries(spark, spec)
    assert known is not None
    assert {tuple(row) for row in known.collect()} == {("mcc", "5411", "Grocery"), ("kind", "1010", "POS")}
    events = spark.createDataFrame([("5411", "1010"), ("9", None), ("9", "x")], "mcc string, kind string")
    assert [tuple(row) for row in unknown_codes(events, known, spec).collect()] == [("mcc", "9", 2), ("kind", "x", 1)]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ({"format": "yyMMdd"}, "930101", dt.datetime(1993, 1, 1)),
        ({"format": "yyMMdd"}, "690101", dt.datetime(2069, 1, 1)),
        ({"format": "yyMMdd"}, "931301", None),
        ({"format": "days_clock", "origin": "2015-01-01"}, "1 10:23:60", dt.datetime(2015, 1, 2, 10, 23, 59)),
        ({"format": "days_clock", "origin": "2015-01-01"}, "1 25:00:00", None),
        ({"format": "days", "origin": "2015-01-01"}, "1.5", dt.datetime(2015, 1, 2, 12)),
        ({"format": "ddMMMyy:HH:mm:ss"}, "21OCT17:13:05:60", dt.datetime(2017, 10, 21, 13, 5, 59)),
        ({"format": "epoch"}, "1500000000", dt.datetime(2017, 7, 14, 2, 40)),
        ({"format": "epoch_ms"}, "1500000000500", dt.datetime(2017, 7, 14, 2, 40, 0, 500000)),
        ({"format": "epoch"}, "1e300", None),
        ({}, "2017-07-14T02:40:00+02:00", dt.datetime(2017, 7, 14, 0, 40)),
        ({"zone": "Europe/Moscow"}, "2017-07-14 03:00:00", dt.datetime(2017, 7, 14)),
        ({"zone": "Europe/Moscow"}, "2017-07-14 03:00:00Z", dt.datetime(2017, 7, 14, 3)),
        ({}, "12:30", None),
        ({}, "93010", None),
    ],
)
def test_odd_times(spark: SparkSession, form: dict[str, Any], text: str, expected: dt.datetime | None) -> None:
    spec = TimeSpec.model_validate({"column": "t"} | form)
    row = spark.range(1).select(time_of(F.lit(text), T.StringType(), spec).cast("timestamp_ntz").alias("t")).first()
    assert row is not None
    assert row["t"] == expected


def test_pseudonyms_are_hmac_sha256_and_the_key_stands_in_no_plan(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("secret", "k" * 100):
        monkeypatch.setenv("TEST_KEY", key)
        frame = pseudonymised(spark.createDataFrame([("anna",), (None,)], "c string"), ["c"], "TEST_KEY")
        assert [row.c for row in frame.collect()] == [hmac.new(key.encode(), b"anna", "sha256").hexdigest(), None]
        plan = frame._jdf.queryExecution().toString()
        assert bytes(byte ^ 0x36 for byte in key.encode()[:6]).hex().upper() not in plan.upper()
    with pytest.raises(SpecError, match="UNSET_KEY is not set"):
        pseudonymised(spark.range(1), ["id"], "UNSET_KEY")


def test_pseudonyms_replace_ids_everywhere_and_payloads_can_be_left_out(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "secret")
    (tmp_path / "events.csv").write_bytes(HEADER + GOOD[0] + DAMAGE[8][1] + DAMAGE[8][1].replace(b"10;", b"11;"))
    (tmp_path / "labels.csv").write_text("client,flag,city\nanna,1,Brno\n")
    file = {"glob": "labels.csv"}
    label = {"name": "churn", "kind": "binary", "file": file, "id": "client", "column": "flag"}
    spec = spec_of(
        tmp_path,
        pseudonymise={"key_env": "TEST_KEY", "fields": ["mcc"]},
        labels=[label],
        clients=[{"file": file, "id": "client", "attributes": {"city": "city"}}],
    )
    anna, mcc = (hmac.new(b"secret", text, "sha256").hexdigest() for text in (b"anna", b"5411"))
    result = ingest_events(spark, spec)
    events = result.events.cache()
    assert [(row.client_id, row.mcc) for row in events.collect()] == [(anna, mcc)]
    raw = [line.strip() for line in (tmp_path / "events.csv").read_bytes().splitlines()[2:]]
    hidden = sorted(hmac.new(b"secret", line, "sha256").hexdigest() for line in raw)
    assert len(set(hidden)) == 2, "two bad rows are two, though neither can be read"
    assert sorted((row.payload, row.detail) for row in result.quarantine.collect()) == [(one, None) for one in hidden]
    shown = spec.model_copy(update={"pseudonymise": PseudonymSpec(key_env="TEST_KEY", keep_payload=True)})
    again = ingest_events(spark, shown)
    assert len(again.events.collect()) == 1
    assert {row.payload.encode() for row in again.quarantine.collect()} == set(raw)
    firsts = first_events(events)
    assert [row.client_id for row in labels_of(spark, spec, firsts).labels.collect()] == [anna]
    assert [tuple(row) for row in client_attributes(spark, spec, firsts).collect()] == [(anna, "Brno")]
    events.unpersist()
    named = spec.model_copy(update={"event_id": EventIdSpec(columns=("client", "mcc"))})
    [row] = ingest_events(spark, named).events.collect()
    assert row.event_id == hmac.new(b"secret", b"anna|5411", "sha256").hexdigest(), "an id tells no client in the clear"


def test_texts_do_not_repeat_the_client_that_became_a_pseudonym(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGERLM_PSEUDONYM_KEY", "secret")
    texts = {
        "00417": "fee of 00417, (00417)/100417 00417x",
        "a.b+1": "a.b+1 aXb+1",
        "7": "7 days",
        r"x\E(": r"for x\E( now",
    }
    rows = spark.createDataFrame([*texts.items()], "client string, note string")
    found = rows.select("client", without_client(F.col("note"), F.col("client")).alias("note"))
    assert {row.client: row.note for row in found.collect()} == {
        "00417": "fee of [client], ([client])/100417 00417x",
        "a.b+1": "[client] aXb+1",
        "7": "7 days",
        r"x\E(": "for [client] now",
    }
    (tmp_path / "events.csv").write_bytes(HEADER + GOOD[0].replace(b"bread", b"bread of anna"))
    [row] = ingest_events(spark, spec_of(tmp_path, pseudonymise={})).events.collect()
    assert row.note == "bread of [client]"


MASKED = {
    "to DE89 3704 0044 0532 0130 00 today": "to [iban] today",
    "iban GB82WEST12345698765432.": "iban [iban].",
    "iban gb82west12345698765432, de89.3704.0044.0532.0130.00": "iban [iban], [iban]",
    "IBANDE89370400440532013000REF": "IBAN[iban]REF",
    "NO93 8601 1117 947 / MT84 MALT 0110 0001 2345 MTLC AST0 01S": "[iban] / [iban]",
    "card 4111-1111 1111 1111 ok": "card [card] ok",
    "VISA4111111111111111 2024": "VISA[card] 2024",
    "12 5500.0000.0000.0004": "12 [card]",
    "3782 822463 10005, 6011000990139424": "[card], [card]",
    "mail a.b+c@mail.example.com!": "mail [email]!",
    "a@b.example%d@e.example": "[email][email]",
    # A word of a million letters ends in time: no mask looks at it again from each of its letters.
    "x1" * 500_000 + " a@b.example": "x1" * 500_000 + " [email]",
    "call +49 170 1234567 now": "call [phone] now",
    "0049 30 12345": "[phone]",
    "NETFLIX 402-935-7733": "NETFLIX [phone]",
    "Tel. 030 123456": "Tel. [phone]",
    "rent for Mr. Smith in May": "rent for Mr. [name] in May",
    "Miete Frau Müller-Lüdenscheidt, Mai": "Miete Frau [name], Mai",
    "MME DUPONT": "MME [name]",
    "Dr. Anna Weber consultation": "Dr. [name] consultation",
    "Prof. J. Novak": "Prof. [name]",
    "Transfer from ANNA MARIA SCHMIDT": "Transfer from [name]",
    "transfer to John O'Neil ref 12": "transfer to [name] ref 12",
    "Überweisung an Erika Mustermann": "Überweisung an [name]",
    "Перевод от Иван Петров": "Перевод от [name]",
    "money received today from Li Wei, thanks": "money received today from [name], thanks",
    "from Max Mustermann": "from [name]",
    "lunch with grandma zelda": "lunch with [name]",
    # What a document would tell without the sign that hides it.
    "41111111\u200b11111111": "[card]",
    "４１１１１１１１１１１１１１１１": "[card]",
    "4111|1111\u202f1111\n1111  x\u200b": "[card] x",
    "DE89\u200d3704\u00ad0044 0532\t0130 00": "[iban]",
    "mail a.b\u2060@mail.example.com": "mail [email]",
    "+49\u2007170\u200e 1234567": "[phone]",
    "Mr\u00a0\u200bSmith": "Mr [name]",
    "٤١١١ ١١١١ ١١١١ ١١١١": "[card]",
    "mail ü.möller@bücher.example, anna@почта.example": "mail [email], [email]",
    "8 916 123 45 67, 8 (916) 123-45-67, 8(916)1234567": "[phone], [phone], [phone]",
    "0170 1234567 / 0151 123 4567": "[phone] / [phone]",
    "06 12 34 56 78": "[phone]",
}
UNTOUCHED = [
    "DE12 REWE MARKT BERLIN MITTE 10", "DE89370400440532013001", "ref 12345678901234567", "4111 1111 1111 1112",
    "GB29 RETAIL PARK NORTH EAST 4",
    "order 12345678 of 2024", "invoice 2024-01-15 / 4711", "+3d 12.50", "800-1000 pieces",
    "Mr Price Clothing", "DR. OETKER PIZZA", "Dr Pepper", "Mrs. Fields Cookies", "Miss Selfridge",
    "TO GO CAFE", "FROM THE FARM", "Transfer to Savings Account", "transfer from checking",
    "Transfer to Acme Trading Ltd", "MS Office 365", "SNACKS FROM STOCK", "Farm to Table", "H&M", "Tesco Express",
    "Transformer House", "8 900 pieces", "89161234567", "ref 0170 123", "06.12.2024", "05 11 24",
    "at 10:00 @home", "Grandma Zeldas", "a\u200bb １２  |\tc", "4111\u200b1111",
]  # fmt: skip


def test_what_names_a_person_is_masked_and_merchants_are_not(spark: SparkSession) -> None:
    kinds: list[Mask] = ["iban", "card", "email", "phone", "name"]
    rows = spark.createDataFrame([(text,) for text in (*MASKED, *UNTOUCHED)], "text string")
    found = rows.select("text", masked(F.col("text"), kinds, ["grandma Zelda"]).alias("masked")).collect()
    assert {row["text"]: row["masked"] for row in found} == {**MASKED, **{text: text for text in UNTOUCHED}}


LABELS = """client,when,status,age
anna,240601,A,34
anna,240601,A,34
bert,240601,B,35
bert,240601,C,35
carl,240401,A,61
dora,240601,A,20
,240601,A,20
anna,249999,D,20
bert,240602,X,abc
bert,240603,,
"""


def test_labels(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(LABELS)
    base = {"file": {"glob": "labels.csv"}, "id": "client", "as_of": {"column": "when", "format": "yyMMdd"}}
    bad = base | {"name": "bad", "kind": "binary", "column": "status", "values": {"A": 0, "C": 0, "B": 1, "D": 1}}
    age = base | {"name": "age", "kind": "multiclass", "column": "age", "thresholds": [35, 60]}
    age |= {"classes": ["young", "middle", "old"], "only": {"status": ["A", "B"]}}
    spec = spec_of(tmp_path, labels=[bad | {"classes": ["good", "bad"]}, age])
    when = dt.datetime(2024, 5, 1)
    firsts = spark.createDataFrame(
        [("anna", when), ("bert", when), ("carl", when)], "client_id string, first_event_time timestamp"
    )
    result = labels_of(spark, spec, firsts)
    found = {(row.client_id, row.task, row.label, row.label_text) for row in result.labels.collect()}
    assert found == {
        ("anna", "bad", 0.0, "good"),
        ("anna", "age", 0.0, "young"),
        ("bert", "age", 1.0, "middle"),
    }
    counts = result.counts()
    assert (counts.rows, counts.out, counts.quarantined, counts.duplicates) == (16, 3, 11, 2)
    assert counts.left_out == 4, "rows that `only` passes over are counted"
    reasons = sorted((row.reason, row.detail) for row in result.quarantine.where("detail IS NOT NULL").collect())
    assert reasons == [
        ("bad_label", "task bad: X"),
        ("bad_time", "task bad: when: 249999"),
        ("conflicting_label", "task bad: bad"),
        ("conflicting_label", "task bad: good"),
        ("label_without_history", "task age: carl"),
        ("label_without_history", "task age: dora"),
        ("label_without_history", "task bad: carl"),
        ("label_without_history", "task bad: dora"),
        ("no_client", "task age"),
        ("no_client", "task bad"),
        ("no_label", "task bad"),
    ]
    assert result.quarantine.where("detail IS NULL").isEmpty()


def test_split_rules(spark: SparkSession) -> None:
    clients = spark.range(3000).select(F.col("id").cast("string").alias("client_id"))
    labelled = clients.where("client_id % 2 = 0")

    def test_ids(**conf: Any) -> set[str]:
        marked = with_split(clients, labelled, SplitSpec.model_validate(conf))
        assert marked.count() == 3000
        return {row.client_id for row in marked.where("split = 'test'").collect()}

    shuffled = test_ids(rule="shuffle", share=0.1)
    assert len(shuffled) == 150
    assert shuffled == test_ids(rule="auto", share=0.1)
    hashed = test_ids(share=0.1)
    assert 110 < len(hashed) < 190
    assert hashed == test_ids(rule="auto", share=0.1, limit=100)
    # One client more moves no other.
    more = labelled.unionByName(spark.createDataFrame([("new",)], "client_id string"))
    marked = with_split(more, more, SplitSpec(share=0.1)).where("split = 'test' AND client_id != 'new'")
    assert {row.client_id for row in marked.collect()} == hashed
    assert hashed != test_ids(rule="hash", share=0.1, seed=7)
    assert all(int(one) % 2 == 0 for one in shuffled | hashed)
    with pytest.raises(DataError, match="at most 100 labelled"):
        test_ids(rule="shuffle", limit=100)
