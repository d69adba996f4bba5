"""Files as people have them: small exports of banks, written as their programs write them, with the truth beside."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLIENTS, EVENTS = 8, 12
MINUTES, SECONDS = "%Y-%m-%d %H:%M:00", "%Y-%m-%d %H:%M:%S"
_WORDS = ("bakery", "fuel", "rent", "salary", "books", "shoes")
_CODES = ("5411", "5812", "0742", "5541")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened, before somebody wrote it down."""

    client: str
    time: dt.datetime
    amount: Decimal
    number: int

    @property
    def code(self) -> str:
        return _CODES[self.number % len(_CODES)]

    @property
    def word(self) -> str:
        return _WORDS[self.number % len(_WORDS)]

    @property
    def day(self) -> dt.date:
        return self.time.date()


@dataclass(kw_only=True)
class Shape:
    """Files, and what must be found in them.

    Attributes:
        name: of the shape.
        write: writes the files below a folder, and gives what happened.
        content: keys of the spec, `a.b.0.c`, and their values; None where a key is left out.
        unsure: keys that are marked.
        open: keys that are left to be chosen, with an answer that is true.
        also: what the comment of a choice asks for besides.
        plain: whether Spark reads nothing in them that it does not in others, so that it need not at every commit.
        clock: what the files know of a time, the rest filled with zeros.
    """

    name: str
    write: Callable[[Path], Sequence[Event]]
    content: dict[str, Any]
    unsure: set[str] = field(default_factory=set)
    open: dict[str, str] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)
    plain: bool = False
    clock: str = "%Y-%m-%d 00:00:00"

    @property
    def answers(self) -> list[str]:
        """What is chosen, as `--set` takes it."""
        return [f'{key}="{value}"' for key, value in {**self.open, **self.also}.items()]


def events(*, clients: Sequence[str] = (), start: str = "2023-11-20", most: int = 4_000) -> list[Event]:
    """What some clients did, in the order of time: amounts of both signs, some above a thousand."""
    draw, first = Random(7), dt.datetime.fromisoformat(start)
    names = clients or [f"A{place:03d}" for place in range(CLIENTS)]
    found = []
    for number in range(len(names) * EVENTS):
        cents = draw.choice((draw.randrange(100, 9_000), draw.randrange(100_000, most * 100)))
        sign = 1 if draw.random() < 0.3 else -1
        time = first + dt.timedelta(days=number * 0.8, minutes=7 * number, seconds=number)
        amount = sign * Decimal(cents + (1 if cents % 10 == 0 else 0)) / 100
        found.append(Event(client=names[number % len(names)], time=time, amount=amount, number=number))
    return found


def grouped(value: Decimal, group: str, decimal: str) -> str:
    """A number with a sign before each three digits."""
    return f"{value:,.2f}".replace(",", "\0").replace(".", decimal).replace("\0", group)


def lines_to(file: Path, lines: Sequence[str], encoding: str = "utf-8") -> None:
    file.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))


def german(folder: Path) -> list[Event]:
    made = events(clients=["DE02120300000000202051", "DE02500105170137075030"])
    rows = [
        f'"{one.client}";"{one.day:%d.%m.%Y}";"{one.day:%d.%m.%Y}";"KARTENZAHLUNG";"Überweisung für {one.word} Nr. '
        f'{one.number}";"Bäckerei {one.word}";"{grouped(one.amount, ".", ",")}";"EUR"'
        for one in made
    ]
    head = '"Auftragskonto";"Buchungstag";"Valutadatum";"Buchungstext";"Verwendungszweck";"Beguenstigter/'
    lines_to(folder / "umsaetze.csv", [head + 'Zahlungspflichtiger";"Betrag";"Waehrung"', *rows], "windows-1252")
    return made


def american(folder: Path) -> list[Event]:
    made = events()
    rows = [
        f'{one.client},{one.day:%m/%d/%Y},"{one.word.upper()}, STORE {one.number}",{dollars(one.amount)}'
        for one in made
    ]
    lines_to(folder / "transactions.csv", ["Account Number,Posting Date,Description,Amount", *rows])
    return made


def dollars(value: Decimal) -> str:
    text = f'"${abs(value):,.2f}"' if abs(value) >= 1000 else f"${abs(value):,.2f}"
    return text if value > 0 else f'"(${abs(value):,.2f})"'


def json_lines(folder: Path) -> list[Event]:
    made = events(clients=[f"{place:05d}" for place in range(CLIENTS)])
    with (folder / "events.jsonl").open("w") as stream:
        for one in made:
            at = int(one.time.replace(tzinfo=dt.UTC).timestamp() * 1000)
            told = {"user_id": one.client, "ts": at, "amount": float(one.amount), "currency": "EUR", "mcc": one.code}
            stream.write(json.dumps(told | ({"merchant": one.word} if one.number % 3 else {})) + "\n")
    return made


def two_sides(folder: Path) -> list[Event]:
    made = events()
    rows = [
        f"{one.client},{one.day},{one.word} {one.number},{max(-one.amount, 0):.2f},{max(one.amount, 0):.2f},100.00"
        for one in made
    ]
    lines_to(
        folder / "statement.csv", ["Account,Transaction Date,Description,Amount Debit,Amount Credit,Balance", *rows]
    )
    return made


def dutch(folder: Path) -> list[Event]:
    made = events(clients=["NL91ABNA0417164300", "NL20INGB0001234567"])
    rows = [
        f'"{one.day:%Y%m%d}";"Winkel {one.word}";"{one.client}";"NL56RABO{one.number:010d}";"BA";'
        f'"{"Bij" if one.amount > 0 else "Af"}";"{abs(one.amount):.2f}"'.replace(".", ",")
        for one in made
    ]
    head = '"Datum";"Naam / Omschrijving";"Rekening";"Tegenrekening";"Code";"Af Bij";"Bedrag (EUR)"'
    lines_to(folder / "ing.csv", [head, *rows])
    return made


def parquet(folder: Path) -> list[Event]:
    made = events()
    columns = {
        "customer_id": pa.array([one.client for one in made]),
        "booked_at": pa.array([one.time for one in made], pa.timestamp("us", tz="UTC")),
        "amount": pa.array([one.amount for one in made], pa.decimal128(18, 2)),
        "mcc": pa.array([int(one.code) for one in made], pa.int32()),
        "is_online": pa.array([one.number % 2 == 0 for one in made]),
    }
    pq.write_table(pa.table(columns), folder / "trx.parquet")
    return made


def preamble(folder: Path) -> list[Event]:
    made = events(clients=["all"])
    rows = [f"{one.day:%d.%m.%Y};{one.word};{grouped(one.amount, '', ',')};EUR;;" for one in made]
    above = [
        "Kontonummer:;DE00 1203 0000 0000;;;;",
        "Zeitraum:;Mai;;;;",
        "",
        "Kontostand vom 31.05.2024:;1.234,56 EUR;;;;",
    ]
    lines_to(folder / "dkb.csv", [*above, "Buchungsdatum;Umsatzart;Betrag;Währung;;", *rows])
    return made


def russian(folder: Path) -> list[Event]:
    made = events(clients=[f"4081781000000000000{place}" for place in range(3)])
    tail = "Раздел {0};Оплата {1}, чек {2}"
    rows = [
        f"{one.client};{one.time:%d.%m.%Y %H:%M};{grouped(one.amount, ' ', ',')};"
        + tail.format(one.number % 3, one.word, one.number)
        for one in made
    ]
    lines_to(
        folder / "выписка.csv", ["Номер счета;Дата операции;Сумма, руб.;Категория;Описание", *rows], "windows-1251"
    )
    return made


def monthly(folder: Path) -> list[Event]:
    made = events()
    for month in sorted({one.day.replace(day=1) for one in made}):
        rows = [f"{one.number},{one.client},{one.time},{one.amount},{one.code}" for one in made
                if one.day.replace(day=1) == month]  # fmt: skip
        head = "id,client,time,amount,mcc" if month.month != 12 else "ID,CLIENT,TIME,AMOUNT,MCC"
        lines_to(folder / f"trx_{month:%Y-%m}.csv", [head, *rows])
    (folder / "README.md").write_text("the bank's files")
    return made


def with_labels(folder: Path, clients: int = CLIENTS, *, beside: bool = True) -> list[Event]:
    """Events and labels, and (beside) files of attributes and of codes, and one that belongs to nothing."""
    names = [f"{place:04d}" for place in range(clients)]
    made = events(clients=names)
    rows = [f"{one.client};{one.time};{one.amount};{one.number % 5};{one.word}" for one in made]
    lines_to(folder / "transactions.csv", ["client_id;trx_time;amount;tr_type;shop", *rows])
    lines_to(folder / "train_target.csv", ["client_id,churn", *(f"{name},{int(name) % 2}" for name in names)])
    if not beside:
        return made
    lines_to(folder / "clients.csv", ["client_id,age,city", *(f"{name},{30 + int(name)},Köln" for name in names)])
    types = ["cash", "transfer", "card", "fee", "salary"]
    lines_to(folder / "tr_types.csv", ["tr_type;tr_description", *(f"{at};{word}" for at, word in enumerate(types))])
    lines_to(folder / "notes.csv", ["topic;remark", "x;a note", "y;another note"])
    return made


def spanish(folder: Path) -> list[Event]:
    made = events(clients=["ES7921000813610123456789", "ES9121000418450200051332"])
    rows = [
        f"{one.client};{one.day:%d/%m/%Y};{one.time:%H:%M:%S};{grouped(one.amount, '.', ',')};{one.word};tarjeta"
        for one in made
    ]
    lines_to(folder / "movimientos.csv", ["Cuenta;Fecha operación;Hora;Importe;Concepto;Tipo", *rows])
    return made


def headless(folder: Path) -> list[Event]:
    made = events(clients=[f"1000{place}" for place in range(CLIENTS)])
    rows = [f"{one.client}\t{one.time}\t{one.amount}\t{one.word}" for one in made]
    lines_to(folder / "dump.tsv", rows)
    return made


def ambiguous(folder: Path) -> list[Event]:
    made = [one for one in events() if one.day.day <= 12 and one.day.day != one.day.month]
    rows = [
        f"{one.client},{one.day:%d/%m/%Y},{one.amount},{one.word}" for one in sorted(made, key=lambda one: one.client)
    ]
    lines_to(folder / "bank.csv", ["customer,date,amount,merchant", *rows])
    return made


def zeros(folder: Path) -> list[Event]:
    made = events(clients=[f"00{place}42" for place in range(CLIENTS)])
    rows = [f"{one.client}|{100 + one.number:08d}|{one.day}|{one.amount}|{one.code}|0{one.number % 3}7" for one in made]
    lines_to(folder / "cards.txt", ["cust_no|txn_id|txn_date|txn_amt|mcc|branch", *rows])
    return made


def in_thousands(folder: Path) -> list[Event]:
    whole = [Decimal(1000 + 137 * number) for number in range(CLIENTS * EVENTS)]
    made = [
        Event(client=one.client, time=one.time, amount=value if one.number % 3 else -value, number=one.number)
        for one, value in zip(events(), whole, strict=True)
    ]
    rows = [f"{one.client};{one.day};{grouped(one.amount, '.', ',').removesuffix(',00')};{one.word}" for one in made]
    lines_to(folder / "rounded.csv", ["client;date;amount;shop", *rows])
    return made


def broken_lines(folder: Path) -> list[Event]:
    made = events()
    rows = [
        f'{one.client},{one.time:%Y-%m-%dT%H:%M:%S+01:00},"{one.amount}","line one\nand ""two"", {one.number}"'
        for one in made
    ]
    lines_to(folder / "memo.csv", ["client,time,amount,memo", *rows])
    hour = dt.timedelta(hours=1)
    return [Event(client=one.client, time=one.time.replace(microsecond=0) - hour, amount=one.amount, number=one.number)
            for one in made]  # fmt: skip


FILE = "source.files.0"
SHAPES = (
    Shape(
        name="german bank",
        write=german,
        content={
            f"{FILE}.separator": ";",
            f"{FILE}.encoding": "windows-1252",
            f"{FILE}.decimal": ",",
            f"{FILE}.thousands": ".",
            "client": "Auftragskonto",
            "time": {"column": "Buchungstag", "format": "dd.MM.yyyy"},
            "amount": {"column": "Betrag", "currency_column": "Waehrung"},
            "labels": None,
        },
    ),
    Shape(
        name="american bank",
        write=american,
        content={
            f"{FILE}.thousands": ",",
            f"{FILE}.parentheses": True,
            f"{FILE}.currency_signs": {"$": "USD"},
            "client": "Account Number",
            "time": {"column": "Posting Date", "format": "MM/dd/yyyy"},
            "amount": {"column": "Amount"},
        },
        unsure={f"{FILE}.currency_signs"},
    ),
    Shape(
        name="JSON lines with epochs",
        write=json_lines,
        content={
            f"{FILE}.format": "json",
            "client": "user_id",
            "time": {"column": "ts", "format": "epoch_ms", "zone": "UTC"},
            "amount": {"column": "amount", "currency_column": "currency"},
            "fields.0.name": "mcc",
        },
        unsure={"time.zone"},
        clock=SECONDS,
    ),
    Shape(
        name="debit and credit in two columns",
        write=two_sides,
        content={
            "client": "Account",
            f"{FILE}.unpivot.rows": {"out": {"amount": "Amount Debit"}, "in": {"amount": "Amount Credit"}},
            f"{FILE}.unpivot.nulls": ["0.00"],
            "amount": {"column": "amount", "sign": {"column": "side", "negative": ["out"], "positive": ["in"]}},
        },
    ),
    Shape(
        name="dutch bank with a column of signs",
        write=dutch,
        content={
            f"{FILE}.decimal": ",",
            "client": "Rekening",
            "time": {"column": "Datum", "format": "yyyyMMdd"},
            "amount": {
                "column": "Bedrag (EUR)",
                "currency": "EUR",
                "sign": {"column": "Af Bij", "negative": ["Af"], "positive": ["Bij"]},
            },
        },
    ),
    Shape(
        name="parquet with decimals and times",
        write=parquet,
        content={
            f"{FILE}.format": "parquet",
            "client": "customer_id",
            "time": {"column": "booked_at", "zone": "UTC"},
            "amount": {"column": "amount"},
        },
        unsure={"time.zone"},
        clock=SECONDS,
    ),
    Shape(
        name="lines above the header, and no client",
        write=preamble,
        content={
            f"{FILE}.decimal": ",",
            f"{FILE}.constants": {"client": "all"},
            "client": "client",
            "time": {"column": "Buchungsdatum", "format": "d.M.yyyy"},
            "amount": {"column": "Betrag", "currency_column": "Währung"},
        },
        unsure={"client"},
    ),
    Shape(
        name="russian bank",
        write=russian,
        content={
            f"{FILE}.encoding": "windows-1251",
            f"{FILE}.decimal": ",",
            f"{FILE}.thousands": " ",
            "client": "Номер счета",
            "time": {"column": "Дата операции", "format": "dd.MM.yyyy HH:mm", "zone": "UTC"},
            "amount": {"column": "Сумма, руб.", "currency": "RUB"},
            "fields.0.name": "kategoriya",
        },
        unsure={"time.zone"},
        clock=MINUTES,
    ),
    Shape(
        name="a file a month",
        write=monthly,
        plain=True,
        content={
            f"{FILE}.glob": "trx_202*.csv",
            "client": "client",
            "event_id": {"columns": ["id"]},
            "time": {"column": "time", "zone": "UTC"},
            "fields.0.dictionary.code": "mcc",
        },
        unsure={"time.zone"},
        clock=SECONDS,
    ),
    Shape(
        name="labels, attributes and codes beside the events",
        write=with_labels,
        plain=True,
        content={
            f"{FILE}.glob": "transactions.csv",
            "client": "client_id",
            "labels.0.name": "churn",
            "labels.0.kind": "binary",
            "labels.0.file": {"glob": "train_target.csv"},
            "clients.0.attributes": {"age": "age", "city": "city"},
            "fields.0.dictionary": {
                "file": {"glob": "tr_types.csv", "separator": ";"},
                "code": "tr_type",
                "description": "tr_description",
            },
        },
        unsure={"time.zone", "as_of"},
        clock=SECONDS,
    ),
    Shape(
        name="spanish bank with date and time apart",
        write=spanish,
        content={
            f"{FILE}.decimal": ",",
            f"{FILE}.thousands": ".",
            "client": "Cuenta",
            "amount": {"column": "Importe"},
            "time": {"columns": ["Fecha operación", "Hora"], "format": "dd/MM/yyyy HH:mm:ss", "zone": "UTC"},
        },
        unsure={"time.zone"},
        clock=SECONDS,
    ),
    Shape(
        name="no header",
        write=headless,
        plain=True,
        content={
            f"{FILE}.header": False,
            f"{FILE}.separator": "\t",
            f"{FILE}.columns": [f"column_{at}" for at in range(1, 5)],
            "time": {"column": "column_2", "zone": "UTC"},
            "amount": {"column": "column_3"},
        },
        unsure={"time.zone", "amount.column"},
        open={"client": "column_1"},
        clock=SECONDS,
    ),
    Shape(
        name="days that can be months",
        write=ambiguous,
        plain=True,
        content={"client": "customer", "amount": {"column": "amount"}},
        open={"time.format": "dd/MM/yyyy"},
    ),
    Shape(
        name="ids and codes with leading zeros",
        write=zeros,
        plain=True,
        content={
            f"{FILE}.separator": "|",
            "client": "cust_no",
            "event_id": {"columns": ["txn_id"]},
            "time": {"column": "txn_date"},
            "amount": {"column": "txn_amt"},
            "fields.1": {"name": "branch"},
        },
    ),
    Shape(
        name="amounts without decimals",
        write=in_thousands,
        plain=True,
        content={"client": "client", "time": {"column": "date"}},
        open={f"{FILE}.decimal": ","},
        also={f"{FILE}.thousands": "."},
    ),
    Shape(
        name="line breaks in quotes, times with their zone",
        write=broken_lines,
        content={"client": "client", "time": {"column": "time", "zone": "UTC"}, "fields.0.kind": "text"},
        unsure={"time.zone"},
        clock=SECONDS,
    ),
)


def at(content: Any, key: str) -> Any:
    """The value of `a.b.0.c`; None where there is none."""
    for part in key.split("."):
        if isinstance(content, list):
            content = content[int(part)] if int(part) < len(content) else None
        else:
            content = content.get(part) if isinstance(content, dict) else None
    return content
