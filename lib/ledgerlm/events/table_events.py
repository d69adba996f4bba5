"""Which rows of a Delta table are read for what changed in it, and which events it holds no more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.engines.frames import settled
from ledgerlm.events.appending import hashed_id, without_number
from ledgerlm.events.columns import FILE, KEY
from ledgerlm.events.files import name_of, path_of
from ledgerlm.events.ingest import hidden_ids
from ledgerlm.events.judging import judged_entry
from ledgerlm.events.spec import DataSetSpec, source_of
from ledgerlm.events.table_changes import TableChange
from ledgerlm.events.table_rows import TableRows, key_of
from ledgerlm.lake.source_tables import rows_at

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from ledgerlm.engines.frames import Keep

_EVENT = ("client_id", "_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEvents:
    """What is read of a table.

    Attributes:
        change: what it brings.
        rows: its rows that are judged: with them all that it holds of the events that they are of.
        touched: client_id and _id, as the lake has them, of the events that changed; None: any may have.
    """

    change: TableChange
    rows: TableRows
    touched: DataFrame | None = None

    def gone(self, standing: DataFrame, delivered: DataFrame, spec: DataSetSpec) -> DataFrame:
        """Events that are there and that the table holds no more, as rows that take them away.

        Args:
            standing: the `events` table.
            delivered: the events that its rows gave.
            spec: the data set.
        """
        name = name_of(self.change.path)
        mine = standing.select("client_id", "event_id", _base(spec).alias("_id"), FILE)
        if self.touched is None:
            mine = mine.where(F.col(FILE) == name)
        else:
            mine = mine.join(self.touched, [*_EVENT], how="left_semi")
        key = ["client_id", "event_id"]
        away = mine.select(*key).join(delivered.select(*key), key, how="left_anti")
        told = {"client_id": F.col("client_id"), "event_id": F.col("event_id"), FILE: F.lit(name), "_gone": F.lit(True)}
        return away.select(
            *(
                told.get(field.name, F.lit(None)).cast(field.dataType).alias(field.name)
                for field in delivered.schema.fields
            )
        )


def table_events(
    spark: SparkSession, spec: DataSetSpec, change: TableChange, standing: DataFrame | None, keep: Keep
) -> TableEvents:
    """Chooses what is read of a table: as little as tells all that it holds of each event that changed.

    Where no event has ever stood in more than one row, the rows that came are all that there is of their events. Else
    rows that stayed may be of an event that changed (a second row of an id; the second of two equal rows without ids):
    then the rows of these events are picked out of the table.

    Args:
        spark: session.
        spec: the data set.
        change: what the table brings.
        standing: the `events` table; None where everything is read anew.
        keep: computes a frame once.
    """
    whole = rows_at(spark, change.path, change.at.version)
    net = change.net
    if net is None or standing is None:
        return TableEvents(change=change, rows=TableRows(rows=whole))
    # A bad row that went has made no event: one that is there is of another row.
    flags = ((net.came, F.lit(False)), (net.went, F.col("_good")))
    sides = [
        _keys(spark, spec, change.path, rows).withColumn("_went", flag)
        for (rows, flag), count in zip(flags, net.counts, strict=True)
        if count
    ]
    both = reduce(lambda one, other: one.unionByName(other), sides)
    keys = settled(both.groupBy(KEY, *_EVENT).agg(F.max("_went").alias("_went")), keep)
    touched = keys.where(F.col("client_id").isNotNull() & F.col("_id").isNotNull()).select(*_EVENT, "_went")
    rows = TableRows(rows=net.came)
    if not change.once or _has_rows_that_stayed(touched, standing, spec):
        rows = TableRows(rows=whole, keys=keys.select(KEY))
    return TableEvents(change=change, rows=rows, touched=touched.select(*_EVENT))


def _has_rows_that_stayed(touched: DataFrame, standing: DataFrame, spec: DataSetSpec) -> bool:
    """Whether an event that changed may have a row that did not: it has several, or one that did not go."""
    there = standing.select("client_id", _base(spec).alias("_id")).groupBy(*_EVENT).agg(F.count("*").alias("_times"))
    both = touched.join(there, [*_EVENT])
    return not both.where((F.col("_times") > 1) | ~F.col("_went")).isEmpty()


def _keys(spark: SparkSession, spec: DataSetSpec, path: str, rows: DataFrame) -> DataFrame:
    """KEY, client_id and _id as the lake has them, and `_good` (it makes an event) of rows of a table."""
    source = source_of(spec)
    places = [
        place for place, file in enumerate(source.files) if file.format == "delta" and path_of(file, source) == path
    ]
    tables = {path: TableRows(rows=rows)}
    judged = [judged_entry(spark, spec, place, tables=tables) for place in places]
    key, good = key_of(F.col("client_id"), F.col("_id"), F.col("payload")), F.col("reason").isNull()
    found = [one.select(*_EVENT, key.alias(KEY), good.alias("_good")) for one in judged]
    return hidden_ids(reduce(lambda one, other: one.unionByName(other), found), spec)


def _base(spec: DataSetSpec) -> Column:
    """The id of an event as rows give it."""
    return without_number(F.col("event_id")) if hashed_id(spec) else F.col("event_id")
