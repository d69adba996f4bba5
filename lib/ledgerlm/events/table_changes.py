"""What came and went in the Delta tables of a source since the versions that were taken in before.

The cheapest way that can be believed is taken:

* `feed`: the change data feed. It must have been on all the while, its files must be there, and it must add up: the
  rows that it says came, less those that went, are by how many the table grew.
* `versions`: the rows of both versions are compared, by their content.
* `lake`: all rows of the newest version are compared with the events that are there. So where the old version cannot be
  read, or says nothing of the lake: another table stands in its place, its versions went back, or a batch was killed
  that had read a version in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pyspark.errors import PySparkException
from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.engines.frames import settled
from ledgerlm.engines.session import setting
from ledgerlm.errors import SpecError
from ledgerlm.events.files import name_of, path_of
from ledgerlm.events.spec import DataSetSpec, source_of
from ledgerlm.events.typed_files import check_rows
from ledgerlm.lake.source_tables import CHANGE_TYPE, TableVersion, change_feed, has_version, newest_version, rows_at

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from ledgerlm.engines.frames import Keep

Way = Literal["whole", "feed", "versions", "lake"]
"""How it is found out what a table brings; `whole`: everything is read anew."""
_SAID = {
    "whole": "all of it",
    "feed": "by its change data feed",
    "versions": "by comparing the two versions",
    "lake": "by comparing it with the lake",
}
_PASS_OVER = ("spark.sql.files.ignoreMissingFiles", "spark.sql.files.ignoreCorruptFiles")
_HASH, _TIMES, _NTH = "_ledgerlm_hash", "_ledgerlm_times", "_ledgerlm_nth"


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenTable:
    """What was taken in of a table before.

    Attributes:
        at: the version.
        once: no event of it has ever stood in more than one row.
    """

    at: TableVersion
    once: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """The rows by which a version of a table differs from an earlier one.

    Attributes:
        came: rows that it has, and the earlier one had not.
        went: rows that the earlier one had, and it has not.
        counts: how many came and went.
    """

    came: DataFrame
    went: DataFrame
    counts: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableChange:
    """What a table brings.

    Attributes:
        path: folder, URL or name in a catalog.
        entry: place of the first entry of `source.files` that means it.
        at: the version that is taken in.
        since: the version that was taken in before; None where it does not matter.
        way: how it is found out what changed.
        why: why in none of the cheaper ways.
        net: rows that came and went; None where all rows are read.
        once: see `TakenTable`.
    """

    path: str
    entry: int
    at: TableVersion
    since: int | None = None
    way: Way
    why: str = ""
    net: Net | None = None
    once: bool = False

    @property
    def said(self) -> str:
        """In words."""
        versions = f"version {self.at.version}" if self.since is None else f"versions {self.since} to {self.at.version}"
        why = f", since {self.why}" if self.why else ""
        return f"{self.path}: {versions}, {_SAID[self.way]}{why}"

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        told = {"table": self.path, "table_id": self.at.table_id, "since": self.since, "version": self.at.version}
        return {**told, "way": self.way, "why": self.why}


def tables_of(spec: DataSetSpec) -> dict[str, int]:
    """Path of each Delta table whose rows are events -> place of the first entry that means it.

    Raises:
        SpecError: two of them could not be told apart by where their events come from.
    """
    source = source_of(spec)
    found: dict[str, int] = {}
    for place, file in enumerate(source.files):
        if file.format == "delta":
            found.setdefault(path_of(file, source), place)
    named: dict[str, str] = {}
    for path in found:
        if (other := named.setdefault(name_of(path), path)) != path:
            raise SpecError(
                f"ingest: append: events tell by {name_of(path)} which table they come from, and {other} and {path} "
                "both end so; move one of them, or let ingest read them whole (append: false)"
            )
    return found


def newest_versions(spark: SparkSession, spec: DataSetSpec) -> dict[str, TableVersion]:
    """Path of each Delta table whose rows are events -> its newest version.

    Raises:
        SpecError: there is no such table.
    """
    found = {path: newest_version(spark, path) for path in tables_of(spec)}
    gone = [path for path, at in found.items() if at is None]
    if gone:
        needs = source_of(spec).needs
        raise SpecError(f"source.path: no Delta table at {gone[0]}{f'; {needs}' if needs else ''}")
    return {path: at for path, at in found.items() if at is not None}


def table_changes(
    spark: SparkSession,
    spec: DataSetSpec,
    taken: Mapping[str, TakenTable],
    now: Mapping[str, TableVersion],
    *,
    half: bool,
    keep: Keep,
) -> list[TableChange]:
    """What each table brings that has another version than the one that was taken in.

    Args:
        spark: session.
        spec: the data set.
        taken: path -> what was taken in; empty: everything is read anew.
        now: path -> the version to take in.
        half: the lake may hold rows of versions that no batch tells of, of a batch that was killed.
        keep: computes a frame once.

    Returns:
        None of a table whose contents are as they were: it was compacted, or a change was taken back.

    Raises:
        SpecError: a table without rows.
    """
    found = []
    for path, entry in tables_of(spec).items():
        before, at = taken.get(path), now[path]
        if before is not None and before.at == at:
            continue
        if not source_of(spec).files[entry].empty:
            check_rows(rows_at(spark, path, at.version), path)
        change = TableChange(path=path, entry=entry, at=at, way="whole")
        if taken:
            change = _looked_into(change, before, spark, half=half, keep=keep)
        if change.net is None or any(change.net.counts):
            found.append(change)
    return found


def _looked_into(
    change: TableChange, before: TakenTable | None, spark: SparkSession, *, half: bool, keep: Keep
) -> TableChange:
    """The change with what came and went, in the cheapest way that can be believed."""
    from py4j.protocol import Py4JError

    why = _no_version_to_compare(spark, change, before, half=half)
    if why or before is None:
        return replace(change, way="lake", why=why, since=None if before is None else before.at.version)
    since = before.at.version
    versions = _Versions(spark=spark, path=change.path, since=since, until=change.at.version, keep=keep)
    ways: dict[Way, Callable[[], Net]] = {"feed": versions.fed, "versions": versions.compared}
    reasons: dict[str, None] = {}
    for way, look in ways.items():
        try:
            net = look()
        except _NotThisWay as reason:
            reasons[str(reason)] = None
        except (PySparkException, Py4JError) as error:
            reasons[_in_words(str(error))] = None
        else:
            why = "; ".join(reasons)
            return replace(change, way=way, why=why, since=since, net=net, once=before.once)
    return replace(change, way="lake", why="; ".join(reasons), since=since)


def _no_version_to_compare(spark: SparkSession, change: TableChange, before: TakenTable | None, *, half: bool) -> str:
    """Why the version that was taken in says nothing of what changed since; empty where it does."""
    at = change.at
    if before is None:
        return "no version of it was taken in before"
    if before.at.table_id != at.table_id:
        return f"it is another table than that of version {before.at.version}"
    if before.at.version > at.version:
        return f"its versions went back from {before.at.version}"
    if not has_version(spark, change.path, before.at, at.version):
        return f"its log has not the commit of version {before.at.version} any more"
    if half:
        return "a batch was killed that may have read a version in between"
    over = [name for name in _PASS_OVER if setting(spark, name, "false").lower() == "true"]
    return f"{over[0]} is set, by which a change can be passed over in silence" if over else ""


class _NotThisWay(Exception):
    """A way that cannot be believed, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Versions:
    """Two versions of a table."""

    spark: SparkSession
    path: str
    since: int
    until: int
    keep: Keep

    def fed(self) -> Net:
        """What came and went by the change data feed."""
        old, new = self._rows()
        if not _extended(old.schema, new.schema):
            # Delta does not look at the first commit of a range, and so would give what went without its values.
            raise _NotThisWay("columns went, or are of another type")
        rows = change_feed(self.spark, self.path, self.since, self.until)
        came = rows.where(F.col(CHANGE_TYPE).isin("insert", "update_postimage")).drop(CHANGE_TYPE)
        went = rows.where(F.col(CHANGE_TYPE).isin("delete", "update_preimage")).drop(CHANGE_TYPE)
        net = self._net(came, went)
        told, grown = net.counts[0] - net.counts[1], new.count() - old.count()
        if told != grown:
            raise _NotThisWay(f"its feed tells of {told:+} rows, and it grew by {grown:+}")
        return net

    def compared(self) -> Net:
        """What came and went by the rows of both versions."""
        old, new = self._rows()
        return self._net(new, old)

    def _rows(self) -> tuple[DataFrame, DataFrame]:
        return rows_at(self.spark, self.path, self.since), rows_at(self.spark, self.path, self.until)

    def _net(self, came: DataFrame, went: DataFrame) -> Net:
        """The same without what came and went, by content.

        Hashes alone go through the shuffle, and then the few rows that they tell of.
        """
        names = sorted({*came.columns, *went.columns})
        came, went = (rows.withColumn(_HASH, _content(rows, names)) for rows in (came, went))
        signed = came.select(_HASH, F.lit(1).alias("_sign")).unionByName(went.select(_HASH, F.lit(-1).alias("_sign")))
        sums = signed.groupBy(_HASH).agg(F.sum("_sign").alias(_TIMES)).where(F.col(_TIMES) != 0)
        sums = settled(sums, self.keep)
        more, less = sums.where(F.col(_TIMES) > 0), sums.where(F.col(_TIMES) < 0)
        came, went = (settled(_those(*one), self.keep) for one in ((came, more), (went, less)))
        # Here a file that is gone shows, and not where the rows are read.
        return Net(came=came, went=went, counts=(came.count(), went.count()))


def _those(rows: DataFrame, sums: DataFrame) -> DataFrame:
    """As many of the rows of each hash as there are to be."""
    same = Window.partitionBy(_HASH).orderBy(_HASH)
    numbered = rows.join(sums, _HASH).withColumn(_NTH, F.row_number().over(same))
    return numbered.where(F.col(_NTH) <= F.abs(_TIMES)).drop(_HASH, _TIMES, _NTH)


def _content(rows: DataFrame, names: Sequence[str]) -> Column:
    """A hash of a row by the names of its columns; of those that it lacks as of empty ones."""
    values = [_hashable(rows.schema[name]) if name in rows.columns else F.lit(None).cast("string") for name in names]
    # A hash of several columns passes over nulls, so they are hashed as such; two of them, since one has 64 bits.
    nulls = [value.isNull() for value in values]
    return F.struct(F.xxhash64(*values, *nulls), F.hash(*values, *nulls))


def _hashable(field: T.StructField) -> Column:
    column = F.col(f"`{field.name.replace('`', '``')}`")
    known = not any(kind in field.dataType.simpleString() for kind in ("map<", "variant"))
    return column if known else F.to_json(F.struct(column))


def _extended(old: T.StructType, new: T.StructType) -> bool:
    """Whether the new columns are the old ones and perhaps more."""
    first, second = ({(field.name, field.dataType.simpleString()) for field in one} for one in (old, new))
    return first <= second


def _in_words(error: str) -> str:
    if "DELTA_MISSING_CHANGE_DATA" in error:
        return "its change data feed was not on all the while"
    if any(one in error for one in ("FILE_NOT_EXIST", "FileNotFound", "DELTA_VERSION_NOT_FOUND")):
        return "files of old versions are gone (VACUUM)"
    return error.splitlines()[0]


def report_of_tables(changes: Sequence[TableChange]) -> list[dict[str, Any]]:
    """A section of the report; none where no table changed."""
    if not changes:
        return []
    rows = [
        [one.path, "" if one.since is None else one.since, one.at.version, _SAID[one.way], one.why] for one in changes
    ]
    columns = ["table", "taken before", "version", "what changed was found", "not in a cheaper way, since"]
    return [{"title": "How Delta tables were read", "blocks": [{"kind": "table", "columns": columns, "rows": rows}]}]
