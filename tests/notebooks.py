"""`python -m tests.notebooks [NAME ...]`: runs notebooks from top to bottom; what they show goes to build/notebooks.

A notebook is a file in Databricks source format. It is run cell by cell by a Jupyter kernel, as on Databricks, and not
as a plain script: what a cell shows (frames, pictures) is then an output, and the same run gives the pages.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from unittest.mock import patch

import nbformat
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from nbformat import NotebookNode
from rich.console import Console
from traitlets.config import Config

from tests.cpu_meter import CpuMeter

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
    with patch.dict(os.environ, given | quiet), TemporaryDirectory() as sockets:
        conf = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})  # no port is opened
        where = {"metadata": {"path": str(REPOSITORY)}}
        NotebookClient(notebook, config=conf, timeout=seconds, resources=where).execute()
    return notebook


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Something that a cell shows: text (of several outputs in a row), a table as HTML, or a picture as base64."""

    kind: Literal["text", "table", "picture"]
    content: str


def outputs(cell: NotebookNode) -> Iterator[Shown]:
    """What a cell shows, in order; not what libraries tell on stderr."""
    said: list[str] = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        other = None
        if "image/png" in data:
            other = Shown(kind="picture", content=data["image/png"].strip())
        elif "<table" in data.get("text/html", ""):
            table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
            other = Shown(kind="table", content="\n".join(line for line in table.splitlines() if line.strip()))
        if output.get("name") == "stderr":
            continue
        if other is None:
            said.append(_plain(output).rstrip())
            continue
        if said:
            yield Shown(kind="text", content="\n".join(said))
        said = []
        yield other
    if said:
        yield Shown(kind="text", content="\n".join(said))


def html(notebook: NotebookNode, title: str) -> str:
    """A page with texts, code and outputs, which needs nothing beside it."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(MarkdownIt("commonmark").enable("table").render(cell.source))
            continue
        parts.append(f"<pre>{_escaped(cell.source)}</pre>")
        for one in outputs(cell):
            if one.kind == "picture":
                parts.append(f'<img alt="plot" src="data:image/png;base64,{one.content}">')
            else:
                text = f'<pre class="out">{_escaped(one.content)}</pre>'
                parts.append(one.content if one.kind == "table" else text)
    return "\n".join(parts) + "\n"


def markdown(notebook: NotebookNode, name: str) -> str:
    """The same for docs/notebooks: pictures are the files `NAME-1.png` and so on beside it."""
    parts, number = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for one in outputs(cell):
            number += one.kind == "picture"
            picture, text = f"![plot {number}]({name}-{number}.png)", f"```text\n{one.content}\n```"
            parts.append({"picture": picture, "table": one.content, "text": text}[one.kind])
    return "\n\n".join(parts) + "\n"


def _plain(output: NotebookNode) -> str:
    """What an output says, without colours and without this machine's folders."""
    text = str(output.get("data", {}).get("text/plain", output.get("text", "")))
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{REPOSITORY}/", "")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def pictures(notebook: NotebookNode) -> list[bytes]:
    """The plots, as PNG."""
    found = [one for cell in notebook.cells for one in outputs(cell)]
    return [base64.b64decode(one.content) for one in found if one.kind == "picture"]


def shown(notebook: NotebookNode) -> str:
    """All that its cells print and show, as text."""
    return "\n".join(_plain(output).rstrip() for cell in notebook.cells for output in cell.get("outputs", ()))


def main(names: list[str]) -> int:
    """Runs the notebooks named, or all but `run_pipeline`, which wants a pipeline; a page and an .ipynb of each."""
    console = Console(highlight=False, soft_wrap=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in [one for one in sources() if one.stem in names or (not names and one.stem != "run_pipeline")]:
        meter, began = CpuMeter(), time.monotonic()
        meter.start()
        notebook = execute(file)
        nbformat.write(notebook, PAGES / f"{file.stem}.ipynb")
        (PAGES / f"{file.stem}.html").write_text(html(notebook, file.stem), encoding="utf-8")
        (PAGES / f"{file.stem}.md").write_text(markdown(notebook, file.stem), encoding="utf-8")
        for number, picture in enumerate(pictures(notebook), 1):
            (PAGES / f"{file.stem}-{number}.png").write_bytes(picture)
        took = f"{time.monotonic() - began:.0f} s, {meter.stop():.0f} CPU seconds"
        console.print(f"{PAGES / file.stem}.html: {took}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
