"""Records that outlive the process: what a run set out to do, and what each stage has finished."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ledgerlm
from ledgerlm.config import without_secrets
from ledgerlm.errors import ArtefactError, ConfigError
from ledgerlm.files import place_of, push, restore
from ledgerlm.lake.history import State
from ledgerlm.lake.slices import Slice

# Raised when records are read in another way; older ones are then done again.
_FORM = 2
_FINISHED = "finished"
NIGHT = "night"
"""Among the files that a stage consumes: the time as of which everybody is asked."""
_PACKAGES = (
    "pyspark",
    "delta-spark",
    "ray",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "lightgbm",
    "scikit-learn",
    "numpy",
    "pandas",
    "pyarrow",
)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a kill leaves the old file or the new one, never half of either; secrets stay out.

    Raises:
        ConfigError: when nothing can be written there.
    """
    text = json.dumps(without_secrets(value), indent=2, default=str, ensure_ascii=False) + "\n"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; give another folder with --set out="
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python, ledgerlm and the engines that are installed."""
    found = {name: version_of(name) for name in _PACKAGES}
    installed = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), "ledgerlm": ledgerlm.__version__, **installed}


def version_of(package: str) -> str | None:
    """Version of an installed package; an executor or a small driver need not have them all."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_OUT = "{out}"


def portable(value: Any, out: Path) -> Any:
    """JSON values with `{out}` in place of the pipeline's folder, so that it may be moved."""
    if isinstance(value, Mapping):
        return {key: portable(one, out) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable(one, out) for one in value]
    root = f"{out}{os.sep}"
    return f"{_OUT}{os.sep}{value.removeprefix(root)}" if isinstance(value, str) and value.startswith(root) else value


def located(value: Any, out: Path | str) -> Any:
    """The values of `portable` with the folder, or the URL, as it is now."""
    if isinstance(value, Mapping):
        return {key: located(one, out) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [located(one, out) for one in value]
    root = f"{_OUT}{os.sep}"
    return f"{out}{os.sep}{value.removeprefix(root)}" if isinstance(value, str) and value.startswith(root) else value


def git_commit(folder: Path) -> str | None:
    """Commit that `folder` stands at, with `+` when the tree has changes; None outside a repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a wheel on a cluster has no repository, and that is no error
    return answer.stdout.strip()


def now() -> str:
    """The present instant, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRecord:
    """What a stage wrote of one table.

    Attributes:
        version: Delta version that holds its rows.
        rows: rows that it wrote.
        slice: the part that it replaced.
        state: newest commit of the slice after the write; while it is the newest, the rows stand.
    """

    version: int
    rows: int
    slice: Slice
    state: State | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a stage has consumed; it stands while a look at the same things finds the same.

    Attributes:
        tables: table -> the newest commit of each slice that it saw, in the order of the stages that wrote them;
            null for a slice (or an optional table) that was not there.
        stages: name that was asked for -> STAGE@ATTEMPT whose facts or folders were used.
        origins: name that was asked for -> the attempt that made all that stage's rows; later ones followed batches.
        files: name of a file or a source -> its content hash, or its version.
    """

    tables: Mapping[str, Sequence[State | None]] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """Record of a stage, `runs/stages/NAME.json`: written as it starts, and again as it ends.

    Attributes:
        name: stage.
        job: verb.
        engine: what did the work.
        definition: hash of what the stage is: job and its results version, settings, seed, data set, packages.
        attempt: identity of this attempt, in the record before the work and in every commit.
        done: whether the stage came to its end.
        run_id: run that did the work.
        seconds: wall time of the work.
        rows_in: rows read.
        rows_out: rows written.
        quarantined: rows set aside with a reason.
        duplicates: rows dropped because their key was there already.
        withdrawn: rows that take others away, and those that they take away.
        since: newest batch that its rows reflected before this attempt; None where it starts from nothing.
        origin: the attempt that started from nothing and that this one goes on from; itself, or an earlier one.
        batch: newest batch that its rows reflect, of a stage that follows batches.
        tables: what it wrote.
        inputs: what it consumed.
        artefacts: what it wrote outside the lake; relative to `out` where it lies below it.
        facts: JSON values for the report and later stages.
        finished_at: instant of the end.
        failure: why the newest attempt did not come to its end, if it could say so.
    """

    name: str
    job: str
    engine: str
    definition: str
    attempt: str
    done: bool = False
    run_id: str = ""
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    duplicates: int = 0
    withdrawn: int = 0
    since: int | None = None
    origin: str = ""
    batch: int | None = None
    tables: Mapping[str, TableRecord] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=Inputs)
    artefacts: Sequence[str] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    finished_at: str = ""
    failure: str = ""


def _state(content: Mapping[str, Any] | None) -> State | None:
    return None if content is None else State(**content)


def _read(content: Mapping[str, Any]) -> StageRecord:
    """The record that a JSON file holds."""
    tables = {
        name: TableRecord(
            version=one["version"],
            rows=one["rows"],
            slice={column: tuple(values) for column, values in one["slice"].items()},
            state=_state(one["state"]),
        )
        for name, one in content["tables"].items()
    }
    seen = {name: [_state(state) for state in states] for name, states in content["inputs"]["tables"].items()}
    inputs = Inputs(**{**content["inputs"], "tables": seen})
    return StageRecord(**{**content, "tables": tables, "inputs": inputs})


class Records:
    """The records below `out/runs/stages/`; paths below `out` are kept as `{out}/…`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out / "runs" / "stages"

    def load(self, name: str) -> StageRecord | None:
        """Record of the stage, or None before its first start; one of another form of records counts as none.

        Raises:
            ArtefactError: when the file is damaged.
        """
        return self._load(self.folder / f"{name}.json")

    def finished(self, name: str) -> StageRecord | None:
        """Record of the stage's newest attempt that came to its end, whatever has been tried since."""
        return self._load(self.folder / _FINISHED / f"{name}.json")

    def run_ids(self) -> list[str]:
        """The runs of the pipeline that this machine knows of, oldest first."""
        there = self.folder.parent.iterdir() if self.folder.parent.is_dir() else ()
        return sorted(one.name for one in there if one.is_dir() and one != self.folder)

    def _load(self, path: Path) -> StageRecord | None:
        if not path.exists():
            return None
        try:
            content = located(json.loads(path.read_text(encoding="utf-8")), self._out)
            return _read(content) if content.pop("form", 1) == _FORM else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(
                f"{path} is not a stage record ({type(error).__name__}: {error}); "
                "delete it: the stage is then done again"
            ) from error

    def save(self, record: StageRecord) -> None:
        """Writes the record, whole or not at all."""
        content = portable(asdict(record), self._out) | {"form": _FORM}
        # What was finished is kept first: a kill between the two leaves an attempt that goes on.
        for folder in ((self.folder / _FINISHED,) if record.done else ()) + (self.folder,):
            file = folder / f"{record.name}.json"
            write_json(file, content)
            push(file)

    def fetch(self) -> None:
        """Takes the records as they are where `out` lies; they may be another machine's."""
        if place_of(self.folder) is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            restore(self.folder)
