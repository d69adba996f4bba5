"""Which files an entry of a spec means: every one that its pattern matches is read, left out by name, or refused."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import SpecError
from ledgerlm.events.spec_files import FileSpec, SourceSpec
from ledgerlm.lake.source_tables import in_catalog

# What Spark, Delta and desktops put beside data. Other names that begin with _ or . are somebody's data.
_MARKS = ("_SUCCESS", "_committed_*", "_started_*", "_metadata", "_common_metadata", "_delta_log", "*.crc", "._*",
          ".DS_Store", "_temporary", ".part-*")  # fmt: skip
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_PARTITION = re.compile(r"^([^=/]+)=([^/]*)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One file.

    Attributes:
        path: absolute path, or URL.
        size: bytes.
        partitions: values of the folders `key=value` above it, as text.
    """

    path: str
    size: int
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def local(self) -> bool:
        """Whether Python may open it."""
        return "://" not in self.path and not self.path.startswith("dbfs:/")

    @property
    def pattern(self) -> str:
        """The path as Spark takes it literally."""
        return re.sub(r"([\\*?\[\]{}])", r"\\\1", self.path)


def is_url(path: str) -> bool:
    """Whether Spark, not this machine's file system, knows where `path` is."""
    return "://" in path or path.startswith(("dbfs:/", "file:/"))


def path_of(file: FileSpec, source: SourceSpec) -> str:
    """The pattern of an entry below the path of its source; of a table of a catalog its name.

    Raises:
        SpecError: when the source has no path.
    """
    if file.format == "delta" and in_catalog(file.glob):
        return file.glob
    if is_url(file.glob) or Path(file.glob).is_absolute():
        return file.glob
    if not source.path:
        raise SpecError(f"source.path is empty; {source.needs or 'give it with --set source.path=FOLDER'}")
    folder = source.path.rstrip("/")
    return f"{folder if is_url(folder) else glob.escape(folder)}/{file.glob}"


def local_files(path: str) -> list[Path]:
    """Files that a local pattern matches, those in matched folders included, by name."""
    roots = sorted({name for one in _alternatives(path) for name in glob.glob(one, include_hidden=True)})  # noqa: PTH207
    found = (one for root in map(Path, roots) for one in (root.rglob("*") if root.is_dir() else [root]))
    return sorted({one for one in found if one.is_file()})


def name_of(path: str) -> str:
    """What `source_file` says of the rows of a file or of a table: the last two parts of its path."""
    return "/".join(path.split("/")[-2:])


def table_names(source: SourceSpec | None) -> list[str]:
    """`source_file` of the events of each Delta table."""
    if source is None:
        return []
    return sorted({name_of(path_of(file, source)) for file in source.files if file.format == "delta"})


def is_here(file: FileSpec, source: SourceSpec) -> bool:
    """Whether the files of an entry lie on this machine."""
    path = path_of(file, source)
    return not (is_url(path) or in_catalog(path)) or path.startswith("file:/")


def found_files(spark: SparkSession | None, file: FileSpec, source: SourceSpec) -> list[Found]:
    """The files of an entry, by name.

    Args:
        spark: lists what lies at a URL; None where the files are on this machine.
        file: the entry.
        source: its path, and what to say when nothing is there.

    Raises:
        SpecError: when there is none, or one that Spark would pass over without a word.
    """
    path = path_of(file, source)
    if spark is not None and not is_here(file, source):
        listed = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(path)
        files = [Found(path=row["path"], size=row["length"]) for row in listed.select("path", "length").collect()]
    else:
        files = [Found(path=str(one), size=one.stat().st_size) for one in local_files(_plain(path))]
    kept = [one for one in files if _wanted(one, file)]
    if not kept:
        raise SpecError(_nothing(path, files, source))
    if file.format == "parquet":
        _refuse_tables(files)
    return [
        Found(path=one.path, size=one.size, partitions=partitions_of(one.path))
        for one in sorted(kept, key=lambda one: one.path)
    ]


def _refuse_tables(files: Sequence[Found]) -> None:
    """Refuses Parquet files of a table, some of which hold rows that were deleted or written over since.

    Raises:
        SpecError: a folder above a file holds the log of a table.
    """
    logs = [one.path.partition("/_delta_log/")[0] for one in files if "/_delta_log/" in one.path]
    folders = {Path(one.path).parent for one in files if one.local}
    folders |= {above for one in folders for above in one.parents if _PARTITION.match(one.name)}
    logs += [str(folder) for folder in sorted(folders) if (folder / "_delta_log").is_dir()]
    if logs:
        raise SpecError(
            f"{logs[0]} is a Delta table, and some of its files hold rows that were deleted since; read it with "
            "'format: delta'"
        )
    others = {".hoodie": "a Hudi table", "../metadata": "an Iceberg table"}
    for folder in sorted(folders):
        for mark, what in others.items():
            if (folder / mark).is_dir() and (mark == ".hoodie" or any((folder / mark).glob("*.metadata.json"))):
                raise SpecError(
                    f"{folder} belongs to {what}, and some of its files hold rows that were deleted since; export its "
                    "rows, or read it where they are a Delta table"
                )


def partition_value(name: str, path: str) -> Column:
    """Text of the folder `name=value` above a row's file; null where the folder says that there is none.

    Args:
        name: of the folder.
        path: column with the URI of the file.
    """
    part = F.regexp_extract(path, f"/{re.escape(_quoted(name))}=([^/]*)/", 1)
    # A URL decoder takes + for a blank; and what stands in a folder's name is encoded once more in its URI.
    text = F.url_decode(F.replace(part, F.lit("+"), F.lit("%2B")))
    text = F.url_decode(F.replace(text, F.lit("+"), F.lit("%2B")))
    return F.when(~text.isin(_NO_VALUE, ""), text)


def in_order_of_names(path: str) -> tuple[tuple[str, int], ...]:
    """A key by which numbers in names stand in their order: `night-9.csv` before `night-10.csv`."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path)
    return tuple((text, int(number or -1)) for text, number in parts)


def decoded_path(uri: Column | str) -> Column:
    """The path of a file as `Found` has it, from Spark's URI of it."""
    # A URL decoder takes + for a blank.
    text = F.url_decode(F.replace(F.col(uri) if isinstance(uri, str) else uri, F.lit("+"), F.lit("%2B")))
    return F.regexp_replace(text, "^file:/+", "/")


def _quoted(name: str) -> str:
    return name.replace("%", "%25").replace(" ", "%20")


def _plain(path: str) -> str:
    return unquote(urlsplit(path).path) if path.startswith("file:/") else path


def _alternatives(path: str) -> Iterator[str]:
    """Spark's {a,b} as patterns of their own."""
    found = re.search(r"\{([^{}]*)\}", path)
    if found is None:
        yield path
        return
    for one in found.group(1).split(","):
        yield from _alternatives(path[: found.start()] + one + path[found.end() :])


def _wanted(one: Found, file: FileSpec) -> bool:
    parts = one.path.split("/")
    name = parts[-1]
    if any(fnmatch.fnmatch(one.path if "/" in pattern else name, pattern) for pattern in file.leave_out):
        return False
    folders = [part for part in parts[:-1] if any(fnmatch.fnmatch(part, mark) for mark in ("_delta_log", "_temporary"))]
    if folders or any(fnmatch.fnmatch(name, mark) for mark in _MARKS):
        return False
    if name.startswith((".", "_")) and not _PARTITION.match(name):
        raise SpecError(
            f"{one.path}: the pattern {file.glob} matches it, but Spark passes over names that begin with _ or .; "
            "rename it, or name it under 'leave_out'"
        )
    if name.lower().endswith((".zip", ".7z", ".rar", ".xlsx", ".xls")):
        raise SpecError(f"{one.path}: an archive or a workbook cannot be read; unpack it, or save it as csv or Parquet")
    return True


def _nothing(path: str, files: list[Found], source: SourceSpec) -> str:
    hint = f"; {source.needs}" if source.needs else ""
    left = f": {len(files)} files there are left out or are marks of other programs" if files else ": nothing is there"
    return f"source.path: cannot read {path}{left}{hint}"


def partitions_of(path: str) -> tuple[tuple[str, str | None], ...]:
    """Values of the folders `key=value` above a file, as text."""
    found = (_PARTITION.match(part) for part in path.split("/")[:-1])
    pairs = ((one.group(1), unquote(one.group(2))) for one in found if one)
    return tuple((unquote(key), None if value in (_NO_VALUE, "") else value) for key, value in pairs)
