"""What is guessed of files as people have them: right, or marked, or left to be chosen; never wrong without a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledgerlm.errors import ConfigError, SpecError
from ledgerlm.events.guesses.draft import Draft, draft
from ledgerlm.events.guesses.pages import pipeline_page, spec_page
from ledgerlm.events.guesses.roles import Hints
from ledgerlm.events.guesses.tables import tables_at
from ledgerlm.events.spec import load_spec
from ledgerlm.jobs.cli import main
from ledgerlm.runs.pipeline import load_pipeline
from tests.shapes import SHAPES, Shape, at, with_labels


def drafted(folder: Path, **hints: Any) -> Draft:
    return draft(tables_at([str(folder)]), str(folder), "shape", Hints(**hints))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_is_read_right_or_marked(shape: Shape, tmp_path: Path) -> None:
    shape.write(tmp_path)
    made = drafted(tmp_path)
    found = {key: at(made.content, key) for key in shape.content}
    assert found == shape.content
    assert {guess.key for guess in made.open} == set(shape.open)
    marked = {guess.key for guess in made.guesses if guess.sure == "unsure"}
    assert marked == shape.unsure

    file = tmp_path / "spec.yaml"
    file.write_text(spec_page(made, shape.name), encoding="utf-8")
    page = file.read_text(encoding="utf-8")
    assert page.count("UNSURE: ") == len(shape.unsure)
    assert page.count("CHOOSE: ") == len(shape.open) == sum(": ???" in line for line in page.splitlines())
    assert yaml.safe_load(page) == yaml.safe_load(yaml.safe_dump(made.content)), "the page says what was drafted"
    if shape.open:
        with pytest.raises(ConfigError, match=r"\?\?\? stands where you must choose"):
            load_spec(file)
    load_spec(file, shape.answers)


def table(folder: Path, text: str, name: str = "events.csv", encoding: str = "utf-8") -> Draft:
    """What is drafted of one file."""
    (folder / name).write_bytes(text.encode(encoding))
    return drafted(folder)


def said(made: Draft) -> dict[str, str]:
    return {guess.key: guess.value for guess in made.guesses}


def sure(made: Draft) -> dict[str, str]:
    return {guess.key: guess.sure for guess in made.guesses}


def rows(*values: str, head: str = "client,time,amount,shop") -> str:
    """A csv file with one row for each time."""
    return "\n".join([head, *(f"c{at % 3},{value},{at}.50,s{at % 4}" for at, value in enumerate(values))]) + "\n"


class TestTimes:
    @pytest.mark.parametrize(
        ("values", "form"),
        [
            (("10/9/2016", "30/9/2016"), "d/M/yyyy"),  # one value decides for all (pandas #14301)
            (("09/10/2016", "09/30/2016"), "MM/dd/yyyy"),
            (("2016-09-10 10:00", "2016-09-30 11:30:05.25"), "timestamp"),
            (("01.02.2024", "03.04.2024"), "dd.MM.yyyy"),  # dots are written with the day first
            (("21OCT17:00:00:00", "03NOV17:10:30:00"), "ddMMMyy:HH:mm:ss"),
            (('"Jan 5, 2024"', '"May 12, 2024"'), "MMM d, yyyy"),
            (("5 January 2024", "12 May 2024"), "d MMMM yyyy"),
            (("1/2/2024 3:05 PM", "12/31/2024 11:05 AM"), "M/d/yyyy h:mm a"),
            (("31/12/2023", "01/01/2024 10:30"), "dd/MM/yyyy[ H:mm]"),  # midnights without a time of day
            (("930101", "931231"), "yyMMdd"),
            (("1714557600", "1714557700"), "epoch"),
            (("1714557600000000", "1714557700000000"), "epoch_us"),
            (("45413", "45414"), "days"),
        ],
    )
    def test_a_column_has_one_format(self, tmp_path: Path, values: tuple[str, ...], form: str) -> None:
        made = table(tmp_path, rows(*values * 4))
        assert said(made)["time.format"] == form
        assert not made.open
        file = tmp_path / "spec.yaml"
        file.write_text(spec_page(made, "t"))
        assert load_spec(file).time.format == form, "and a spec takes it"

    def test_the_order_of_rows_tells_days_from_months(self, tmp_path: Path) -> None:
        days = [f"{day:02d}/{month:02d}/2024" for month in range(1, 4) for day in range(1, 13)]
        made = table(tmp_path, rows(*days))
        assert said(made)["time.format"] == "dd/MM/yyyy"
        assert "go on in time" in next(guess.why for guess in made.guesses if guess.key == "time.format")

    def test_rows_sorted_as_text_tell_nothing(self, tmp_path: Path) -> None:
        """Such days first look as if they were months first, and sorted by time."""
        days = sorted(f"{day:02d}/{month:02d}/2024" for month in range(1, 4) for day in range(1, 13))
        made = table(tmp_path, rows(*days))
        assert said(made)["time.format"] == "dd/MM/yyyy or MM/dd/yyyy"
        assert [guess.key for guess in made.open] == ["time.format"]
        assert made.content["time"]["format"] == "???"

    def test_another_column_tells_days_from_months(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},0{1 + at % 9}/03/2024,{13 + at}/03/2024,{at}.50" for at in range(12)]
        made = table(tmp_path, "client,booking_date,value_date,amount\n" + "\n".join(lines))
        assert made.content["time"] == {"column": "booking_date", "format": "dd/MM/yyyy"}

    def test_numbers_in_the_only_column_that_is_named_as_a_time_are_doubted(self, tmp_path: Path) -> None:
        lines = [f"u{at % 3},{1704373666 + at * 9000},-{at}.50,s{at % 4}" for at in range(12)]
        made = table(tmp_path, "user_id,created_at,amount,shop\n" + "\n".join(lines))
        assert made.content["time"]["column"] == "created_at" and made.content["time"]["format"] == "epoch"
        assert sure(made)["time.column"] == "unsure"

    def test_what_looks_like_a_date_is_none(self, tmp_path: Path) -> None:
        """Codes with other signs between, and digits that no name calls a date (duckdb #13121, readr #291)."""
        lines = [f"c{at % 3},2024-05-{10 + at},{at}.5,41_10_{at},0478945{at},{19900101 + at}" for at in range(9)]
        made = table(tmp_path, "client,day,amount,plot,code,reference\n" + "\n".join(lines))
        assert made.content["time"]["column"] == "day"
        assert "plot" not in made.left and "code" not in made.left

    def test_a_month_without_an_english_name_is_said(self, tmp_path: Path) -> None:
        made = table(tmp_path, rows("5 de mayo", "6 de junio"))
        assert [guess.key for guess in made.open] == ["time"]
        assert made.content["time"] == {"column": "???", "format": "???"}

    def test_days_from_an_unknown_day_have_no_calendar(self, tmp_path: Path) -> None:
        made = table(tmp_path, rows(*(str(at * 3) for at in range(30)), head="client,trans_day,amount,shop"))
        assert made.content["time"]["calendar"] is False
        assert {"time.column", "time.format"} <= {guess.key for guess in made.guesses if guess.sure == "unsure"}

    def test_a_day_beyond_the_head_of_a_long_file_counts(self, tmp_path: Path) -> None:
        made = table(tmp_path, rows(*(["05/06/2024"] * 70_000 + ["25/06/2024"] * 20_000)))
        assert (tmp_path / "events.csv").stat().st_size > 2 << 20, "so that the head alone holds no such day"
        assert said(made)["time.format"] == "dd/MM/yyyy"
        assert made.rows < 90_000


class TestNumbers:
    @pytest.mark.parametrize(
        ("amounts", "decimal", "group"),
        [
            (("1.111,11", "1.000"), ",", "."),  # actual #2143
            (("25,000", "173.50"), ".", ","),  # securo #665
            (("1 234,50", "12,00"), ",", " "),
            (("1'234.50", "12.00"), ".", "'"),
            (("0.125", "0.500"), ".", None),  # no group begins with a zero
            (("1,234,567", "12"), ".", ","),
        ],
    )
    def test_the_decimal_mark_is_that_which_can_be_no_other(
        self, tmp_path: Path, amounts: tuple[str, ...], decimal: str, group: str | None
    ) -> None:
        lines = [f"c{at % 3};2024-05-{10 + at};{amounts[at % len(amounts)]};s{at % 4}" for at in range(12)]
        made = table(tmp_path, "client;time;amount;shop\n" + "\n".join(lines))
        file = made.content["source"]["files"][0]
        assert (file.get("decimal", "."), file.get("thousands")) == (decimal, group)
        assert not made.open

    def test_two_marks_are_marked(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3};2024-05-{10 + at};{'12.50' if at % 4 else '1.234,50'}" for at in range(12)]
        made = table(tmp_path, "client;time;amount\n" + "\n".join(lines))
        [guess] = [guess for guess in made.guesses if guess.key == "source.files.0.decimal"]
        assert (guess.value, guess.sure) == (".", "unsure")
        assert "'1.234,50', which will be set aside" in guess.why

    def test_a_zero_on_the_other_side_is_no_amount(self, tmp_path: Path) -> None:
        """`Amount Debit` is no signed amount (eliza #22263), and 0 beside it none at all (reckon #42)."""
        lines = [f"c{at % 3},2024-05-{10 + at},{'100.00,0' if at % 2 else '0,100.00'},5.00" for at in range(12)]
        made = table(tmp_path, "Account,Date,Amount Debit,Amount Credit,Balance\n" + "\n".join(lines))
        assert made.content["source"]["files"][0]["unpivot"]["nulls"] == ["0"]
        assert made.content["amount"]["sign"] == {"column": "side", "negative": ["out"], "positive": ["in"]}

    def test_codes_of_direction_in_any_case(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{at}.50,{'Debit' if at % 3 else 'CREDIT'}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,type\n" + "\n".join(lines))
        assert made.content["amount"]["sign"] == {"column": "type", "negative": ["Debit"], "positive": ["CREDIT"]}

    def test_a_payment_that_was_reversed_does_not_hide_the_column_of_direction(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{'-' if at == 5 else ''}{at}.50,{'DC'[at % 2]}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,dc\n" + "\n".join(lines))
        sign = {"column": "dc", "negative": ["D"], "positive": ["C"], "signed": "both"}
        assert made.content["amount"]["sign"] == sign
        assert sure(made)["amount.sign"] == "unsure"

    def test_a_column_that_says_what_the_minus_says_is_a_category(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{'-' if at % 2 else ''}{at}.50,{'CD'[at % 2]}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,dc\n" + "\n".join(lines))
        assert "sign" not in made.content["amount"] and sure(made)["amount.sign"] == "sure"
        assert [one["name"] for one in made.content["fields"]] == ["dc"]

    @pytest.mark.parametrize("name", ["card_type", "channel"])
    def test_the_kind_of_a_card_is_no_direction(self, tmp_path: Path, name: str) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{at}.50,{'DC'[at % 3 == 0]}" for at in range(12)]
        made = table(tmp_path, f"client,time,amount,{name}\n" + "\n".join(lines))
        assert "sign" not in made.content["amount"] and sure(made)["amount.sign"] == "unsure"
        assert [one["name"] for one in made.content["fields"]] == [name]

    def test_where_money_coming_in_alone_is_marked_all_else_goes_out(self, tmp_path: Path) -> None:
        lines = [f'c{at % 3},2024-05-{10 + at},"{at},261.70{" Cr" if at % 4 == 0 else ""}"' for at in range(1, 12)]
        made = table(tmp_path, "card,time,amount\n" + "\n".join(lines))
        assert made.content["source"]["files"][0]["marks"] == {"Cr": "-"}
        assert made.content["amount"]["sign"] == "negative"
        assert sure(made)["amount.sign"] == "unsure"

    def test_lakhs_are_numbers(self, tmp_path: Path) -> None:
        lines = [
            f"c{at % 3},{10 + at}/05/2024,{'' if at % 3 == 0 else chr(34) + '2,45,500.00' + chr(34)},"
            f'{"50.00" if at % 3 == 0 else ""},"3,62,060.8{at % 9}"'
            for at in range(12)
        ]
        made = table(tmp_path, "Account,Date,Withdrawal Amt.,Deposit Amt.,Closing Balance\n" + "\n".join(lines))
        assert said(made)["amount"] == "Withdrawal Amt. / Deposit Amt."
        assert made.content["source"]["files"][0]["thousands"] == ","

    def test_where_few_amounts_carry_a_minus_it_is_marked(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{'-' if at % 6 == 0 else ''}{at}.50" for at in range(1, 13)]
        made = table(tmp_path, "client,time,amount\n" + "\n".join(lines))
        [guess] = [guess for guess in made.guesses if guess.key == "amount.sign"]
        assert (guess.value, guess.sure) == ("as_is", "unsure") and "sign: negative" in guess.why

    @pytest.mark.parametrize("codes", [("EUR", "USD", "XXX"), ("978", "840", "643"), ("EUR", "€", "QQQ")])
    def test_a_column_that_is_named_so_holds_currencies_whatever_they_are(
        self, tmp_path: Path, codes: tuple[str, ...]
    ) -> None:
        lines = [f"c{at % 4},2024-05-{10 + at},-{at}.50,{codes[at % 3]}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,currency\n" + "\n".join(lines))
        assert made.content["amount"]["currency_column"] == "currency"
        [guess] = [guess for guess in made.guesses if guess.key == "amount.currency_column"]
        assert guess.sure == "unsure" and "counts as one of its own" in guess.why

    def test_amounts_without_any_direction_are_marked(self, tmp_path: Path) -> None:
        made = table(tmp_path, rows(*(f"2024-05-{10 + at}" for at in range(12))))
        [guess] = [guess for guess in made.guesses if guess.key == "amount.sign"]
        assert (guess.value, guess.sure) == ("as_is", "unsure")

    def test_amounts_of_many_places_keep_them(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},-0.0000123{at}" for at in range(9)]
        made = table(tmp_path, "client,time,amount\n" + "\n".join(lines))
        assert made.content["amount"]["scale"] == 8


class TestFiles:
    @pytest.mark.parametrize(
        ("line", "separator"),
        [
            ("{id};False;['112', '112'];['765', '766'];2024-05-1{id};62,25", ";"),  # cpython #119123
            ('{id}\t"a, b"\t"c, d"\t"e f"\t2024-05-1{id}\t1.5', "\t"),  # cpython #97611
            ("{id}|a;b|c,d|x|2024-05-1{id}|1.5", "|"),
            ("{id};x;April 1{id}, 2023;Ray;2024-05-1{id};1.5", ";"),  # rainbow_csv #134
        ],
    )
    def test_the_separator_is_that_of_the_most_even_table(self, tmp_path: Path, line: str, separator: str) -> None:
        text = "\n".join([separator.join(["client", "a", "b", "c", "time", "amount"]), *(line.format(id=at) for at in
                         (1, 2, 3, 1, 2, 3))])  # fmt: skip
        made = table(tmp_path, text)
        assert made.content["source"]["files"][0]["separator"] == separator
        assert made.content["client"] == "client"

    def test_bad_rows_do_not_make_another_table(self, tmp_path: Path) -> None:
        """One column is no table, however even (duckdb #15576)."""
        lines = [f"c{at};2024-05-01;{at},5{';too;many' * (at % 3 == 0)}" for at in range(12)]
        made = table(tmp_path, "client;time;amount\n" + "\n".join(lines))
        assert made.content["source"]["files"][0]["separator"] == ";"

    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            ("windows-1252", "Überweisung für Bäckerei, Straße"),
            ("windows-1252", "operación, España, año"),
            ("windows-1250", "Příjem, žluťoučký kůň"),
            ("windows-1250", "Płatność kartą, Wpływ środków"),
            ("windows-1251", "Оплата товара, Супермаркеты"),
            ("koi8-r", "Оплата товара, Супермаркеты"),
            ("windows-1253", "Αγορά προϊόντων, Ημερομηνία"),
            ("ibm850", "Überweisung für Bäckerei"),
            ("utf-16-le", "Überweisung"),
        ],
    )
    def test_the_code_page_is_that_of_the_words(self, tmp_path: Path, encoding: str, text: str) -> None:
        made = table(tmp_path, rows("2024-05-01", "2024-05-02").replace("s1", f'"{text}"'), encoding=encoding)
        assert made.content["source"]["files"][0]["encoding"] == encoding
        assert said(made)["source.files.0.encoding"] == encoding

    def test_a_damaged_row_of_utf_8_is_no_code_page(self, tmp_path: Path) -> None:
        text = rows(*(f"2024-05-{10 + at}" for at in range(9))).replace("s1", "Größe für Müll").encode()
        (tmp_path / "events.csv").write_bytes(text + b"c1,2024-05-20,5.50,M\xfcll\n")
        assert "encoding" not in drafted(tmp_path).content["source"]["files"][0]

    def test_files_in_other_order_and_case_are_one_table(self, tmp_path: Path) -> None:
        (tmp_path / "m2.csv").write_text("AMOUNT,TIME,CLIENT\n5.5,2024-06-01,c1\n6.5,2024-06-02,c1\n")
        made = table(tmp_path, "client,time,amount\nc1,2024-05-01,1.5\nc2,2024-05-02,2.5\n", name="m1.csv")
        assert [one["glob"] for one in made.content["source"]["files"]] == ["m*.csv"]
        assert made.rows == 4

    def test_files_of_two_dialects_have_entries_of_their_own(self, tmp_path: Path) -> None:
        (tmp_path / "new.csv").write_text("client;time;amount\nc1;2024-06-01;5.5\nc1;2024-06-02;6.5\n")
        made = table(tmp_path, "client,time,amount\nc1,2024-05-01,1.5\nc2,2024-05-02,2.5\n", name="old.csv")
        assert [(one["glob"], one.get("separator")) for one in made.content["source"]["files"]] == [
            ("new.csv", ";"),
            ("old.csv", None),
        ]

    def test_folders_hold_columns(self, tmp_path: Path) -> None:
        for mcc in ("0742", "5411"):
            (tmp_path / f"mcc={mcc}").mkdir()
            (tmp_path / f"mcc={mcc}" / "part-0.csv").write_text(rows("2024-05-01", "2024-05-02", "2024-05-03"))
        made = drafted(tmp_path)
        assert made.content["source"]["files"] == [{"glob": "*/*.csv"}]
        assert [one["name"] for one in made.content["fields"]] == ["shop", "mcc"]

    def test_what_is_no_table_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "scan.xlsx").write_bytes(b"PK\x03\x04")
        (tmp_path / "empty.csv").write_bytes(b"")
        made = table(tmp_path, rows("2024-05-01", "2024-05-02"))
        assert made.passed == {
            "scan.xlsx": "an archive or a workbook: unpack it, or save it as csv",
            "empty.csv": "it is empty",
        }
        assert "#   empty.csv: it is empty" in spec_page(made, "t").splitlines()

    def test_results_that_lie_there_are_no_data(self, tmp_path: Path) -> None:
        for folder in ("lake/events/_delta_log", "lake/events"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "0.json").write_text('{"client": "x"}\n')
        made = table(tmp_path, rows("2024-05-01", "2024-05-02"))
        assert made.rows == 2
        assert made.passed == {"lake/events": "a Delta table: name it in a spec by hand, with 'format: delta'"}
        with pytest.raises(SpecError, match="a Delta table"):
            drafted(tmp_path / "lake")

    def test_an_archive_alone_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "all.zip").write_bytes(b"PK\x03\x04")
        with pytest.raises(SpecError, match="unpack it"):
            drafted(tmp_path / "all.zip")
        with pytest.raises(SpecError, match="nothing is there"):
            drafted(tmp_path / "nowhere.csv")
        with pytest.raises(SpecError, match="only files of this machine"):
            tables_at(["s3a://bucket/events"])


class TestLabels:
    def test_a_flag_on_each_event_is_a_label_of_its_client(self, tmp_path: Path) -> None:
        lines = [f"c{at % 6},2024-05-{10 + at % 15},{at}.5,{at % 2},s{at % 4}" for at in range(60)]
        made = table(tmp_path, "cl_id,time,amount,target_flag,shop\n" + "\n".join(lines))
        [label] = made.content["labels"]
        assert (label["name"], label["file"], label["id"]) == ("target_flag", {"glob": "events.csv"}, "cl_id")
        assert str(made.content["as_of"]) == "2024-05-25", "the day after the last event"
        assert "as_of" in {guess.key for guess in made.guesses if guess.sure == "unsure"}
        assert [one["name"] for one in made.content["fields"]] == ["shop"]

    def test_spans_stand_in_their_order_and_words_for_none_are_none(self, tmp_path: Path) -> None:
        spans = ["250K+", "15-24K", "Under 15K", "100-149K"]
        (tmp_path / "people.csv").write_text("client,income,home\n" + "".join(
            f"c{at},{spans[at % 4]},{'nan' if at else 'own'}\n" for at in range(8)))  # fmt: skip
        lines = [f"c{at % 8},2024-05-{10 + at},{at}.5,{'n/a' if at % 3 else 'x'}{at % 2}" for at in range(16)]
        table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines).replace("n/a0", "n/a").replace("n/a1", "n/a"))
        made = drafted(tmp_path, labels=("income",))
        assert made.content["labels"][0]["classes"] == ["Under 15K", "15-24K", "100-149K", "250K+"]
        assert made.content["clients"][0]["nulls"] == ["nan"]
        assert made.content["fields"] == [{"name": "shop", "nulls": ["n/a"]}]

    def test_a_label_of_single_events_is_left_out(self, tmp_path: Path) -> None:
        lines = [f"c{at % 6},2024-05-{10 + at % 15},{at}.5,{at % 5 == 0:d},s{at % 4}" for at in range(60)]
        made = table(tmp_path, "client,time,amount,isFraud,shop\n" + "\n".join(lines))
        assert "labels" not in made.content
        assert made.left["isFraud"].startswith("is a label of single events")

    def test_a_dated_label_is_as_of_its_date(self, tmp_path: Path) -> None:
        (tmp_path / "loans.csv").write_text("client,granted,status\n" + "".join(
            f"c{at},2024-05-2{at},{'good' if at else 'bad'}\n" for at in range(3)))  # fmt: skip
        made = table(tmp_path, rows(*(f"2024-05-{10 + at}" for at in range(12))))
        [label] = made.content["labels"]
        assert label["as_of"] == {"column": "granted"}
        assert (label["classes"], label["values"]) == (["good", "bad"], {"good": 0, "bad": 1})
        assert "as_of" not in made.content

    def test_the_days_of_a_label_may_be_open(self, tmp_path: Path) -> None:
        (tmp_path / "target.csv").write_text("client,report,target\nc0,03/04/2024,1\nc1,05/04/2024,0\n")
        made = table(tmp_path, rows(*(f"2024-03-{10 + at}" for at in range(12))))
        assert [guess.key for guess in made.open] == ["labels.0.as_of.format"]
        (tmp_path / "spec.yaml").write_text(spec_page(made, "t"))
        with pytest.raises(SpecError, match=r"labels\[0\]\.as_of\.format: \?\?\? stands"):
            load_spec(tmp_path / "spec.yaml")
        assert load_spec(tmp_path / "spec.yaml", ["labels.0.as_of.format=dd/MM/yyyy"]).labels

    def test_an_attribute_is_a_label_when_it_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "people.csv").write_text("client,income,city\nc0,low,X\nc1,high,Y\nc2,mid,X\n")
        text = rows(*(f"2024-05-{10 + at}" for at in range(12)))
        made = table(tmp_path, text)
        assert "--label income or city" in next(guess.why for guess in made.guesses if guess.key == "labels")
        made = drafted(tmp_path, labels=("income",))
        [label] = made.content["labels"]
        assert (label["kind"], label["classes"]) == ("multiclass", ["high", "low", "mid"])
        assert made.content["clients"][0]["attributes"] == {"city": "city"}
        with pytest.raises(SpecError, match="--label nothing"):
            drafted(tmp_path, labels=("nothing",))

    def test_without_a_label_the_spec_ends_with_one_to_take(self, tmp_path: Path) -> None:
        made = table(tmp_path, rows(*(f"2024-{month:02d}-10" for month in range(1, 13))))
        page = spec_page(made, "t").splitlines()
        start = next(place for place, line in enumerate(page) if line.startswith("# No label"))
        file = tmp_path / "spec.yaml"
        file.write_text("\n".join([*page[:start], *(line.removeprefix("# ") for line in page[start + 1 :])]))
        [label] = load_spec(file).labels
        assert label.future is not None and label.future.days == 30


class TestBeside:
    def test_events_with_other_columns_are_not_passed_over_in_silence(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2023-05-{10 + at},-{at}.50,s{at % 4}" for at in range(12)]
        (tmp_path / "2023.csv").write_text("client,time,amount,shop\n" + "\n".join(lines))
        lines = [f"c{at % 3},2024-05-{10 + at},-{at}.50,s{at % 4},web" for at in range(14)]
        made = table(tmp_path, "client,time,amount,shop,channel\n" + "\n".join(lines), "2024.csv")
        [guess] = [guess for guess in made.guesses if guess.key == "source.files"]
        assert guess.sure == "unsure" and guess.why.startswith("2023.csv has times")

    def test_whose_a_card_is_is_no_label(self, tmp_path: Path) -> None:
        lines = [f"k{at % 20},2024-05-{10 + at % 15},-{at}.50,s{at % 4}" for at in range(60)]
        cards = "\n".join(f"k{at},{500 + at // 2 * 7},2020-01-{at + 1:02}" for at in range(30))
        (tmp_path / "cards.csv").write_text("card_id,client_id,issued\n" + cards)
        made = table(tmp_path, "card_id,time,amount,shop\n" + "\n".join(lines))
        assert "labels" not in made.content and "clients" not in made.content
        told = [guess for guess in made.guesses if guess.key == "client" and "cards.csv names 'client_id'" in guess.why]
        assert [one.sure for one in told] == ["unsure"]

    def test_addresses_of_clients_are_no_attributes(self, tmp_path: Path) -> None:
        lines = [f"c{at % 9},2024-05-{10 + at % 15},-{at}.50,s{at % 4}" for at in range(60)]
        people = "\n".join(f"c{at},u{at}@mail.com,+49 170 123456{at},{20 + at}" for at in range(9))
        (tmp_path / "people.csv").write_text("client,email,phone,age\n" + people)
        made = table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines))
        assert made.content["clients"][0]["attributes"] == {"age": "age"}
        assert said(made)["clients"] == "without email, phone"

    def test_a_date_that_only_some_labels_have_is_not_theirs(self, tmp_path: Path) -> None:
        lines = [f"c{at % 20},2024-05-{10 + at % 15},-{at}.50,s{at % 4}" for at in range(60)]
        told = "\n".join(f"c{at},{at % 2},{'2024-05-20' if at % 2 else ''}" for at in range(20))
        (tmp_path / "churn.csv").write_text("client,churn,churn_date\n" + told)
        made = table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines))
        assert "as_of" not in made.content["labels"][0] and "as_of" in made.content
        assert sure(made)["labels.0.as_of"] == sure(made)["as_of"] == "unsure"

    def test_ids_that_lost_their_zeros_are_named(self, tmp_path: Path) -> None:
        lines = [f"{at % 9:05},2024-05-{10 + at % 15},-{at}.50,s{at % 4}" for at in range(60)]
        (tmp_path / "labels.csv").write_text("client,churn\n" + "\n".join(f"{at},{at % 2}" for at in range(9)))
        made = table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines))
        assert made.passed["labels.csv"].startswith("its 'client' has other zeros in front")

    def test_labels_on_events_are_counted_by_client(self, tmp_path: Path) -> None:
        lines = [f"c{at % 6},2024-05-{10 + at % 15},-{at}.50,s{at % 4},{at % 2}" for at in range(60)]
        made = table(tmp_path, "client,time,amount,shop,churned\n" + "\n".join(lines))
        assert "0 (3), 1 (3)" in next(guess.why for guess in made.guesses if guess.key == "labels.0")

    def test_minus_one_may_be_no_class(self, tmp_path: Path) -> None:
        lines = [f"c{at % 9},2024-05-{10 + at % 15},-{at}.50,s{at % 4}" for at in range(60)]
        (tmp_path / "target.csv").write_text("client,target\n" + "\n".join(f"c{at},{at % 3 - 1}" for at in range(9)))
        assert sure(table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines)))["labels.0"] == "unsure"

    def test_files_of_several_accounts_are_named(self, tmp_path: Path) -> None:
        for name in ("DE12", "DE99"):
            lines = [f"2024-05-{10 + at},-{at}.50,s{at % 4}" for at in range(12)]
            (tmp_path / f"{name}.csv").write_text("time,amount,shop\n" + "\n".join(lines))
        [guess] = [guess for guess in drafted(tmp_path).guesses if guess.key == "client"]
        assert guess.sure == "unsure" and "2 files (DE12.csv, DE99.csv)" in guess.why


class TestPages:
    def test_what_may_name_somebody_is_told_and_not_written(self, tmp_path: Path) -> None:
        names = ("Bob Roe", "Eve Poe")
        lines = [f"DE0212030000000020205{at % 3},2024-05-{10 + at},{at}.5,Rent of Ann Lee no {at},{names[at % 2]}"
                 for at in range(12)]  # fmt: skip
        made = table(tmp_path, "iban,time,amount,memo,payee\n" + "\n".join(lines))
        assert any("DE02120300000000202050" in guess.ids for guess in made.guesses)
        page = spec_page(made, "t")
        assert not any(name in page for name in ("DE0212", "Ann Lee", *names))
        assert [one.get("kind") for one in made.content["fields"]] == ["text", "text"]

    def test_words_of_yaml_stay_words(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("client,y\nc0,no\nc1,yes\nc2,no\n")
        lines = [f"c{at % 3};2024-05-{10 + at};{at}.5;{'on' if at % 2 else 'off'}" for at in range(12)]
        made = table(tmp_path, 'client;time;amount;"on: #1 ${x}"\n' + "\n".join(lines))
        file = tmp_path / "spec.yaml"
        file.write_text(spec_page(made, "t"))
        spec = load_spec(file)
        assert spec.fields[0].column == "on: #1 ${x}"
        assert spec.labels[0].values == {"no": 0, "yes": 1}

    def test_a_pipeline_has_what_the_data_and_the_machine_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with_labels(tmp_path)
        made = drafted(tmp_path)
        page = yaml.safe_load(pipeline_page(made, "mine", file="p.yaml", embed=False))
        assert list(page["stages"]) == ["ingest", "serialize", "aggregate", "fit", "score", "evaluate"]
        (tmp_path / "spec.yaml").write_text(spec_page(made, "t"))
        (tmp_path / "p.yaml").write_text(pipeline_page(made, "mine", file="p.yaml", embed=True))
        assert [stage.name for stage in load_pipeline(tmp_path / "p.yaml").stages][3:] == [
            "finetune", "embed", "fit", "score", "evaluate",
        ]  # fmt: skip
        page = yaml.safe_load((tmp_path / "p.yaml").read_text())
        assert list(page["stages"])[3:5] == ["finetune", "embed"]
        assert set(page["stages"]["evaluate"]["representations"]) == {"agg", "llm4es", "llm4es+agg"}
        monkeypatch.setattr("ledgerlm.engines.extras.find_spec", lambda name: None if name == "ray" else name)
        page = yaml.safe_load(pipeline_page(made, "mine", file="p.yaml", embed=False))
        assert page["stages"]["fit"]["kind"] == "logistic_regression"
        assert "evaluate" not in page["stages"]

    def test_stages_that_are_left_for_later_fit(self, tmp_path: Path) -> None:
        """Whoever takes the # away has a pipeline."""
        made = table(tmp_path, rows(*(f"2024-{month:02d}-10" for month in range(1, 13))))
        spec, page = spec_page(made, "t").splitlines(), pipeline_page(made, "mine", file="p.yaml", embed=False)
        start = next(place for place, line in enumerate(spec) if line.startswith("# No label"))
        taken = [*spec[:start], *(line.removeprefix("# ") for line in spec[start + 1 :])]
        (tmp_path / "spec.yaml").write_text("\n".join(taken))
        stage = r"(?m)^  # (?=( *)(finetune:|embed:|fit:|score:|evaluate:|representations?:|sources:|- |agg:))"
        (tmp_path / "p.yaml").write_text(re.sub(stage, "  ", page))
        assert [one.name for one in load_pipeline(tmp_path / "p.yaml").stages] == [
            "ingest", "serialize", "aggregate", "finetune", "embed", "fit", "score", "evaluate",
        ]  # fmt: skip

    def test_rows_without_a_client_are_borne(self, tmp_path: Path) -> None:
        lines = [f"{'c' + str(at % 3) if at % 5 else ''},2024-05-{10 + at},{at}.5,s{at % 4}" for at in range(15)]
        made = table(tmp_path, "client,time,amount,shop\n" + "\n".join(lines))
        assert made.bad == pytest.approx(0.2)
        page = yaml.safe_load(pipeline_page(made, "mine", file="p.yaml", embed=False))
        assert page["stages"] == {"ingest": {"max_quarantined_share": 0.25}, "serialize": {"format": "compact"},
                                  "aggregate": {}}  # fmt: skip


class TestClients:
    @pytest.mark.parametrize(
        ("head", "client"),
        [
            ("customer_name,customer_age,customer_id", "customer_id"),
            ("member_since,customer_city,user", "user"),
            ("account_type,account_no,branch", "account_no"),
            ("Kundengruppe,Konto,Kundennummer", "Kundennummer"),
            ("beneficiary_account,merchant_id,card", "card"),
        ],
    )
    def test_what_names_a_client_is_not_what_is_told_of_one(self, tmp_path: Path, head: str, client: str) -> None:
        lines = [
            f"{at % 3}0{at % 3},{30 + at % 3},{70 + at % 4},2024-05-{10 + at},{at}.5,s{at % 2}" for at in range(12)
        ]
        made = table(tmp_path, f"{head},day,amount,shop\n" + "\n".join(lines))
        assert (made.content["client"], made.open) == (client, ())

    def test_two_that_fit_are_left_open(self, tmp_path: Path) -> None:
        lines = [f"p{at % 3},c{at % 4},2024-05-{10 + at},{at}.5" for at in range(12)]
        made = table(tmp_path, "payer_id,person_id,day,amount\n" + "\n".join(lines).replace("payer", "p"))
        assert made.content["client"] == "person_id"
        made = table(tmp_path, "customer_id,person_id,day,amount\n" + "\n".join(lines))
        assert said(made)["client"] == "customer_id or person_id"
        assert [guess.key for guess in made.open] == ["client"]


class TestFields:
    def test_what_names_somebody_is_no_category(self, tmp_path: Path) -> None:
        lines = [
            f"c{at % 3},2024-05-{10 + at},-{at}.5,40001234123400{at % 5:02},u{at % 5}@mail.com,10.0.0.{at % 5},s{at}"
            for at in range(12)
        ]
        made = table(tmp_path, "client,time,amount,card_number,email,ip,shop\n" + "\n".join(lines))
        assert [one["name"] for one in made.content["fields"]] == ["shop"]
        assert set(made.left) == {"card_number", "email", "ip"}
        assert "mail.com" not in spec_page(made, "shape") and "4000" not in spec_page(made, "shape")

    def test_the_code_of_a_product_is_no_card(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},-{at}.5,400123412340{at % 5}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,ean\n" + "\n".join(lines))
        assert [one["name"] for one in made.content["fields"]] == ["ean"]

    def test_the_account_of_another_is_no_id_of_an_event(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},-{at}.5,DE89370400440532{at:06},s{at % 4}" for at in range(12)]
        made = table(tmp_path, "client,time,amount,Kontonummer/IBAN,shop\n" + "\n".join(lines))
        assert "event_id" not in made.content

    def test_ids_that_a_spreadsheet_damaged_are_no_numbers(self, tmp_path: Path) -> None:
        lines = [f"c{at % 9},2024-05-{10 + at % 15},{at}.5,{31625220000 + at // 2},s{at % 4}" for at in range(4_000)]
        lines.append("c1,2024-05-01,1.5,4.0128e+10,s1")
        made = table(tmp_path, "client,time,amount,basket_id,shop\n" + "\n".join(lines))
        assert [one["name"] for one in made.content["fields"]] == ["shop"]
        assert made.left == {"basket_id": "has a value of its own in nearly each row"}

    def test_there_is_a_field_if_only_what_never_changes(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},2024-05-{10 + at},{at}.5,5411" for at in range(9)]
        made = table(tmp_path, "client,time,amount,mcc\n" + "\n".join(lines))
        [one] = made.content["fields"]
        assert (one["name"], one["dictionary"]["code"]) == ("mcc", "mcc")


class TestHints:
    def test_a_column_that_is_said_is_taken(self, tmp_path: Path) -> None:
        lines = [f"c{at % 3},k{at % 4},2024-05-{10 + at},2023-05-{10 + at},{at}.5,{at}.7" for at in range(12)]
        text = "customer,contract,date,checked,amount,other\n" + "\n".join(lines)
        assert table(tmp_path, text).content["client"] == "customer"
        made = drafted(tmp_path, client="contract", time="checked", amount="other")
        assert (made.content["client"], made.content["time"]["column"], made.content["amount"]["column"]) == (
            "contract",
            "checked",
            "other",
        )

    def test_a_column_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        table(tmp_path, rows("2024-05-01", "2024-05-02"))
        with pytest.raises(SpecError, match="'nobody'"):
            drafted(tmp_path, client="nobody")
        with pytest.raises(SpecError, match="no times that can be read"):
            drafted(tmp_path, time="shop")


class TestCommand:
    def test_nothing_is_replaced_unasked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = tmp_path / "my.csv"
        data.write_text(rows("2024-05-01", "2024-05-02", "2024-05-03", "2024-05-04"))
        command = ["init", str(data), "--to", str(tmp_path / "my"), "--rows", "0"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "sure    client: client" in said and "unsure  amount.sign: as_is" in said
        assert f"ledgerlm run {tmp_path / 'my' / 'pipeline.yaml'}" in said
        (tmp_path / "my" / "spec.yaml").write_text("mine")
        assert main(command) == 2
        assert "--force" in capsys.readouterr().err
        assert (tmp_path / "my" / "spec.yaml").read_text() == "mine"
        assert main([*command, "--force"]) == 0
        assert load_pipeline(tmp_path / "my" / "pipeline.yaml").spec.client == "client"

    def test_a_choice_stops_every_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "my.csv").write_text(rows("03/04/2024", "05/06/2024", "05/06/2024"))
        assert main(["init", str(tmp_path / "my.csv"), "--to", str(tmp_path / "my")]) == 0
        assert "first choose" in capsys.readouterr().out
        for command in ("check", "run"):
            file = tmp_path / "my" / ("spec.yaml" if command == "check" else "pipeline.yaml")
            assert main([command, str(file)]) == 2
            assert "time.format: ??? stands where you must choose" in capsys.readouterr().err
        pipeline = ["run", str(tmp_path / "my" / "pipeline.yaml"), "--dry-run", "--set", f"out={tmp_path / 'out'}"]
        spec = tmp_path / "my" / "spec.yaml"
        spec.write_text(spec.read_text().replace("???", "dd/MM/yyyy"))
        assert main(pipeline) == 0

    def test_paths_are_relative_as_they_were_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("data").mkdir()
        Path("data/my.csv").write_text(rows("2024-05-01", "2024-05-02", "2024-05-03", "2024-05-04"))
        assert main(["init", "data/my.csv", "--to", "specs/my", "--rows", "0"]) == 0
        assert yaml.safe_load(Path("specs/my/spec.yaml").read_text())["source"]["path"] == "../../data"
        monkeypatch.chdir("/")
        spec = load_spec(tmp_path / "specs/my/spec.yaml")
        assert spec.source is not None and Path(spec.source.path) == tmp_path / "data"
