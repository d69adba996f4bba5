"""Identity of files: content hashes, read once while size and time stay; of URLs what Spark's file system tells."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from ledgerlm.config import SCHEME
from ledgerlm.lake.source_tables import in_catalog, newest_version
from ledgerlm.runs.record import digest, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import SparkSession

    from ledgerlm.events.files import Found

_GONE = "not there"
_PATTERN = re.compile(r"[*?\[{]")


def matches(place: str) -> list[Path] | None:
    """What a path or a glob names on this machine, in order of names; None for what Spark alone can find.

    That is a URL of another file system, and a table of a catalog.
    """
    parts = urlparse(place)
    if in_catalog(place):
        return None
    if SCHEME.match(place) and parts.scheme != "file":
        return None
    pattern = unquote(parts.path) if parts.scheme == "file" else place
    return [Path(one) for one in sorted(glob.glob(pattern))]  # noqa: PTH207 (the pattern is absolute)


class Hashes:
    """Content hashes of files of this machine, remembered below `out` by size and time of change.

    Args:
        memory: JSON file that remembers.
        session: gives a Spark session, which is only asked for URLs of other file systems.
    """

    def __init__(self, memory: Path, session: Callable[[], SparkSession]) -> None:
        self._memory = memory
        self._session = session
        self._known: dict[str, list[Any]] = {}
        self._loaded = False

    def of(self, place: str) -> str:
        """Identity of what a path, a glob, a folder or a URL holds.

        A Delta table is known by its newest version, wherever it is. On another file system, names, lengths and times
        of change stand for the content, since reading it would cost as much as the work.
        """
        roots = matches(place)
        if roots is None:
            table = None if _PATTERN.search(place) else newest_version(self._session(), place)
            return self._listed(place) if table is None else digest([place, table.model_dump()])
        return digest([self._of_root(root) for root in roots]) if roots else _GONE

    def _of_root(self, root: Path) -> Any:
        """A file by its content; a Delta table by its newest version; a folder by what is in it."""
        if not root.is_dir():
            return [str(root), self.content(root)]
        log = root / "_delta_log"
        if log.is_dir():
            newest = max(log.glob("*.json"), default=None)
            # Its content too: a table that was made anew counts its versions from 0 again.
            return [str(root), newest and [newest.name, self.content(newest)]]
        return [str(root), [self._of_root(one) for one in sorted(root.iterdir())]]

    def content(self, file: Path) -> str:
        """SHA-256 of a file."""
        self._load()
        stat, key = file.stat(), str(file)
        found = self._known.get(key)
        if found is None or found[:2] != [stat.st_size, stat.st_mtime_ns]:
            with file.open("rb") as content:
                sha = hashlib.file_digest(content, "sha256").hexdigest()
            found = self._known[key] = [stat.st_size, stat.st_mtime_ns, sha]
        return str(found[2])

    def found(self, file: Found) -> str | None:
        """SHA-256 of a file of this machine; None of one elsewhere."""
        return self.content(Path(file.path)) if file.local else None

    def save(self) -> None:
        """Remembers what was read."""
        if self._loaded:
            write_json(self._memory, self._known)

    def _load(self) -> None:
        if not self._loaded and self._memory.exists():
            try:
                self._known = json.loads(self._memory.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}  # it only saves time
        self._loaded = True

    def _listed(self, url: str) -> str:
        from pyspark.errors import PySparkException

        reader = self._session().read.format("binaryFile").option("recursiveFileLookup", "true")
        try:
            listing = reader.load(url)
            rows = listing.select("path", "length", "modificationTime").collect()  # one row a file, no content
        except PySparkException:
            return _GONE  # the stage that reads it says so better
        return digest(sorted([row["path"], row["length"], row["modificationTime"].isoformat()] for row in rows))
