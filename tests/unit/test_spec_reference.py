"""The page of keys is made from the models, so it can miss none."""

from __future__ import annotations

from pathlib import Path

from ledgerlm.events.spec_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "spec.md"


def test_the_page_of_keys_is_that_of_the_models() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python -m ledgerlm.events.spec_reference"


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if not row.rsplit(" | ", 1)[1].strip(" |")] == []
