"""What earlier batches tell, and what is told of a new one by its columns and rows."""

from __future__ import annotations

from typing import Any

from pyspark.sql import Row

from ledgerlm.events.batch_rules import BatchRules, Known, nothing_new, odd_columns, odd_count

RULES = BatchRules()


def file(batch: int, columns: list[str], rows: int = 10, **more: Any) -> Row:
    given = {"batch": batch, "taken": "read", "entry": "*.csv", "columns": columns, "currencies": ["EUR"]}
    return Row(**given | {"batch_counts": {"rows_in": rows}} | more)


def test_files_of_two_kinds_in_one_delivery_lack_nothing_of_each_other() -> None:
    known = Known.of([file(1, ["id", "card"]), file(2, ["id", "card"]), file(2, ["id", "iban"])])
    assert odd_columns({"3.csv": ("*.csv", ["ID", "iban"]), "4.csv": ("*.csv", ["id", "card"])}, known, RULES) == []
    found = odd_columns({"3.csv": ("*.csv", ["card"])}, known, RULES)
    assert [one.said for one in found] == ["3.csv lacks column 'id', which the last delivery of *.csv had"]


def test_an_entry_without_deliveries_is_held_against_none() -> None:
    known = Known.of([file(1, ["id"])])
    assert odd_columns({"a.json": ("*.json", ["id", "new"])}, known, RULES) == []


def test_a_message_names_a_few_of_many() -> None:
    names = [f"c{place}" for place in range(5)]
    found = odd_columns(
        {f"{place}.csv": ("*.csv", ["id", *names]) for place in range(5)}, Known.of([file(1, ["id"])]), RULES
    )
    assert "0.csv has columns 'c0', 'c1', 'c2' and 2 more, which" in found[0].said
    assert found[0].said.endswith("and 2 more such files")


def test_the_median_is_of_the_newest_batches_and_not_of_the_history() -> None:
    read = [file(1, ["id"], 5000), *(file(batch, ["id"], 100) for batch in range(2, 40))]
    renamed = file(39, [], taken="renamed", batch_counts={})
    known = Known.of([*read, renamed])
    assert (len(known.rows), set(known.rows)) == (30, {100})
    assert odd_count(10, known, RULES) == odd_count(1000, known, RULES) == []
    assert [odd_count(rows, known, RULES)[0].rule for rows in (9, 1001)] == ["rows", "rows"]
    assert odd_count(9, Known.of(read[:1]), RULES) == []


def test_a_batch_of_bad_rows_alone_repeats_nothing() -> None:
    none = dict.fromkeys(("appended", "corrected", "deleted", "repeated", "unknown_deletions"), 0)
    assert nothing_new(none, RULES) == []
    assert nothing_new(none | {"repeated": 2, "deleted": 1}, RULES) == []
    assert len(nothing_new(none | {"unknown_deletions": 1}, RULES)) == 1
