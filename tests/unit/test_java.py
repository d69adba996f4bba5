"""What Java is started with: the profile's own options win, and the class archive is used only where it fits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ledgerlm.engines import archive
from ledgerlm.engines.java import java_options


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Java of its own, and two jars beside it."""
    jars, home = tmp_path / "spark" / "jars", tmp_path / "java"
    jars.mkdir(parents=True)
    home.mkdir()
    for name in ("spark.jar", "delta.jar"):
        (jars / name).write_text(name)
    (home / "release").write_text('JAVA_VERSION="17.0.1"')
    monkeypatch.setattr(archive, "jars_folder", lambda: jars)
    monkeypatch.setenv("JAVA_HOME", str(home))
    return home


def made(home: Path) -> Path:
    found = archive.place(home)
    assert found is not None
    found.parent.mkdir(exist_ok=True)
    found.touch()
    return found


def test_the_profile_s_own_options_stand_last() -> None:
    own = "-XX:Tier3DelayOn=5 -Dmine=1"
    for here in (True, False):
        assert java_options(own, here=here).endswith(own)


def test_a_driver_of_a_cluster_is_compiled_as_java_has_it() -> None:
    assert java_options("", here=False) == "-XX:-DontCompileHugeMethods"


def test_there_is_one_collector(home: Path) -> None:
    assert "ParallelGC" in java_options("-Xss4m", here=True)
    assert java_options("-XX:+UseG1GC", here=True).count("GC") == 1


def test_the_archive_is_used_where_it_lies(home: Path) -> None:
    assert "Shared" not in java_options("", here=True)
    found = made(home)
    assert f"-XX:SharedArchiveFile={found}" in java_options("", here=True)
    assert "-Xshare:auto" in java_options("", here=True), "one that does not fit after all is no error"


@pytest.mark.parametrize("changed", ["java/release", "spark/jars/delta.jar"])
def test_an_archive_of_another_java_or_other_jars_is_not_used(home: Path, tmp_path: Path, changed: str) -> None:
    made(home)
    (tmp_path / changed).write_text("another")
    assert archive.options(home) == []


def test_without_java_there_is_none() -> None:
    assert archive.place(None) is None
    assert archive.make(None) is None


def test_a_java_that_makes_none_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert archive.make(home) is None
