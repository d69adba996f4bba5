"""Where the tables of a lake lie: below a folder of any file system that Spark knows, or in a schema of a catalog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from ledgerlm.config import SCHEME
from ledgerlm.files import url_of

_PART = r"[A-Za-z_][\w-]*"
_CATALOG = re.compile(rf"^(?:{_PART}|`{_PART}`)\.(?:{_PART}|`{_PART}`)$")


@dataclass(frozen=True, slots=True)
class Home:
    """The place of a lake.

    Attributes:
        root: folder (with a scheme, or a path of this machine), or `catalog.schema`.
    """

    root: str

    @staticmethod
    def parse(text: str) -> Home:
        """A lake as a pipeline names it.

        `catalog.schema` is a schema of a catalog. Everything else is a folder; one without a scheme lies on this
        machine's file system (or on a share that is mounted there), whatever the default file system of Spark is, so
        that records and tables cannot part. A folder called `a.b` is written `./a.b`.
        """
        if _CATALOG.match(text):
            return Home(text.replace("`", ""))
        if SCHEME.match(text):
            return Home(text.rstrip("/"))
        return Home(str(Path(text).expanduser().absolute()))

    @property
    def is_catalog(self) -> bool:
        """Whether tables are addressed by name alone."""
        return bool(_CATALOG.match(self.root))

    @property
    def folder(self) -> Path | None:
        """The root as a folder of this machine, where it is one."""
        if self.is_catalog:
            return None
        if not SCHEME.match(self.root):
            return Path(self.root)
        parts = urlparse(self.root)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    def path(self, table: str) -> str:
        """Where the table lies: a URL, or its name in the catalog."""
        if self.is_catalog:
            return f"{self.root}.{table}"
        folder = self.folder
        return f"{self.root}/{table}" if folder is None else url_of(folder / table)

    def identifier(self, table: str) -> str:
        """The table in a SQL statement."""
        if self.is_catalog:
            return ".".join(f"`{part}`" for part in self.path(table).split("."))
        return f"delta.`{self.path(table)}`"
