"""Documents: exact texts, facts read back by parsers, nothing after `as_of`, newest events under a budget."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.lake import conform
from ledgerlm.lake.schemas import DOCUMENTS
from ledgerlm.text.check import check_documents
from ledgerlm.text.formats import FORMATS
from ledgerlm.text.serialize import DocumentConf, serialize

SPEC = DataSetSpec.model_validate(
    {
        "name": "small",
        "amount": {"column": "amount", "currency": "EUR"},
        "fields": [
            {"name": "mcc", "title": "category", "dictionary": {"5411": "Grocery Stores, Supermarkets"}},
            {"name": "store", "short": "s"},
            {"name": "note", "title": "note of the payer", "kind": "text"},
            {"name": "balance", "kind": "numeric", "short": "b"},
        ],
    }
)
AS_OF = dt.datetime(2017, 3, 1)
# client_id, event_id, event_time, event_seq, amount, mcc, store, note, balance; the table's order is not the time's.
ROWS = """
    ('c1', 'e3', timestamp'2017-01-10 08:05:00', 1L, 0, '5411', '309', ' ', double('nan')),
    ('c1', 'e1', timestamp'2017-01-07 19:30:00', 0L, 3.99, '5411', '309', 'Tom & "Ann" it''s 1 \\\\ 2', 0.47D),
    ('c1', 'e2', timestamp'2017-01-10 08:05:00', 0L, -120.5, '1234', null, 'line\\none | two <i>', null),
    ('c2', 'e1', timestamp'2017-02-28 23:59:59', 0L, 1.2345, null, '7', null, 1000000.5D),
    ('c2', 'e2', timestamp'2017-03-01 00:00:00', 0L, 99, '5411', '7', 'LEAK', 1D)
"""
LINES = [
    ["2017-01-07 19:30", 3.99, "Grocery Stores, Supermarkets", "309", 'Tom & "Ann" it\'s 1 \\ 2', 0.47],
    ["2017-01-10 08:05", -120.5, "code 1234", None, "line one two (i)", None],
    ["2017-01-10 08:05", 0.0, "Grocery Stores, Supermarkets", "309", None, None],
]
NAMES = ["time", "amount", "mcc", "store", "note", "balance"]


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    columns = "client_id, event_id, event_time, event_seq, amount, mcc, store, note, balance"
    rows = spark.sql(f"SELECT * FROM VALUES {ROWS} AS t({columns})")
    return rows.withColumn("amount", F.col("amount").cast("decimal(18,4)")).cache()


@pytest.fixture(scope="module")
def dictionaries(spark: SparkSession) -> DataFrame:
    rows = [("mcc", "5411", "Grocery Stores,\tSupermarkets"), ("type", "1234", "of another field")]
    return spark.createDataFrame(rows, "field string, code string, description string")


@pytest.fixture(scope="module")
def texts(events: DataFrame, dictionaries: DataFrame) -> dict[str, str]:
    """Format to the document of client c1."""

    def text(name: str) -> str:
        conf = DocumentConf.model_validate({"format": name})
        return str(rows_of(serialize(events, None, AS_OF, SPEC, conf, dictionaries=dictionaries))["c1"].text)

    return {name: text(name) for name in FORMATS}


def rows_of(documents: DataFrame) -> dict[str, Row]:
    """Client to document."""
    return {row.client_id: row for row in documents.collect()}


def one_client(spark: SparkSession, count: int, note: str = "''") -> DataFrame:
    """One client with an event an hour, their numbers as amounts."""
    return spark.range(count).selectExpr(
        "'c1' AS client_id",
        "concat('e', id) AS event_id",
        "timestamp_seconds(1483228800 + id * 3600) AS event_time",
        "0L AS event_seq",
        "CAST(id AS decimal(18,4)) AS amount",
        "'1' AS mcc",
        "'2' AS store",
        f"{note} AS note",
        "0D AS balance",
    )


def test_compact_text(texts: dict[str, str]) -> None:
    assert texts["compact"].split("\n") == [
        "days|weekday|hour|mcc|store|note|amount|balance",
        '+0d|Sat|19h|Grocery Stores, Supermarkets|s309|Tom & "Ann" it\'s 1 \\ 2|3.9|b0.47',
        "+3d|Tue|8h|code 1234|-|line one two (i)|-120|-",
        "+0d|Tue|8h|Grocery Stores, Supermarkets|s309|-|0|-",
    ]


def test_small_letters_where_the_case_is_lower(spark: SparkSession, dictionaries: DataFrame) -> None:
    """And a special token that only its case made harmless is made harmless."""
    rows = one_client(spark, 1, note="'Kč ÄPFEL <S> +1H'").withColumn("mcc", F.lit("5411"))
    conf = DocumentConf(case="lower")
    text = rows_of(serialize(rows, None, AS_OF, SPEC, conf, dictionaries=dictionaries))["c1"].text
    assert text.split("\n")[1] == "+0d|Sun|0h|grocery stores, supermarkets|s2|kč äpfel (s) +1h|0|b0"


def test_days_may_stand_last(events: DataFrame, dictionaries: DataFrame) -> None:
    """Then an event begins with what it is, before a reader knows when."""
    shown = {"fields": ("mcc", "amount", "days")}
    text = {
        name: rows_of(
            serialize(events, None, AS_OF, SPEC, DocumentConf(format=name, **shown), dictionaries=dictionaries)
        )["c1"].text
        for name in ("compact", "json")
    }
    assert text["compact"].split("\n") == [
        "mcc|amount|days",
        "Grocery Stores, Supermarkets|3.9|+0d",
        "code 1234|-120|+3d",
        "Grocery Stores, Supermarkets|0|+0d",
    ]
    assert [event["days"] for event in json.loads(text["json"])] == ["+0d", "+3d", "+0d"]


@pytest.mark.parametrize("fields", [("mcc", "pause"), ("pause", "mcc")])
def test_a_pause_is_told_in_the_unit_that_fits(spark: SparkSession, fields: tuple[str, ...]) -> None:
    pauses = {0: "0m", 59: "59m", 119: "1h", 2879: "47h", 2880: "2d", 5759: "3d"}  # minutes: what is told
    minutes = list(itertools.accumulate(pauses))
    times = F.timestamp_seconds(F.get(F.array(*map(F.lit, minutes)), F.col("amount").cast("int")) * 60 + 1483228800)
    rows = one_client(spark, len(pauses)).withColumn("event_time", times)
    text = rows_of(serialize(rows, None, AS_OF, SPEC, DocumentConf(fields=fields)))["c1"].text
    place = fields.index("pause")
    assert [line.split("|")[place] for line in text.split("\n")] == ["pause", *(f"+{one}" for one in pauses.values())]


def test_lines_text_is_that_of_llm4es_and_can_be_taken_apart(texts: dict[str, str]) -> None:
    lines = texts["lines"].split("\n")
    assert lines == [
        "time|amount (EUR)|category|store|note of the payer|balance",
        '2017-01-07 19:30, 3.99, Grocery Stores; Supermarkets, 309, Tom & "Ann" it\'s 1 \\ 2, 0.47',
        "2017-01-10 08:05, -120.50, code 1234, -, line one two (i), -",
        "2017-01-10 08:05, 0.00, Grocery Stores; Supermarkets, 309, -, -",
    ]
    assert {len(line.split(", ")) for line in lines[1:]} == {6}


def test_table_and_markdown_text(texts: dict[str, str]) -> None:
    assert texts["table"].split("\n")[1:3] == [
        '2017-01-07 19:30\t3.99\tGrocery Stores, Supermarkets\t309\tTom & "Ann" it\'s 1 \\ 2\t0.47',
        "2017-01-10 08:05\t-120.50\tcode 1234\t\tline one two (i)\t",
    ]
    assert texts["markdown"].split("\n")[:4] == [
        "| time | amount (EUR) | category | store | note of the payer | balance |",
        "| --- | --- | --- | --- | --- | --- |",
        '| 2017-01-07 19:30 | 3.99 | Grocery Stores, Supermarkets | 309 | Tom & "Ann" it\'s 1 \\\\ 2 | 0.47 |',
        "| 2017-01-10 08:05 | -120.50 | code 1234 |  | line one two (i) |  |",
    ]


def test_json_yaml_xml_and_html_read_back_to_the_same_facts(texts: dict[str, str]) -> None:
    facts = [dict(zip(NAMES, line, strict=True)) for line in LINES]
    assert json.loads(texts["json"]) == facts
    assert yaml.safe_load(texts["yaml"]) == facts
    history = ET.fromstring(texts["xml"])
    assert [{child.tag: number(child.text) for child in event} for event in history] == [
        {name: value for name, value in event.items() if value is not None} for event in facts
    ]
    cells = Cells(texts["html"])
    assert cells.rows[0] == ["time", "amount (EUR)", "category", "store", "note of the payer", "balance"]
    assert [[number(cell) or None for cell in row] for row in cells.rows[2:]] == [
        [value or None for value in line] for line in LINES[1:]
    ]


def number(text: str | None) -> str | float | None:
    """Amounts and balances as numbers; the store is text of digits only."""
    return float(text) if text is not None and "." in text and text.replace(".", "").lstrip("-").isdigit() else text


class Cells(HTMLParser):
    """Cells of a table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.rows[-1][-1] += data


def test_documents_have_the_columns_of_their_table(events: DataFrame) -> None:
    documents = serialize(events, None, AS_OF, SPEC, DocumentConf())
    assert conform(DOCUMENTS, documents.withColumn("run_id", F.lit("r"))).columns[:-1] == documents.columns
    row = rows_of(documents)["c1"]
    assert (row.as_of, row.format, row.serializer) == (AS_OF, "compact", "compact/2")
    assert (row.event_count_used, row.event_count_cut) == (3, 0)
    assert row.token_estimate == 4 * 8 + len('Tom & "Ann" it\'s 1 \\ 2') // 4 + len("line\none | two <i>") // 4
    assert len(row.input_hash) == 64


def test_an_event_at_as_of_or_later_does_not_enter(events: DataFrame) -> None:
    row = rows_of(serialize(events, None, AS_OF, SPEC, DocumentConf()))["c2"]
    assert row.event_count_used == 1 and row.event_count_cut == 0
    assert "LEAK" not in row.text
    assert row.text.endswith("\n+0d|Tue|23h|-|s7|-|1.2|b1000000")
    assert row.last_event_time == dt.datetime(2017, 2, 28, 23, 59, 59)


def test_each_as_of_of_a_client_has_its_document(spark: SparkSession, events: DataFrame) -> None:
    rows = [("c1", "t", dt.datetime(2017, 1, 10)), ("c1", "u", dt.datetime(2017, 1, 10)), ("c1", "t", AS_OF)]
    labels = spark.createDataFrame(
        [*rows, ("c2", "t", dt.datetime(2016, 1, 1))], "client_id string, task string, as_of timestamp"
    )
    documents = serialize(events, labels, dt.datetime(2030, 1, 1), SPEC, DocumentConf()).collect()
    assert sorted((row.client_id, row.as_of.isoformat(), row.event_count_used) for row in documents) == [
        ("c1", "2017-01-10T00:00:00", 1),
        ("c1", "2017-03-01T00:00:00", 3),
    ]


def test_clients_without_labels_end_at_the_default(spark: SparkSession, events: DataFrame) -> None:
    labels = spark.createDataFrame([("c1", dt.datetime(2017, 1, 10))], "client_id string, as_of timestamp")
    documents = rows_of(serialize(events, labels, dt.datetime(2017, 3, 2), SPEC, DocumentConf()))
    assert {client: row.event_count_used for client, row in documents.items()} == {"c1": 1, "c2": 2}


def faults(documents: DataFrame, events: DataFrame, as_of: dt.datetime = AS_OF) -> dict[str, str | None]:
    checked = check_documents(documents, events, None, as_of, spec=SPEC, conf=DocumentConf())
    return {row.client_id: row.fault for row in checked.collect()}


def test_the_check_finds_leaks_losses_and_missing_documents(spark: SparkSession, events: DataFrame) -> None:
    good = serialize(events, None, AS_OF, SPEC, DocumentConf()).cache()
    assert faults(good, events) == {"c1": None, "c2": None}
    leaking = serialize(events, None, dt.datetime(2018, 1, 1), SPEC, DocumentConf()).withColumn("as_of", F.lit(AS_OF))
    assert faults(leaking, events) == {"c1": None, "c2": "leak"}
    hidden = leaking.withColumn("last_event_time", F.lit(dt.datetime(2017, 2, 1)))
    assert faults(hidden, events) == {"c1": None, "c2": "leak"}
    assert faults(good.where("client_id = 'c1'"), events) == {"c1": None, "c2": "missing"}
    assert faults(good, events.where("event_id = 'e1'")) == {"c1": "leak", "c2": None}
    assert faults(good.where("client_id = 'c2'"), events.where("client_id = 'c1'"))["c2"] == "unknown"
    assert faults(good.withColumn("event_count_used", F.lit(1)), events)["c1"] == "lost"
    assert faults(good.withColumn("text", F.concat("text", F.lit("\n+1d|Wed|9h"))), events)["c1"] == "text"
    good.unpersist()


def test_the_newest_events_win_under_the_event_budget(spark: SparkSession) -> None:
    row = rows_of(serialize(one_client(spark, 300), None, AS_OF, SPEC, DocumentConf(max_events=2)))["c1"]
    assert (row.event_count_used, row.event_count_cut) == (2, 298)
    assert row.text.split("\n")[1:] == ["+0d|Fri|10h|1|s2|-|270|b0", "+0d|Fri|11h|1|s2|-|270|b0"]
    assert row.first_event_time == dt.datetime(2017, 1, 13, 10)


def test_the_newest_events_win_under_the_token_budget(spark: SparkSession) -> None:
    rows = one_client(spark, 50, note="if(id = 45, repeat('x', 40), 'abcd')")
    # The head and an event are 8 fields; a note of 40 characters adds 10 tokens, one of 4 adds 1.
    used = {
        tokens: rows_of(serialize(rows, None, AS_OF, SPEC, DocumentConf(max_tokens=tokens)))["c1"]
        for tokens in (44, 61, 62)
    }
    assert {tokens: row.event_count_used for tokens, row in used.items()} == {44: 4, 61: 4, 62: 5}
    assert [row.token_estimate for row in used.values()] == [44, 44, 62]
    tight = rows_of(serialize(rows, None, AS_OF, SPEC, DocumentConf(format="lines", max_tokens=1)))["c1"]
    assert (tight.event_count_used, tight.event_count_cut) == (1, 49)  # the newest event always stays


def test_a_client_with_very_many_events_is_survived(spark: SparkSession) -> None:
    row = rows_of(
        serialize(one_client(spark, 300_000), None, dt.datetime(2100, 1, 1), SPEC, DocumentConf(max_events=100))
    )["c1"]
    assert (row.event_count_used, row.event_count_cut) == (100, 299_900)
    assert row.text.split("\n")[-1].endswith("|270000|b0")


def test_order_hash_and_text_do_not_depend_on_the_order_of_rows_or_partitions(spark: SparkSession) -> None:
    ties = one_client(spark, 400).withColumn("event_time", F.lit(dt.datetime(2017, 1, 1)))
    ties = ties.withColumn("client_id", F.concat(F.lit("c"), F.col("amount").cast("int") % 7))
    ties = ties.withColumn("event_seq", F.col("amount").cast("long") % 3)
    conf = DocumentConf(fields=("store", "amount"), format="table")
    one = rows_of(serialize(ties, None, AS_OF, SPEC, conf))
    amounts = [line.split("\t")[1] for line in one["c0"].text.split("\n")[1:]]
    assert amounts[:5] == ["0.00", "105.00", "126.00", "147.00", "168.00"]
    spark.conf.set("spark.sql.execution.replaceHashWithSortAgg", True)
    try:
        for rows in (ties.orderBy(F.col("amount").desc()), ties.repartition(7, "amount")):
            assert rows_of(serialize(rows, None, AS_OF, SPEC, conf)) == one
    finally:
        spark.conf.unset("spark.sql.execution.replaceHashWithSortAgg")


def test_the_hash_changes_with_the_text_and_the_serializer_only(spark: SparkSession, events: DataFrame) -> None:
    def hashed(rows: DataFrame, **conf: Any) -> str:
        return str(rows_of(serialize(rows, None, AS_OF, SPEC, DocumentConf(**conf)))["c2"].input_hash)

    first = hashed(events)
    late = events.where("event_id = 'e1'")
    assert hashed(late) == first  # an event after as_of costs no rescoring
    assert hashed(events.withColumn("amount", F.col("amount") * 2)) != first
    assert hashed(events, format="lines", fields=("store",)) != hashed(events, format="table", fields=("store",))


def test_no_python_and_one_shuffle_of_the_events(events: DataFrame, spark: SparkSession) -> None:
    labels = spark.createDataFrame([("c1", AS_OF)], "client_id string, as_of timestamp")
    for own, exchanges in ((None, 1), (labels, 1 + 1)):  # a small one brings the labels there, and makes them distinct
        documents = serialize(events, own, AS_OF, SPEC, DocumentConf())
        plan = documents._jdf.queryExecution().executedPlan().toString()
        assert "Python" not in plan and "lambda" not in plan
        assert plan.count("Exchange hashpartitioning") == exchanges
        assert plan.count("Window [") == 1
