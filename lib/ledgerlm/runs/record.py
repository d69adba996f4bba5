"""Records that outlive the process: what a run set out to do, and what each stage has finished."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ledgerlm
from ledgerlm.errors import ArtefactError

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
    """Writes JSON so that a kill leaves the old file or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python, ledgerlm and the engines."""
    return {
        "python": platform.python_version(),
        "ledgerlm": ledgerlm.__version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


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
class StageRecord:
    """Completion record of a stage, `runs/stages/NAME.json`.

    Attributes:
        name: stage.
        job: verb.
        engine: what did the work.
        fingerprint: hash of all that decides the result.
        attempt: grows with each start of the stage; Delta writes carry it.
        done: whether the stage came to its end.
        run_id: run that did the work.
        seconds: wall time of the work.
        rows_in: rows read.
        rows_out: rows written.
        quarantined: rows set aside with a reason.
        duplicates: rows dropped because their key was there already.
        tables: table to Delta version.
        artefacts: folders written outside the lake.
        facts: JSON values for the report and later stages.
        finished_at: instant of the end.
    """

    name: str
    job: str
    engine: str
    fingerprint: str
    attempt: int
    done: bool = False
    run_id: str = ""
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    duplicates: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)
    artefacts: Sequence[str] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    finished_at: str = ""


class Records:
    """The completion records below `out/runs/stages/`."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "runs" / "stages"

    def load(self, name: str) -> StageRecord | None:
        """Record of the stage, or None before its first start.

        Raises:
            ArtefactError: when the file is not a record.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            return StageRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ArtefactError(f"{path} is not a stage record: {error}; delete it and run again") from error

    def save(self, record: StageRecord) -> None:
        """Writes the record, whole or not at all."""
        write_json(self.folder / f"{record.name}.json", asdict(record))

    def begin(self, name: str, job: str, engine: str, fingerprint: str, run_id: str) -> StageRecord:
        """Records that the stage starts.

        An attempt that was cut off with the same fingerprint goes on under its number, so that what it has committed
        is not committed again; any other start takes the next number.
        """
        last = self.load(name)
        if last is not None and not last.done and last.fingerprint == fingerprint:
            record = replace(last, run_id=run_id)
        else:
            record = StageRecord(
                name=name,
                job=job,
                engine=engine,
                fingerprint=fingerprint,
                attempt=last.attempt + 1 if last else 1,
                run_id=run_id,
            )
        self.save(record)
        return record
