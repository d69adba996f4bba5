"""Where tables lie: folders, URLs, volumes and catalogs are told apart by their text alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledgerlm.lake.home import Home
from ledgerlm.runs.hashes import Hashes


@pytest.mark.parametrize(
    ("text", "path", "identifier"),
    [
        ("/data/lake", "file:///data/lake/events", "delta.`file:///data/lake/events`"),
        ("/Volumes/c/s/v/lake", "/Volumes/c/s/v/lake/events", "delta.`/Volumes/c/s/v/lake/events`"),
        ("s3a://bank/lake/", "s3a://bank/lake/events", "delta.`s3a://bank/lake/events`"),
        ("dbfs:/bank/lake", "dbfs:/bank/lake/events", "delta.`dbfs:/bank/lake/events`"),
        ("file:/data/my%20lake", "file:///data/my%20lake/events", "delta.`file:///data/my%20lake/events`"),
        ("main.bank", "main.bank.events", "`main`.`bank`.`events`"),
        ("prod-eu.bank-dev", "prod-eu.bank-dev.events", "`prod-eu`.`bank-dev`.`events`"),
        ("`prod-eu`.bank", "prod-eu.bank.events", "`prod-eu`.`bank`.`events`"),
    ],
)
def test_a_home_is_read_from_its_text(text: str, path: str, identifier: str) -> None:
    home = Home.parse(text)
    assert (home.path("events"), home.identifier("events")) == (path, identifier)


def test_a_folder_called_like_a_schema_needs_a_dot_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.parse("a.b").is_catalog
    assert Home.parse("./a.b").folder == tmp_path / "a.b"


def test_a_source_table_made_anew_is_another_although_its_version_is_the_same(tmp_path: Path) -> None:
    log = tmp_path / "table" / "_delta_log"
    log.mkdir(parents=True)
    commit = log / f"{0:020d}.json"
    commit.write_text("one")

    def seen() -> str:
        return Hashes(tmp_path / "hashes.json", lambda: pytest.fail("no Spark is needed")).of(str(tmp_path / "table"))

    first = seen()
    assert seen() == first
    commit.write_text("two and more")
    assert seen() != first
