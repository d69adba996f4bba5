"""One run of a pipeline at a time: a lock of this machine, and where `out` is a URL, a file there that is made once.

Runs with other folders and the same lake are kept apart by the lake's lease (`ledgerlm.lake.leases`).
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ledgerlm.errors import ConfigError, InUseError
from ledgerlm.files import Place, create, drop, place_of
from ledgerlm.runs.keys import key_of
from ledgerlm.runs.record import now

if TYPE_CHECKING:
    from ledgerlm.lake.history import Author
    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.leases import Lease
    from ledgerlm.runs.pipeline import Pipeline

LOCK = "runs.lock"
_IDENTITY = "runs.id"


@contextmanager
def held(out: Path, pipeline: str) -> Iterator[None]:
    """Keeps other runs out of `out` while the block works.

    Args:
        out: the pipeline's folder, or the working copy of its URL.
        pipeline: its name, for messages.

    Raises:
        InUseError: another run is at work there.
        ConfigError: nothing can be written there.
    """
    lock = FileLock(out / LOCK, timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InUseError(
            f"{out} is in use by another run of pipeline {pipeline}; wait for it or give this one another folder with "
            "--set out=FOLDER"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"out: nothing can be written to {out}: {error.strerror or error}; give another folder with "
            "--set out=FOLDER"
        ) from error
    try:
        place = place_of(out)
        if place is None:
            yield
        else:
            with _held_at(place, pipeline):
                yield
    finally:
        lock.release()


def identity(out: Path) -> str:
    """What tells a folder from any other, its copies too; to be asked while its lock is held."""
    file = out / _IDENTITY
    if not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return f"{file.read_text(encoding='utf-8')} {out}"


@contextmanager
def at_work(pipeline: Pipeline, lake: Lake, verb: str) -> Iterator[tuple[Author, Lease]]:
    """Lets a command, which is no run, write to a lake on which nobody else works meanwhile.

    Args:
        pipeline: whose lake it is.
        lake: its tables.
        verb: name of the command.

    Yields:
        Who writes, and the lease, to be checked before each write.

    Raises:
        InUseError: a run is at work there.
    """
    from ledgerlm.lake.history import Author
    from ledgerlm.lake.leases import Holder, leased

    attempt = uuid.uuid4().hex
    by = Author(
        attempt=attempt,
        stage=f"{pipeline.name}/{verb}",
        run_id=f"{verb}-{attempt[:12]}",
        key=key_of(pipeline.spec) or "",
    )
    with held(pipeline.out, pipeline.name):
        holder = Holder(pipeline=pipeline.name, run_id=by.run_id, folder=identity(pipeline.out))
        with leased(lake, holder, pipeline.conf.lease_minutes * 60) as lease:
            yield by, lease


@contextmanager
def _held_at(place: Place, pipeline: str) -> Iterator[None]:
    """The same at a URL; this machine's own lock is held."""
    mine = {"copy": place.copy, "host": platform.node(), "pid": os.getpid(), "since": now()}
    owner: dict[str, Any] = json.loads(create(place, LOCK, json.dumps(mine)))
    if owner["copy"] == place.copy and owner != mine:
        # The lock of this very working copy, whose own lock is ours, is of a run that was killed.
        drop(place, LOCK)
        owner = json.loads(create(place, LOCK, json.dumps(mine)))
    if owner != mine:
        raise InUseError(
            f"{place.url} is in use by a run of pipeline {pipeline} on {owner['host']} (process {owner['pid']}) since "
            f"{owner['since']}; wait for it, or, if that machine is gone, delete {place.url}/{LOCK}"
        )
    try:
        yield
    finally:
        drop(place, LOCK)
