"""`python -m tests.notebooks [NAME ...]`: runs notebooks from top to bottom; what they show goes to build/notebooks.

A notebook is a file in Databricks source format. It is run cell by cell by a Jupyter kernel, as on Databricks, and not
as a plain script: what a cell shows (frames, pictures) is then an output, and the same run gives the pages.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import nbformat
from jupyter_client.manager import AsyncKernelManager
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from nbformat import NotebookNode
from rich.console import Console

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "notebooks"
PAGES = REPOSITORY / "build" / "notebooks"
HEAD, SPLIT, MAGIC = "# Databricks notebook source\n", "\n\n# COMMAND ----------\n", "# MAGIC"
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}pre{overflow:auto;padding:.6rem;"
    "background:#f4f4f4}pre.out{background:none;border-left:3px solid #ccc}table{border-collapse:collapse}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}img{max-width:100%}"
)


def sources() -> list[Path]:
    """All notebooks."""
    return sorted(FOLDER.glob("*.py"))


def load(file: Path) -> NotebookNode:
    """A source as a notebook.

    Raises:
        ValueError: it does not begin as Databricks wants it.
    """
    text = file.read_text(encoding="utf-8")
    if not text.startswith(HEAD):
        raise ValueError(f"{file} does not begin with {HEAD!r}: Databricks would take it for a module")
    cells = [_cell(part.strip("\n")) for part in text.removeprefix(HEAD).rstrip().split(SPLIT)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook: NotebookNode = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    return notebook


def _cell(source: str) -> NotebookNode:
    lines = source.splitlines()
    if lines[0] == f"{MAGIC} %md":
        text = "\n".join(line.removeprefix(MAGIC).removeprefix(" ") for line in lines[1:])
        cell: NotebookNode = nbformat.v4.new_markdown_cell(text)
    else:
        cell = nbformat.v4.new_code_cell(source)
    return cell


def execute(file: Path, parameters: Mapping[str, str] = {}, seconds: int = 1200) -> NotebookNode:
    """Runs all cells in order, in the repository, and gives the notebook with its outputs.

    Args:
        file: the source.
        parameters: values of its parameters.
        seconds: that a cell may take.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = load(file)
    given = {f"LEDGERLM_{name.upper()}": value for name, value in parameters.items()}
    quiet = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "lib"), os.environ.get("PYTHONPATH", "")])}
    with patch.dict(os.environ, given | quiet):
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # no port is opened
        NotebookClient(
            notebook, km=kernel, timeout=seconds, resources={"metadata": {"path": str(REPOSITORY)}}
        ).execute()
    return notebook


def html(notebook: NotebookNode, title: str) -> str:
    """A page with texts, code and outputs, which needs nothing beside it."""
    body = "\n".join(part for cell in notebook.cells for part in _parts(cell))
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>\n{body}\n"


def _parts(cell: NotebookNode) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield MarkdownIt("commonmark").enable("table").render(cell.source)
        return
    yield f"<pre>{_escaped(cell.source)}</pre>"
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="plot" src="data:image/png;base64,{data["image/png"].strip()}">'
        elif "text/html" in data and "<table" in data["text/html"]:
            yield data["text/html"]
        else:
            yield f'<pre class="out">{_escaped(_plain(output).rstrip())}</pre>'


def _plain(output: NotebookNode) -> str:
    """What an output says, without colours and without this machine's folders."""
    text = str(output.get("data", {}).get("text/plain", output.get("text", "")))
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{REPOSITORY}/", "")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def pictures(notebook: NotebookNode) -> list[bytes]:
    """The plots, as PNG."""
    found = [output.get("data", {}).get("image/png") for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(one) for one in found if one]


def shown(notebook: NotebookNode) -> str:
    """All that its cells print and show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(_plain(one).rstrip() for one in outputs)


def main(names: list[str]) -> int:
    """Runs the notebooks named, or all but `run_pipeline`, which wants a pipeline; a page and an .ipynb of each."""
    console = Console(highlight=False, soft_wrap=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in [one for one in sources() if one.stem in names or (not names and one.stem != "run_pipeline")]:
        notebook = execute(file)
        nbformat.write(notebook, PAGES / f"{file.stem}.ipynb")
        (PAGES / f"{file.stem}.html").write_text(html(notebook, file.stem), encoding="utf-8")
        for number, picture in enumerate(pictures(notebook), 1):
            (PAGES / f"{file.stem}-{number}.png").write_bytes(picture)
        console.print(f"{PAGES / file.stem}.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
