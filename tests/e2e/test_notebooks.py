"""The notebooks: in the form that Databricks imports, a sentence before each cell, and each run from top to bottom."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from nbformat import NotebookNode

from tests.e2e.conftest import DATA
from tests.notebooks import FOLDER, REPOSITORY, execute, html, load, pictures, shown, sources

NAMES = [one.stem for one in sources()]
# What each shows, beside its pictures: (pictures, words that stand in its outputs).
SHOWN: dict[str, tuple[int, tuple[str, ...]]] = {
    "quick_start": (1, ("600 rows in, 599 events of 120 clients, 1 set aside", "bad_time", "days|item|amount")),
    "your_own_data": (
        1,
        ("dd.MM.yyyy", "2 quarantined", "bad_time", "no_client", "roc_auc", "days|weekday|kind|amount"),
    ),
    "every_night": (
        1,
        ("readers see publication 3", "learnt before: taken as it stands", "most_shift", "as of 2025-01-02"),
    ),
    "safe_for_a_bank": (
        1,
        ("in none", "bad_time", "[card]", "Champion of churn", "most_shift", "rows to take away", "are read no more"),
    ),
    "what_is_a_good_embedding": (3, ("embedding", "both", "6/6 evaluate")),
    "next_category": (1, ("tuned model", "bayes", "grocery")),
    "next_goal": (2, ("lstm", "bayes", "expected_value")),
    "campaign": (2, ("12/12 contact", "marketing", "because")),
    "fine_tune_on_gpus": (1, ("qwen3-1.7b", "finetune")),
}


def code_cells(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_told_of_and_run() -> None:
    assert set(SHOWN) | {"run_pipeline"} == set(NAMES)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"notebooks/{name}.py" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_stands_before_each_cell(name: str) -> None:
    cells = load(FOLDER / f"{name}.py").cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
            assert len(before.source.split()) >= 6 and before.source.rstrip().endswith("."), before.source


@pytest.mark.parametrize("name", NAMES)
def test_cells_parse_and_import_only_what_there_is(name: str) -> None:
    tree = ast.parse("\n".join(code_cells(load(FOLDER / f"{name}.py"))))
    wanted: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            wanted += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted += [(alias.name, None) for alias in node.names]
    assert wanted
    for module, attribute in wanted:
        if not module.startswith("ledgerlm"):
            assert importlib.util.find_spec(module), module
        elif attribute is not None:
            assert hasattr(importlib.import_module(module), attribute), f"{module}.{attribute}"
    # Widgets through the one helper alone: `dbutils` is not there elsewhere.
    assert "dbutils" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_a_file_that_begins_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import os\n")
    with pytest.raises(ValueError, match="does not begin with '# Databricks notebook source"):
        load(tmp_path / "module.py")


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs" / "notebooks").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_in_docs_shows_the_notebook_as_it_is(page: Path) -> None:
    """`make notebooks` writes it anew to build/notebooks."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^```python\n(.*?)\n```$", text, flags=re.DOTALL | re.MULTILINE) == code_cells(
        load(FOLDER / f"{page.stem}.py")
    )
    drawn = re.findall(r"!\[plot \d+\]\((.*?)\)", text)
    assert len(drawn) == SHOWN[page.stem][0] and all((page.parent / one).exists() for one in drawn)
    assert not [one for one in (tempfile.gettempdir(), Path.home(), REPOSITORY) if f"{one}/" in text], (
        "no machine's path"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_it_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    notebook = execute(FOLDER / f"{name}.py", {"out": str(tmp_path / "out")})
    number, words = SHOWN[name]
    assert [one[:4] for one in pictures(notebook)] == [b"\x89PNG"] * number
    said = shown(notebook)
    assert [word for word in words if word not in said] == [], said
    assert [noise for noise in ("Traceback", "WARN", "Warning") if noise in said] == [], said
    assert html(notebook, name).count("data:image/png") == number


@pytest.mark.slow
def test_a_pipeline_is_run_by_its_notebook(tmp_path: Path) -> None:
    content: dict[str, Any] = {"pipeline": "small", "data": "datasets/complete_journey.yaml", "stages": {"ingest": {}}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content | {"source": {"path": str(DATA)}}))
    given = {"pipeline": str(file), "engine": "laptop", "out": str(tmp_path / "out"), "set": "seed=7"}
    notebook = execute(FOLDER / "run_pipeline.py", given)
    assert "1/1 ingest" in shown(notebook)
    assert "<html" in notebook.cells[-1].outputs[0]["data"]["text/html"]
