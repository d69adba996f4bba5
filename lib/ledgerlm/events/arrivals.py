"""Which files of a source are new: known by their content, so that a name alone neither hides nor repeats one."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.errors import DataError, SpecError
from ledgerlm.events.files import Found, found_files, path_of
from ledgerlm.events.spec import DataSetSpec, source_of

_LARGEST_READ = 1 << 30  # bytes of a file at a URL that Spark hands over whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A file as it lies there.

    Attributes:
        path: absolute path, or URL.
        size: bytes.
        content: what tells it from any other: a hash of its bytes.
        entry: place of the first entry of `source.files` that means it.
    """

    path: str
    size: int
    content: str
    entry: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """The files of a source, seen against those that were taken before.

    Attributes:
        new: to be read.
        renamed: taken before under another name; not read again.
        known: taken before, as they are.
    """

    new: tuple[Arrived, ...]
    renamed: tuple[Arrived, ...]
    known: tuple[Arrived, ...]


def arrivals(here: Iterable[Arrived], taken: Mapping[str, str]) -> Arrivals:
    """Sorts the files of a source.

    Args:
        here: what lies there.
        taken: path -> content of what was taken before.

    Raises:
        DataError: a file has another content than when it was taken, or none.
    """
    contents = set(taken.values())
    new: list[Arrived] = []
    renamed: list[Arrived] = []
    known: list[Arrived] = []
    for one in here:
        before = taken.get(one.path)
        if before == one.content:
            known.append(one)
        elif before is not None:
            raise DataError(
                f"{one.path} was taken before with another content, so its old rows cannot be told from its new ones; "
                "give the new delivery a name of its own (rows of a known event id are corrections), put the old file "
                "back, or read everything anew with --fresh"
            )
        elif one.content in contents:
            renamed.append(one)
        else:
            if not one.size:
                raise DataError(
                    f"{one.path} has no content: a delivery that was cut off, it seems; deliver it again, or take it "
                    "away. Nothing was taken in"
                )
            contents.add(one.content)
            new.append(one)
    return Arrivals(new=tuple(new), renamed=tuple(renamed), known=tuple(known))


def event_files(spark: SparkSession, spec: DataSetSpec, content: Callable[[Found], str | None]) -> list[Arrived]:
    """The event files of a data set, each once.

    Args:
        spark: session; it reads what this machine cannot.
        spec: the data set; what Delta tables bring is told by their versions (`table_changes`).
        content: hash of a file of this machine; None of one elsewhere.

    Raises:
        SpecError: nothing is there.
    """
    source = source_of(spec)
    found: dict[str, Arrived] = {}
    for place, file in enumerate(source.files):
        if file.format == "delta":
            continue
        entry = found_files(spark, file, source)
        hashed = {one.path: content(one) for one in entry}
        elsewhere = [one for one in entry if hashed[one.path] is None]
        hashed |= _hashes_at(spark, elsewhere) if elsewhere else {}
        for one in entry:
            found.setdefault(
                one.path, Arrived(path=one.path, size=one.size, content=str(hashed[one.path]), entry=place)
            )
    return [found[path] for path in sorted(found)]


def joined_files(spark: SparkSession, spec: DataSetSpec, content: Callable[[Found], str | None]) -> dict[str, str]:
    """Path -> hash of the files whose columns every event gets: where one changes, all events do."""
    found: dict[str, str] = {}
    for join in spec.joins:
        if join.file.format == "delta":
            raise SpecError(
                f"ingest: append: the join file {path_of(join.file, source_of(spec))} is a Delta table; give a "
                "file, or let ingest read everything each time (append: false)"
            )
        entry = found_files(spark, join.file, source_of(spec))
        hashed = {one.path: content(one) for one in entry}
        elsewhere = [one for one in entry if hashed[one.path] is None]
        hashed |= _hashes_at(spark, elsewhere) if elsewhere else {}
        found |= {path: str(one) for path, one in hashed.items()}
    return found


def _hashes_at(spark: SparkSession, files: Sequence[Found]) -> dict[str, str]:
    """Hashes of files at URLs, read by Spark; of one that is too large for a row, of its size and time of change."""
    rows = spark.read.format("binaryFile").load([one.pattern for one in files])
    bytes_of = F.when(F.col("length") <= _LARGEST_READ, F.sha2("content", 256))
    instead = F.sha2(F.concat_ws(" ", F.col("length"), F.col("modificationTime").cast("string")).cast("binary"), 256)
    hashed = rows.select("path", F.coalesce(bytes_of, instead).alias("content"))
    return {row["path"]: row["content"] for row in hashed.toLocalIterator()}


def only_files(
    spec: DataSetSpec, files: Sequence[Arrived], others: Sequence[Arrived], tables: Collection[str] = ()
) -> DataSetSpec:
    """The data set with some of its event files and Delta tables alone.

    Args:
        spec: the data set.
        files: to be read.
        others: files that its patterns match and that are not to be read.
        tables: paths of tables to be read.
    """
    source = source_of(spec)
    left_out = tuple(glob.escape(one.path) for one in others)
    entries = tuple(
        file.model_copy(update={"leave_out": (*file.leave_out, *left_out), "empty": True})  # a day without an event
        for place, file in enumerate(source.files)
        if (path_of(file, source) in tables if file.format == "delta" else any(one.entry == place for one in files))
    )
    return spec.model_copy(update={"source": source.model_copy(update={"files": entries})})
