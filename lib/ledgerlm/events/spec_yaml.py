"""YAML words that are read as something else than was written: codes as numbers, the country NO as false."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ledgerlm.errors import SpecError

# Keys whose values (and the keys inside them) are text of the data, whatever they look like.
_TEXT_BELOW = {
    "values", "constants", "dictionary", "flags", "only", "nulls", "negative", "positive", "classes", "columns",
    "rename", "marks", "currency_signs", "attributes", "mask_words", "leave_out",
}  # fmt: skip
_TAG = "tag:yaml.org,2002:"


def check_words(file: Path) -> None:
    """Refuses unquoted words in places of text that YAML reads as a number, a date or a truth.

    Args:
        file: a spec.

    Raises:
        SpecError: naming the line and the word.
    """
    with file.open(encoding="utf-8") as stream:
        try:
            root = yaml.compose(stream, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return  # whoever loads the file says what is wrong
    for node, below in _scalars(root, below=False, seen=set()):
        read = _read(node, text=below)
        if read is not None:
            raise SpecError(f"{file}, line {node.start_mark.line + 1}: {node.value} is read as {read}: quote it")


def _scalars(node: Any, *, below: bool, seen: set[int]) -> Iterator[tuple[yaml.ScalarNode, bool]]:
    """All scalars, and whether each stands where a spec wants text of the data; the node of an anchor once."""
    if isinstance(node, yaml.ScalarNode):
        yield node, below
    elif node is not None and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from _scalars(item, below=below, seen=seen)
            return
        names = {str(name.value) for name, _ in node.value}
        below = below and "file" not in names  # a dictionary in a file has keys of its own
        for name, value in node.value:
            if name.tag != _TAG + "merge":
                yield name, True
                inside = (below and name.value != "file") or name.value in _TEXT_BELOW
                yield from _scalars(value, below=inside, seen=seen)


def _read(node: yaml.ScalarNode, *, text: bool) -> str | None:
    """What YAML makes of a plain word, if it would not print as it was written; None for harmless ones."""
    kind = node.tag.removeprefix(_TAG)
    if node.style is not None or kind not in ("int", "float", "bool", "timestamp"):
        return None
    odd = kind == "int" and (":" in node.value or (node.value[:1] == "0" and len(node.value) > 1))
    if not (text or odd):
        return None
    try:
        made = yaml.SafeLoader("").construct_object(node, deep=True)
    except (ValueError, yaml.YAMLError):
        return f"a {kind} that does not exist"
    if kind in ("int", "float") and str(made) == node.value:
        return None
    return {"bool": f"the truth value {made}", "timestamp": f"the date {made}"}.get(kind, f"the number {made}")
