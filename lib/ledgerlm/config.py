"""Strict YAML configuration: OmegaConf reads and overrides, pydantic checks; errors name file, key and remedy.

A setting that names something outside itself has a type that says what: `StageName`, `HeadRef`, `ModelRef`, `FileName`.
So what a configuration builds on is found in its values (`references`), and no job lists it by hand.
"""

from __future__ import annotations

import atexit
import difflib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema
from yaml import YAMLError

from ledgerlm.errors import ConfigError


class Conf(BaseModel):
    """Base of every configuration: frozen, keyword only, unknown keys refused.

    Attributes:
        HOW: settings that say how the work is done, not what comes of it (how many workers, say), or what may come in
            from now on; they may change between two attempts of a stage and are no part of its definition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    HOW: ClassVar[frozenset[str]] = frozenset()

    def not_defining(self) -> frozenset[str]:
        """Settings that are no part of a definition: HOW, and what follows from others."""
        return self.HOW


SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
"""What a URL begins with (`s3a://`, `dbfs:/`, `file:`)."""

C = TypeVar("C", bound=BaseModel)
R = TypeVar("R", bound="Reference")


class Reference(str):
    """Text of a setting that names something outside itself."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """A string of at least one character, kept as this type."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class StageName(Reference):
    """A stage of the same pipeline, before this one."""

    __slots__ = ()


class HeadRef(Reference):
    """`STAGE` for the one head of a stage before this one, or `STAGE:NAME` for one of several."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """A string `STAGE` or `STAGE:NAME`."""
        pattern = r"^[^:\s]+(:[^:\s]+)?$"
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(pattern=pattern))

    @property
    def stage(self) -> str:
        """The stage."""
        return self.partition(":")[0]

    @property
    def name(self) -> str | None:
        """The head's name, where one is given."""
        return self.partition(":")[2] or None


class ModelRef(Reference):
    """A stage before this one that leaves a model folder, or such a folder."""

    __slots__ = ()


class FileName(Reference):
    """A file: beside the pipeline file, a path from here, or one of the shipped `conf/`."""

    __slots__ = ()


def references(value: Any, kind: type[R]) -> Iterator[R]:
    """All references of one type in a configuration, however deep."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from references(getattr(value, name), kind)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from references(one, kind)
    elif isinstance(value, Sequence | frozenset) and not isinstance(value, str):
        for one in value:
            yield from references(one, kind)


def all_settings(model: type[BaseModel], _within: tuple[type[BaseModel], ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a configuration, however deep, with what is known of it.

    Args:
        model: the configuration.

    Yields:
        The key as `--set` takes it, with NAME for a name of one's own and 0 for a place in a list, and its field.
    """
    for name, field in model.model_fields.items():
        key = field.alias or name
        yield key, field
        for place, inner in _inner_models(field.annotation):
            if inner not in (model, *_within):
                for below, one in all_settings(inner, (model, *_within)):
                    yield ".".join((key, *place, below)), one


def _inner_models(kind: Any) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Configurations inside a type, each with the way to it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield (), kind
    origin = get_origin(kind)
    step = {dict: ("NAME",), Mapping: ("NAME",), tuple: ("0",), list: ("0",), Sequence: ("0",)}.get(origin, ())
    for part in get_args(kind):
        for place, inner in _inner_models(part):
            yield (*step, *place), inner


def shipped(name: str) -> Path:
    """Path of a file of the shipped `conf/` folder (it may not exist)."""
    return _shipped_folder() / name


@lru_cache(maxsize=1)
def _shipped_folder() -> Path:
    """The shipped `conf/`; out of an archive from which the package is imported (`--py-files`) it is unpacked."""
    package = resources.files("ledgerlm")
    if isinstance(package, Path):
        return package / "conf"
    unpacked = Path(tempfile.mkdtemp(prefix="ledgerlm-conf-"))
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    _unpack(package / "conf", unpacked)
    return unpacked


def _unpack(folder: Traversable, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir():
            _unpack(entry, to / entry.name)
        else:
            (to / entry.name).write_bytes(entry.read_bytes())


def find_file(name: str | Path, *, beside: Path | None = None) -> Path:
    """Finds a configuration or data file: beside the file that names it, as given, or in the shipped `conf/`.

    So a file of one's own is never passed over for one that is shipped under the same name.

    Raises:
        ConfigError: when it is in none of these places.
    """
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() else [*([beside / path] if beside else []), path, shipped(str(path))]
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
        ConfigError: unreadable YAML, not a mapping, an override without `=`, an unresolvable reference, a value `???`.
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
            # OmegaConf reads the value as YAML would; the key may lead through lists, as in fields.0.kind. A reference
            # stays one until all are resolved, so that what it gives is known as the environment's.
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
            OmegaConf.update(loaded, key, read["value"], force_add=True)
        if left := sorted(OmegaConf.missing_keys(loaded)):
            raise ConfigError(
                f"{path}: {', '.join(left)}: ??? stands where you must choose; the comment above it says between what"
            )
        content = OmegaConf.to_container(loaded, resolve=True)
        _FROM_ENVIRONMENT.update(_environment_values(OmegaConf.to_container(loaded, resolve=False), content))
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}; give a text file in UTF-8") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot be read as YAML, or a --set key leads nowhere: {error}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


# What the environment has given to configurations of this process, and the reference that asked for it.
_FROM_ENVIRONMENT: dict[str, str] = {}
_ENVIRONMENT = re.compile(r"\$\{oc\.env:")
_SHORTEST = 6  # characters: replacing each `1` or `true` would spoil what is written, and hide nothing
_REDACTED = "*********(redacted)"  # Spark's own word
# Spark's pattern (spark.redaction.regex) and the words for such things in other clients, Azure's storage among them;
# `max_tokens` is none of them.
_SECRET_KEY = re.compile(
    r"(?i)secret|passw|credential|(api|access|account|private)[._-]?key|(^|[._-])sas($|[._-])|(^|[._-])token($|\.)"
)
# What stands in an address: Connect's token, a signature that lends a file, a password before the host.
_SECRET_VALUE = re.compile(
    r"(?i)((?<=[;?&])(?:token|access_token|sig|signature|password|x-amz-(?:signature|security-token))=)[^;&\s\"']+"
    r"|(://[^/\s:@]+:)[^/\s@]+(?=@)"
)


def _environment_values(written: Any, resolved: Any) -> dict[str, str]:
    """Values that came from the environment -> the reference as it is written."""
    if isinstance(written, Mapping) and isinstance(resolved, Mapping):
        pairs = [(one, resolved.get(key)) for key, one in written.items()]
    elif isinstance(written, list) and isinstance(resolved, list):
        pairs = list(zip(written, resolved, strict=True))
    else:
        came = isinstance(written, str) and _ENVIRONMENT.search(written) and len(str(resolved)) >= _SHORTEST
        return {str(resolved): str(written)} if came else {}
    found: dict[str, str] = {}
    for one, other in pairs:
        found |= _environment_values(one, other)
    return found


def without_secrets(value: Any) -> Any:
    """JSON values as they may be written down: references in place of what the environment gave, secrets redacted.

    A text under a key that speaks of a secret (a password, a token, an API key) is replaced by Spark's word for it, and
    so is what an address has of the kind.
    """
    if isinstance(value, Mapping):
        return {str(key): _redacted(str(key), without_secrets(one)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    if isinstance(value, str):
        for given, reference in _FROM_ENVIRONMENT.items():
            value = value.replace(given, reference) if given in value else value
        return _addresses_redacted(value)
    return value


def message_without_secrets(text: str) -> str:
    """A message for people: what engines and servers say of an address may hold its password.

    What the environment gave stays readable, such as the folder of the data, but for what its name calls a secret.
    """
    for given, reference in _FROM_ENVIRONMENT.items():
        if _SECRET_KEY.search(reference):
            text = text.replace(given, _REDACTED)
    return _addresses_redacted(text)


def _addresses_redacted(text: str) -> str:
    return _SECRET_VALUE.sub(lambda found: f"{found[1] or found[2]}{_REDACTED}", text)


def _redacted(key: str, value: Any) -> Any:
    shown = not isinstance(value, str) or not value or _ENVIRONMENT.search(value)
    return value if shown or not _SECRET_KEY.search(key) else _REDACTED


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
