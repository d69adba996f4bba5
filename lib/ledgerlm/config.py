"""Strict YAML configuration: OmegaConf reads and overrides, pydantic checks; errors name file, key and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from ledgerlm.errors import ConfigError


class Conf(BaseModel):
    """Base of every configuration: frozen, keyword only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


C = TypeVar("C", bound=BaseModel)


def shipped(name: str) -> Path:
    """Path of a file of the shipped `conf/` folder (it may not exist)."""
    return Path(str(resources.files("ledgerlm"))) / "conf" / name


def find_file(name: str | Path, *, beside: Path | None = None) -> Path:
    """Finds a configuration or data file: beside the file that names it, in the shipped `conf/`, or as given.

    Raises:
        ConfigError: when it is in none of these places.
    """
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() else [*([beside / path] if beside else []), shipped(str(path)), path]
    for place in places:
        if place.exists():
            return place.resolve()
    raise ConfigError(f"no file {name!s}: looked at {', '.join(str(p) for p in places)}")


def load_yaml(path: Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads a YAML mapping, applies `key.sub=value` overrides and resolves `${...}` references.

    Args:
        path: the file.
        overrides: what wins over all else.
        changes: nested values that win over the file alone.

    Raises:
        ConfigError: unreadable YAML, not a mapping, an override without `=`, an unresolvable reference.
    """
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"--set {item!r} has no '='; write --set key.sub=value")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"{path}: a mapping of keys to values is expected at the top, not a list")
        if changes:
            loaded.merge_with(changes)
        for item in overrides:
            key, _, value = item.partition("=")
            # OmegaConf reads the value as YAML would; the key may lead through lists, as in fields.0.kind.
            OmegaConf.update(loaded, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
        content = OmegaConf.to_container(loaded, resolve=True)
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot be read as YAML, or a --set key leads nowhere: {error}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def nearest(word: str, words: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of `words`, else the list of them."""
    options = sorted(words)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(options)}"


def parse(model: type[C], content: Any, *, source: str, error: type[ConfigError] = ConfigError) -> C:
    """Checks `content` against `model`.

    Args:
        source: file (and key) that the content came from, for messages.
        error: leaf error to raise.

    Raises:
        ConfigError: listing each wrong key with its value and the nearest valid key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        lines = [_explain(model, item) for item in failure.errors()]
        raise error(f"{source}: " + "; ".join(dict.fromkeys(lines))) from failure


def _explain(model: type[BaseModel], item: Any) -> str:
    loc: tuple[Any, ...] = item["loc"]
    key = ".".join(str(part) for part in loc) or "(top)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(str(loc[-1]), _keys_at(model, loc[:-1]))}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"key '{key}': {message} (value: {item['input']!r})"


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Valid keys of the model that `loc` leads to; unions and containers are looked through."""
    current: list[type[BaseModel]] = [model]
    for part in loc:
        following: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(str(part))
            following += _models_in(field.annotation) if field is not None else []
        current = following or current
    return sorted({field.alias or name for candidate in current for name, field in candidate.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
