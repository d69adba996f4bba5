"""What `make release` makes: all that a user needs, and nothing else; the same bytes from the same commit."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.e2e.environments import REPOSITORY

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def git(*arguments: str, at: Path) -> str:
    return subprocess.run(["git", "-C", str(at), *arguments], capture_output=True, text=True, check=True).stdout


def released(clone: Path, *, umask: int, time: int) -> Path:
    """The folder `dist` of a new clone, of a user with an umask, whose files bear a time."""
    git("clone", "--quiet", str(REPOSITORY), str(clone), at=REPOSITORY)
    for file in git("ls-files", at=clone).splitlines():
        os.utime(clone / file, (time, time), follow_symlinks=False)
    # The environment is that of this tree: `-o` takes set-up for done.
    command = ["make", "--silent", "-o", "setup", f"BIN={BIN}", "release"]
    subprocess.run(command, cwd=clone, check=True, capture_output=True, umask=umask, timeout=600)
    return clone / "dist"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first release."""
    return released(tmp_path_factory.mktemp("first") / "clone", umask=0o022, time=1_700_000_000)


def test_the_same_commit_gives_the_same_bytes(first: Path, tmp_path: Path) -> None:
    second = released(tmp_path / "elsewhere", umask=0o077, time=1_600_000_000)
    names = sorted(one.name for one in first.iterdir())
    assert [Path(name).suffix for name in names] == [".whl", ".gz"]
    assert names == sorted(one.name for one in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_wheel_holds_the_package_with_its_jobs_and_files_and_nothing_else(first: Path) -> None:
    """Real files in place of the links, prompts and templates among them, and no test."""
    clone = first.parent
    tracked = git("ls-files", "lib", "jobs", "conf", at=clone).splitlines()
    named = [
        one if one.startswith("lib/") else f"lib/ledgerlm/{one}" for one in tracked if not (clone / one).is_symlink()
    ]
    wanted = sorted(one.removeprefix("lib/") for one in named)
    with zipfile.ZipFile(next(first.glob("*.whl"))) as wheel:
        found = sorted(one for one in wheel.namelist() if ".dist-info/" not in one)
        assert all(wheel.getinfo(one).file_size == (clone / "lib" / one).stat().st_size for one in found)
    assert found == wanted
    for one in (
        "py.typed",
        "jobs/cli.py",
        "conf/demo.yaml",
        "conf/prompts/strict.yaml",
        "conf/engines/log4j2.properties",
    ):
        assert f"ledgerlm/{one}" in found
    assert any(one.endswith(".html.j2") for one in found)


def test_the_source_archive_builds_the_same_wheel(first: Path, tmp_path: Path) -> None:
    with tarfile.open(next(first.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    epoch = git("log", "-1", "--format=%ct", at=first.parent).strip()
    build = [str(BIN / "uv"), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": epoch})
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.read_bytes() == (first / wheel.name).read_bytes()


def test_the_wheel_asks_for_little_by_itself(first: Path) -> None:
    with zipfile.ZipFile(next(first.glob("*.whl"))) as wheel:
        (name,) = (one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(wheel.read(name).decode())
    asked = [one for one in told.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert not any(
        one.startswith(("pyspark", "delta-spark", "ray", "torch", "transformers", "deepspeed")) for one in asked
    )
    assert told["Requires-Python"] == "<3.14,>=3.11"
    assert {"spark", "ray", "embed", "train", "all"} <= set(told.get_all("Provides-Extra", []))


def test_what_no_commit_has_is_not_released(first: Path, tmp_path: Path) -> None:
    clone = tmp_path / "changed"
    git("clone", "--quiet", str(REPOSITORY), str(clone), at=REPOSITORY)
    (clone / "lib" / "ledgerlm" / "draft.py").write_text("")
    command = ["make", "--silent", "-o", "setup", f"BIN={BIN}", "release"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "commit them first" in done.stdout
