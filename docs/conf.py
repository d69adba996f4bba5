"""How Sphinx makes the site of these pages, which are read on a Git host as well: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import ledgerlm

README = Path(__file__).parents[1] / "README.md"

project = "ledgerlm"
version = release = ledgerlm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 3  # a heading's anchor is what a Git host makes of it
smartquotes_action = "D"  # the dashes of Sphinx's own texts; quotes stay as they are written
highlight_language = "none"  # of blocks that name none: lines of a shell
default_role = "literal"  # docstrings have names in single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the attributes of a class as one list
autodoc_typehints = "description"  # beside what is said of each; signatures stay short
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"ledgerlm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """What pages mean on a Git host, made good here."""
    app.connect("source-read", _the_readme_is_start)
    app.connect("doctree-read", _folders_are_text)


def _the_readme_is_start(app: Sphinx, docname: str, content: list[str]) -> None:
    """The README lies outside of this folder: its text stands in start.md, whose own line is for a Git host."""
    if docname == "start":
        app.env.note_dependency(str(README))
        # Its links are seen from one folder further down.
        content[0] = re.sub(r"\]\((?![a-z]+:|#)", "](../", README.read_text(encoding="utf-8"))
    else:
        content[0] = content[0].replace("](../README.md", "](start.md")


def _folders_are_text(app: Sphinx, document: nodes.document) -> None:
    """A link to a file of the tree becomes a download; of a folder there is nothing to show, and its name stays."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(document.findall(pending_xref)):
        if link["reftype"] == "myst" and not link.get("refdomain") and (here / link["reftarget"]).is_dir():
            link.replace_self(nodes.literal("", link.astext()))
