"""The site that `make docs` makes of docs, README and docstrings: whole, no dead link, of use without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import ledgerlm
from tests.e2e.environments import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [page.relative_to(DOCS).with_suffix(".html") for page in sorted(DOCS.rglob("*.md"))]


def build(docs: Path, to: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    """Sphinx as the Makefile calls it."""
    strict = ["--quiet", "--fail-on-warning", "--keep-going"]
    command = [sys.executable, "-m", "sphinx", *strict, "-b", builder, "-d", str(to / "doctrees"), str(docs), str(to)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site: 10 CPU seconds for 33 pages."""
    to = tmp_path_factory.mktemp("site")
    done = build(DOCS, to)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return to


def test_links_lead_to_what_the_site_has_and_nothing_is_fetched(site: Path) -> None:
    texts = {page: (site / page).read_text(encoding="utf-8") for page in PAGES}
    for page, text in texts.items():
        for kind, target in re.findall(r'<(\w+)[^>]* (?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", target):
                assert kind == "a", f"{page} fetches {target}"
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (site / page).parent / path.split("?")[0] if path else site / page
            assert file.is_file(), f"{page}: {target}"
            assert not anchor or f'id="{anchor}"' in file.read_text(encoding="utf-8"), f"{page}: {target}"


def test_pictures_are_there(site: Path) -> None:
    pictures = [*DOCS.glob("notebooks/*.png"), DOCS / "report.png"]
    assert {one.name for one in pictures} == {one.name for one in (site / "_images").iterdir()}


def test_the_readme_is_a_page_and_files_of_the_tree_come_along(site: Path) -> None:
    page = (site / "start.html").read_text(encoding="utf-8")
    assert 'id="what-was-run-where"' in page and 'href="notebooks/quick_start.html"' in page
    [notebook] = site.glob("_downloads/*/quick_start.py")
    assert notebook.read_bytes() == (REPOSITORY / "notebooks" / "quick_start.py").read_bytes()


def test_the_public_names_have_their_signature_types_and_example(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r'id="ledgerlm\.(\w+)"', page)) == sorted(ledgerlm.__all__)
    text = re.sub(r"<[^>]+>", "", page)
    assert "ledgerlm.fit(bank, *vectors, folder='heads', seed=42, **settings)" in text
    assert "folder (str | Path) – where the heads are saved" in text
    assert "&gt;&gt;&gt; heads = ledgerlm.fit(bank, ledgerlm.aggregate(bank)" in text


def test_what_is_dead_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_bytes((DOCS / "conf.py").read_bytes())
    (tmp_path / "_static").mkdir()
    page = "# A page\n\n[a](nowhere.md) [b](#nowhere) [c](index.md#nowhere) [d](../nowhere.yaml) ![e](nothing.png)\n"
    (tmp_path / "index.md").write_text(page, encoding="utf-8")
    (tmp_path / "lost.md").write_text("# In no list\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "out", builder="dummy")
    assert (done.returncode, done.stderr.count("WARNING")) == (1, 6)
