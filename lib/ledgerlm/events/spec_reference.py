"""The reference of every key of a data set spec, made from the models that read it: `docs/spec.md`."""

from __future__ import annotations

import datetime as dt
import types
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ledgerlm.events.spec import DataSetSpec

_WORDS = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Decimal: "number",
    dt.date: "date",
    dt.datetime: "time",
}
_INTRODUCTION = """# Keys of a data set spec

Every key that a data set spec may have, made from the models that read it (`python -m ledgerlm.events.spec_reference`
writes this page, and a test holds it). An unknown key is refused with the nearest one. The [tutorial of a data set of
your own](data-sets.md) shows them at work, and [what is read from files](input.md) says what becomes of each value.
"""


def reference() -> str:
    """The page: a table for each part of a spec, in the order in which they are met."""
    parts = [_INTRODUCTION]
    for model in _models(DataSetSpec, []):
        title = "The spec" if model is DataSetSpec else f"`{_name(model)}`"
        rows = [_row(field.alias or name, field) for name, field in model.model_fields.items()]
        about = " ".join((model.__doc__ or "").split())
        parts.append(
            f"## {title}\n\n{about}\n\n| key | what it takes | meaning |\n| --- | --- | --- |\n" + "\n".join(rows)
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _models(model: type[BaseModel], seen: list[type[BaseModel]]) -> list[type[BaseModel]]:
    if model not in seen:
        seen.append(model)
        for field in model.model_fields.values():
            for inner in _inner(field.annotation):
                _models(inner, seen)
    return seen


def _inner(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _inner(part)


def _name(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Spec").lower()


def _row(name: str, field: FieldInfo) -> str:
    takes = _said(field.annotation)
    if field.is_required():
        takes += "; **required**"
    else:
        default = field.get_default(call_default_factory=True)
        if default not in (None, "", (), {}) and not isinstance(default, BaseModel):
            shown = str(default).lower() if isinstance(default, bool) else default
            shown = ", ".join(map(str, shown)) if isinstance(shown, tuple) else shown
            takes += f"; default `{shown}`"
    about = [field.description or "", *((model.__doc__ or "") for model in _inner(field.annotation))]
    return f"| `{name}` | {_cell(takes)} | {_cell(next((text for text in about if text), ''))} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _said(kind: Any) -> str:
    """What a key takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    said = [_said(part) for part in parts if part not in (..., type(None)) and origin is not Literal]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{_name(kind)}](#{_name(kind)})"
    if origin is tuple:
        return f"list of {said[0]}" if ... in parts else ", ".join(said)
    known = {
        Annotated: said[:1],
        Literal: [", ".join(f"`{part}`" for part in parts)],
        Union: [" or ".join(said)],
        types.UnionType: [" or ".join(said)],
        dict: [" → ".join(said)],
    }
    return known[origin][0] if origin in known else _WORDS.get(kind, "anything")


if __name__ == "__main__":
    from pathlib import Path

    (Path(__file__).parents[3] / "docs" / "spec.md").write_text(reference(), encoding="utf-8")
