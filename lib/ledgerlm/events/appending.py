"""What newly delivered rows change in the events that are there: new ones, corrections, deletions, and new places.

The dirty set of a night comes from here, from what files brought, and never from when an event happened: an event that
comes a year late is as much of a change as one of yesterday.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.engines.frames import settled
from ledgerlm.errors import DataError
from ledgerlm.events.columns import FILE
from ledgerlm.events.ingest import ordered, taken_away
from ledgerlm.events.spec_times import FILE_ORDER
from ledgerlm.lake.differences import CHANGE, DELETE, INSERT, UPDATE
from ledgerlm.lake.schemas import EVENT_ORDER

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.events.spec import DataSetSpec

_KEY = ("client_id", "event_id")
_PLACE = ("event_seq", "source_file")
_ID_LENGTH = 32  # of a hashed id, before its occurrence number


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What a batch changes.

    Attributes:
        differences: of `events`, as `lake.differences` has them; kept.
        changes: client_id, batch, earliest (time touched), appended, corrected, deleted; kept.
        deletions: differences of `deletions`; None where the data set's rows do not take events away by their order.
        counts: `appended`, `corrected` and `deleted` events, `repeated` rows of events that were there as they are (or
            that came later), `outdated` rows of events that were taken away after them, and `unknown_deletions` of
            events that were not there.
    """

    differences: DataFrame
    changes: DataFrame
    deletions: DataFrame | None
    counts: Mapping[str, int]


def append(
    delivered: DataFrame,
    standing: DataFrame,
    deletions: DataFrame | None,
    spec: DataSetSpec,
    *,
    batch: int,
    tables: Sequence[str] = (),
    keep: Keep,
) -> Appended:
    """Finds what a batch changes.

    An event whose client and id are there with equal content is a repetition; with other content a correction: the
    later delivery wins, unless it says itself, by time.order, that it is the older one (no order is older than any).
    What was taken away stays away from rows of an older order. Events of one instant are numbered anew where one comes
    or goes. A row of a Delta table is what the table holds of its event now, whatever its order.

    Args:
        delivered: from `ingest.Ingested`, the batch alone; kept.
        standing: the `events` table before it.
        deletions: the `deletions` table before it, if there is one.
        spec: the data set.
        batch: its number.
        tables: `source_file` of rows of Delta tables.
        keep: computes a frame once.

    Raises:
        DataError: an event of a table came from another file or table before, or the other way round.
    """
    columns = [name for name in delivered.columns if name != "_gone"]
    by_order = ordered(spec)
    judged = _judged(delivered, standing, deletions if by_order else None, columns, by_order=by_order, tables=tables)
    judged = settled(judged, keep)
    if tables:
        _refuse_two_sources(judged, tables)
    counted = {row["_kind"]: row["count"] for row in judged.groupBy("_kind").count().collect()}
    changed = judged.where(F.col("_kind").isin(INSERT, UPDATE, DELETE))
    found = settled(_placed(changed, standing, columns, spec), keep)
    return Appended(
        differences=found,
        changes=settled(_by_client(changed, batch), keep),
        deletions=settled(_newly_away(delivered, deletions), keep) if by_order and spec.event_id.deleted else None,
        counts={
            "appended": counted.get(INSERT, 0),
            "corrected": counted.get(UPDATE, 0),
            "deleted": counted.get(DELETE, 0),
            "repeated": counted.get("repeated", 0),
            "outdated": counted.get("outdated", 0),
            "unknown_deletions": counted.get("unknown", 0),
        },
    )


def _newly_away(delivered: DataFrame, deletions: DataFrame | None) -> DataFrame:
    """The differences of `deletions`: ids that were never taken away before, or not as far."""
    new = taken_away(delivered)
    if deletions is None:
        return new.withColumn(CHANGE, F.lit(INSERT))
    old = deletions.select(*_KEY, F.col(EVENT_ORDER).alias("_until"))
    further = F.when(F.col("_until").isNull(), INSERT).when(F.col(EVENT_ORDER) > F.col("_until"), UPDATE)
    return new.join(old, list(_KEY), how="left").select(*_KEY, EVENT_ORDER, further.alias(CHANGE)).dropna(subset=CHANGE)


def _judged(
    delivered: DataFrame,
    standing: DataFrame,
    deletions: DataFrame | None,
    columns: Sequence[str],
    *,
    by_order: bool,
    tables: Sequence[str],
) -> DataFrame:
    """The delivered rows with `_kind`, `_before` (when the event of their id is now) and `_from` (its source_file)."""
    content = [name for name in columns if name not in (*_KEY, *_PLACE)]
    mine = standing.join(delivered.select("client_id").distinct(), "client_id", how="left_semi")
    seat = F.col(EVENT_ORDER) if by_order else F.lit(None)
    held = {"_before": F.col("event_time"), "_old": _hash(content), "_seat": seat, "_from": F.col(FILE)}
    old = mine.select(*_KEY, *(value.alias(name) for name, value in held.items()))
    both = delivered.withColumn("_new", _hash(content)).join(old, list(_KEY), how="left")
    there, own = F.col("_old").isNotNull(), F.col(EVENT_ORDER) if by_order else F.lit(None)
    until = F.lit(None)
    if deletions is not None:
        away = deletions.select(*_KEY, F.col(EVENT_ORDER).alias("_until"))
        both, until = both.join(away, list(_KEY), how="left"), F.col("_until")
    delivery = ~F.col(FILE).isin(*tables) if tables else F.lit(True)
    older = delivery & F.coalesce(own < F.col("_seat"), F.lit(False))
    # A row that takes away and does not say its order takes away whatever came before it.
    behind = older | (delivery & own.isNull() & F.col("_seat").isNotNull())
    outdated = delivery & F.coalesce(own < until, own.isNull() & until.isNotNull())
    kind = (
        F.when(F.col("_gone"), F.when(there & ~older, DELETE).otherwise("unknown"))
        .when(~there, F.when(outdated, "outdated").otherwise(INSERT))
        .when((F.col("_old") == F.col("_new")) | behind, "repeated")
        .otherwise(UPDATE)
    )
    return both.select(*columns, "_before", "_from", kind.alias("_kind"))


def _refuse_two_sources(judged: DataFrame, tables: Sequence[str]) -> None:
    """Of an event that a table and something else tell of, none of the two alone says what becomes of it."""
    told, came = F.col(FILE), F.col("_from")
    both = judged.where((told != came) & (told.isin(*tables) | came.isin(*tables))).first()
    if both is not None:
        raise DataError(
            f"ingest: append: event {both['event_id']} of client {both['client_id']} is in {both['_from']} and in "
            f"{both[FILE]}, and what a Delta table says of an event holds; tell them apart by a column of constants in "
            "event_id.columns, or let ingest read everything each time (append: false)"
        )


def _hash(columns: Sequence[str]) -> Column:
    # A hash of several columns passes over nulls, so they are hashed as such; two of them, since one has 64 bits.
    nulls = [F.col(name).isNull() for name in columns]
    return F.struct(F.xxhash64(*columns, *nulls), F.hash(*columns, *nulls))


def _placed(changed: DataFrame, standing: DataFrame, columns: Sequence[str], spec: DataSetSpec) -> DataFrame:
    """The differences of `events`: what changed, and what has another place among events of its instant for it."""
    instants = changed.select("client_id", F.col("event_time").alias("event_time")).unionByName(
        changed.select("client_id", F.col("_before").alias("event_time"))
    )
    touched = standing.join(instants.distinct(), ["client_id", "event_time"], how="left_semi")
    stay = touched.join(changed.select(*_KEY), list(_KEY), how="left_anti")
    comes = changed.where(F.col("_kind") != DELETE)
    rows = stay.select(*columns, F.lit(None).cast("string").alias(CHANGE), F.lit(False).alias("_new")).unionByName(
        comes.select(*columns, F.col("_kind").alias(CHANGE), F.lit(True).alias("_new"))
    )
    same_time = Window.partitionBy("client_id", "event_time").orderBy(*_order(spec))
    seated = rows.withColumn("_seq", (F.row_number().over(same_time) - 1).cast("long"))
    moved = F.when(F.col("_seq") != F.col("event_seq"), UPDATE)
    seated = seated.withColumn(CHANGE, F.coalesce(CHANGE, moved)).where(F.col(CHANGE).isNotNull())
    seated = seated.withColumn("event_seq", F.col("_seq")).select(*columns, CHANGE)
    gone = changed.where(F.col("_kind") == DELETE).select(*columns, F.lit(DELETE).alias(CHANGE))
    return seated.unionByName(gone)


def hashed_id(spec: DataSetSpec) -> bool:
    """Whether ids are hashes of rows, with the number of the row among its equals behind them."""
    return not spec.event_id.columns and spec.event_id.repeats == "keep"


def without_number(event_id: Column) -> Column:
    """A hashed id without its number."""
    return F.substring(event_id, 1, _ID_LENGTH)


def _order(spec: DataSetSpec) -> list[Column]:
    """The order of events of one instant, as `ingest` has it for all files at once."""
    if spec.time.order == FILE_ORDER:
        return [F.col("_new"), F.col("event_seq")]  # a later file stands behind
    first = [F.col(EVENT_ORDER).asc_nulls_first()] if ordered(spec) else []
    if hashed_id(spec):
        nth = F.substring("event_id", _ID_LENGTH + 2, _ID_LENGTH).try_cast("long")
        base = without_number(F.col("event_id"))
        return [*first, _digits(base), base, nth]
    return [*first, _digits(F.col("event_id")), F.col("event_id")]


def _digits(event_id: Column) -> Column:
    return F.when(event_id.rlike("^[0-9]{1,38}$"), event_id.try_cast("decimal(38,0)")).asc_nulls_last()


def _by_client(changed: DataFrame, batch: int) -> DataFrame:
    kinds = {"appended": INSERT, "corrected": UPDATE, "deleted": DELETE}
    # A row that takes an event away need not say when it was.
    touched = F.when(F.col("_kind") == DELETE, F.col("_before")).otherwise(F.least("event_time", "_before"))
    return changed.groupBy("client_id").agg(
        F.lit(batch).cast("long").alias("batch"),
        F.min(touched).alias("earliest"),
        *(F.count_if(F.col("_kind") == kind).cast("long").alias(name) for name, kind in kinds.items()),
    )


def first_changes(events: DataFrame, batch: int) -> DataFrame:
    """The changes of a batch that reads everything anew: every client, from its first event on.

    Args:
        events: the `events` table.
        batch: its number.
    """
    zero = F.lit(0).cast("long")
    return events.groupBy("client_id").agg(
        F.lit(batch).cast("long").alias("batch"),
        F.min("event_time").alias("earliest"),
        F.count(F.lit(1)).alias("appended"),
        zero.alias("corrected"),
        zero.alias("deleted"),
    )
