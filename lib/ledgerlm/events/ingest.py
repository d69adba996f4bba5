"""From raw files to typed events: one pass that judges and counts every row, and one shuffle by client.

The shuffle brings all rows of a client together, which serves the three things that need a neighbour: occurrence
numbers of equal raw rows, duplicates and conflicts by id, and the place among events of the same instant. No window is
wider than a client's rows of one id or one instant, so a client with a million events sorts and spills, and does not
have to fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F

from ledgerlm.engines.frames import small_frame, with_columns
from ledgerlm.events.attributes import conflicts, damaged_attributes, dictionaries, unknown_codes
from ledgerlm.events.batch_rules import Held, Seen
from ledgerlm.events.columns import BLOCK, FILE, LEFT_OUT, ODD, PATH, PLACE
from ledgerlm.events.counts import IngestCounts, facts_of
from ledgerlm.events.csv_files import Part
from ledgerlm.events.erased import ERASED
from ledgerlm.events.files import decoded_path, found_files, in_order_of_names, table_names
from ledgerlm.events.judging import NOTED, counters, good_rows, judged_rows
from ledgerlm.events.quality import Reason, aside, pseudonymised, without_client
from ledgerlm.events.spec import DataSetSpec, source_of
from ledgerlm.events.spec_times import FILE_ORDER
from ledgerlm.events.table_rows import TableRows
from ledgerlm.events.times import CLOCK_CHOICES
from ledgerlm.lake.schemas import EVENT_ORDER

# What the ingest job needs, in one place.
__all__ = [
    "IngestCounts",
    "Ingested",
    "damaged_attributes",
    "dictionaries",
    "facts_of",
    "ingest_events",
    "unknown_codes",
]
_RANK_DIGITS = 10
_SAID = {
    LEFT_OUT: "empty periods of wide lines",
    "_signed": "amounts with a sign of their own beside sign",
    "_rounded": "rounded amounts",
    "_converted": "amounts turned into another currency",
    "_cut": "rows with a number of more digits than a double keeps",
    "_unordered": "events whose order is no number",
    **CLOCK_CHOICES,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """Events and what was set aside, neither computed yet.

    Attributes:
        delivered: the events, and rows of ids that were taken away (`_gone`, of which client_id and event_id count).
        spec: the data set.
        rows: the judged rows; reads the files again when it is computed.
        judged: counts before the shuffle, filled when `delivered` is computed (once).
        kept: counts after it.
        partitions: partitions of the shuffle by client.
        empty: whether there is no event; then Spark has cut what was observed out of its plan, and rows are counted by
            themselves.
        held: what each row was held against beside the spec.
        columns: path of a file -> its columns, those of folders above it too.
    """

    delivered: DataFrame
    spec: DataSetSpec
    rows: DataFrame
    judged: Observation
    kept: Observation
    partitions: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    empty: bool = False
    held: Held = field(default_factory=Held)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def events(self) -> DataFrame:
        """client_id, event_id, event_time, event_seq, amount, currency, one column a field, source_file.

        By client, time and event_seq within each partition.
        """
        return self.delivered.where(~F.col("_gone")).drop("_gone")

    @property
    def quarantine(self) -> DataFrame:
        """reason, detail, source_file, payload, once `events` has been written; waits for ever before."""
        found = aside(self.rows, self.spec)
        if not self._after_shuffle()["conflicts"]:
            return found
        # Conflicts are known after the shuffle alone, and the raw rows were not carried through it.
        good, numbered = self._good()
        keys = numbered.where("_conflict AND NOT _withdrawn").select("client_id", "_id").distinct()
        rows = good.join(keys, ["client_id", "_id"], how="left_semi")
        detail = F.concat(F.lit("event_id: "), F.col("_id"))
        reason = F.lit(Reason.CONFLICTING_EVENT.value)
        return found.unionByName(aside(rows.withColumns({"reason": reason, "detail": detail}), self.spec))

    def counts(self) -> IngestCounts:
        """The counts, once `events` has been written; waits for ever before."""
        judged, kept = self._before_shuffle(), self._after_shuffle()
        reasons = {reason.value: int(judged[f"reason_{reason}"]) for reason in Reason}
        reasons[Reason.CONFLICTING_EVENT.value] = int(kept["conflicts"])
        choices = {said: int(judged[name]) for name, said in _SAID.items()}
        if self.held.erased is not None:
            choices[_SAID[LEFT_OUT]] -= int(judged[ERASED])
            choices["rows of clients who were erased"] = int(judged[ERASED])
        choices |= conflicts(self.delivered.sparkSession, self.spec)
        return IngestCounts(
            rows_in=int(judged["rows"]),
            rows_out=int(kept["rows"]),
            duplicates=int(kept["duplicates"]),
            withdrawn=int(kept["withdrawn"]),
            reasons={reason: count for reason, count in reasons.items() if count},
            first=kept["first"],
            last=kept["last"],
            unmatched={join.key: int(judged[f"unmatched_{place}"]) for place, join in enumerate(self.spec.joins)},
            keyed={join.key: int(judged[f"keyed_{place}"]) for place, join in enumerate(self.spec.joins)},
            absent={field.name: int(kept[f"absent_{field.name}"] or 0) for field in self.spec.fields},
            beside={name: int(kept[f"beside_{place}"]) for place, name in enumerate(table_names(self.spec.source))},
            choices={said: count for said, count in choices.items() if count},
            warnings=self._warnings(judged),
        )

    def seen(self) -> dict[Reason, Seen]:
        """What `held` found, once `events` has been written; waits for ever before."""
        return self.held.seen(self._before_shuffle())

    def _good(self) -> tuple[DataFrame, DataFrame]:
        """The good rows, and the same numbered."""
        good = _hidden(_ranked(good_rows(self.rows), self.ranks), self.spec)
        return good, _numbered(good, self.spec, self.partitions)

    def _before_shuffle(self) -> Mapping[str, Any]:
        return _counted(self.rows, _counters(self.spec, self.held)) if self.empty else self.judged.get

    def _after_shuffle(self) -> Mapping[str, Any]:
        return _counted(self._good()[1], _kept_counters(self.spec)) if self.empty else self.kept.get

    def _warnings(self, judged: Mapping[str, Any]) -> tuple[str, ...]:
        found = []
        if judged["open"] and judged["odd"] > 1:
            files = [one.glob for one in source_of(self.spec).files if one.format == "csv" and one.line_breaks is None]
            found.append(
                f"{judged['odd']} lines have an odd number of quotes and {judged['open']} of them an open one, so "
                f"values in {', '.join(files)} seem to hold line breaks: say 'line_breaks: true' at the file, or "
                "false to set such lines aside"
            )
        return tuple(found)


def ingest_events(
    spark: SparkSession,
    spec: DataSetSpec,
    partitions: int | None = None,
    *,
    came: Mapping[str, int] | None = None,
    held: Held | None = None,
    tables: Mapping[str, TableRows] | None = None,
) -> Ingested:
    """Reads the event files of a data set.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        partitions: partitions of the shuffle by client; None lets Spark choose by size.
        came: path of a file -> number of the batch that brought it, where files came one after the other; others came
            last. Where file and line decide, the batch decides before them.
        held: what each row is held against beside the spec; None: nothing.
        tables: path of a Delta table -> what is read of it; of others their newest version is.

    Returns:
        Events and quarantine as lazy DataFrames.

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
    """
    held, columns = held or Held(), {}

    def seen(part: Part) -> None:
        columns.update({one.path: [*part.names, *(name for name, _ in one.partitions)] for one in part.files})

    ranks, rows = _ranks(spark, spec, came or {}), held.marked(judged_rows(spark, spec, seen, tables), spec)
    judged, kept = Observation(), Observation()
    counted = rows.observe(judged, *(column.alias(name) for name, column in _counters(spec, held).items()))
    good = good_rows(counted).drop("reason", "detail", "payload", ODD, LEFT_OUT, ERASED, *NOTED, *held.flags.values())
    numbered = _numbered(_hidden(_ranked(good, ranks), spec), spec, partitions)
    return Ingested(
        delivered=_placed(numbered, spec, kept),
        spec=spec,
        rows=rows,
        judged=judged,
        kept=kept,
        partitions=partitions,
        ranks=ranks,
        held=held,
        columns=columns,
    )


def _counters(spec: DataSetSpec, held: Held) -> dict[str, Column]:
    return {**counters(spec), **held.counters()}


def _ranks(spark: SparkSession, spec: DataSetSpec, came: Mapping[str, int]) -> dict[str, int]:
    """Path of a file -> its place, where files decide what holds and their places are not those of their names."""
    decides = spec.event_id.conflicts == "last" or spec.event_id.deleted or spec.time.order == FILE_ORDER
    if not decides:
        return {}
    source, last = source_of(spec), max(came.values(), default=0) + 1
    files = {one.path for file in source.files if file.format != "delta" for one in found_files(spark, file, source)}
    placed = sorted(files, key=lambda path: (came.get(path, last), in_order_of_names(path)))
    return {} if placed == sorted(files) else {path: place for place, path in enumerate(placed)}


def _ranked(rows: DataFrame, ranks: Mapping[str, int]) -> DataFrame:
    """The rows with a PATH by which files stand in the order of their ranks."""
    if not ranks:
        return rows
    known = small_frame(rows.sparkSession, [*ranks.items()], "_file string, _rank int")
    placed = rows.withColumn("_file", decoded_path(PATH)).join(F.broadcast(known), "_file", how="left")
    rank = F.lpad(F.col("_rank").cast("string"), _RANK_DIGITS, "0")
    return placed.withColumn(PATH, F.concat_ws(" ", rank, PATH)).drop("_file", "_rank")


def _counted(rows: DataFrame, named: Mapping[str, Column]) -> dict[str, Any]:
    return rows.agg(*(column.alias(name) for name, column in named.items())).collect()[0].asDict()


def hidden_ids(rows: DataFrame, spec: DataSetSpec, fields: Sequence[str] = ()) -> DataFrame:
    """Judged rows with client ids as the lake has them, and event ids where they would tell them in the clear.

    Args:
        rows: with `client_id` and `_id`.
        spec: the data set.
        fields: columns that are hidden as well.
    """
    if spec.pseudonymise is None:
        return rows
    secret = {spec.client, *(one.column or one.name for one in spec.fields if one.name in spec.pseudonymise.fields)}
    columns = ["client_id", *fields, *(["_id"] if secret & set(spec.event_id.columns) else [])]
    return pseudonymised(rows, columns, spec.pseudonymise.key_env)


def _hidden(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    if spec.pseudonymise is None:
        return rows
    texts = [f"f_{field.name}" for field in spec.fields_of("text") if not field.flags]
    named = with_columns(rows, {text: without_client(F.col(text), F.col("client_id")) for text in texts})
    return hidden_ids(named, spec, [f"f_{name}" for name in spec.pseudonymise.fields])


def _numbered(good: DataFrame, spec: DataSetSpec, partitions: int | None) -> DataFrame:
    """The good rows by client, with `_again` (a duplicate), `_conflict`, `_nth`, `_withdrawn` and `_final`.

    Without id columns, equal raw rows are numbered within each file and an occurrence that several files have counts
    once: overlapping deliveries change nothing. With id columns, rows of one id that differ in what is kept of them are
    a conflict, and equal ones duplicates. Rows that take an event away, and the rows of its id before them, are
    withdrawn; `_final` is the last row of an id that ends so.
    """
    values = ["event_time", "_order", "amount", "currency", *(f"f_{field.name}" for field in spec.fields)]
    rows = good.select("client_id", "_id", "_gone", *values, FILE, PATH, BLOCK, PLACE)
    rows = rows.repartition(partitions, "client_id") if partitions else rows.repartition("client_id")
    if not spec.event_id.columns and spec.event_id.repeats == "keep":
        here = Window.partitionBy("client_id", "_id", PATH).orderBy(BLOCK, PLACE)
        over = Window.partitionBy("client_id", "_id", "_nth").orderBy(PATH)
        numbered = rows.withColumn("_nth", F.row_number().over(here))
        again = F.row_number().over(over) > 1
        never = {"_conflict": F.lit(False), "_withdrawn": F.lit(False), "_final": F.lit(False)}
        return numbered.withColumns({"_again": again, **never})
    last = (F.col("_order").desc_nulls_last(), F.desc(PATH), F.desc(BLOCK), F.desc(PLACE))
    first = (F.col(PATH), F.col(BLOCK), F.col(PLACE))
    rows = rows.withColumns(_withdrawn(spec))
    if spec.event_id.deleted:
        left = F.count_if(~F.col("_withdrawn")).over(Window.partitionBy("client_id", "_id"))
        rows = rows.withColumn("_final", F.col("_final") & (left == 0))
    # One order for place and comparison, so that the rows are sorted once.
    key = ("client_id", "_id", *(("_withdrawn",) if spec.event_id.deleted else ()))
    same = Window.partitionBy(*key).orderBy(*(last if spec.event_id.conflicts == "last" else first))
    nth = F.row_number().over(same)
    if spec.event_id.conflicts == "last":
        return rows.withColumn("_nth", nth).withColumns({"_again": F.col("_nth") > 1, "_conflict": F.lit(False)})
    all_of_id = same.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    # A hash of several columns passes over nulls, so they are hashed as such.
    content = F.xxhash64(*values, *(F.col(name).isNull() for name in values))
    found = rows.withColumn("_content", content).withColumns(
        {"_nth": nth, "_least": F.min("_content").over(all_of_id), "_most": F.max("_content").over(all_of_id)}
    )
    found = found.withColumn("_conflict", F.col("_least") != F.col("_most"))
    return found.withColumn("_again", (F.col("_nth") > 1) & ~F.col("_conflict")).drop("_content", "_least", "_most")


def _withdrawn(spec: DataSetSpec) -> dict[str, Column]:
    """Whether a row takes an event away or is taken away, and whether it is the one by which an id ends so.

    A row takes away what comes before it: by time.order where it has one, else by file and line.
    """
    if not spec.event_id.deleted:
        return {"_withdrawn": F.lit(False), "_final": F.lit(False)}
    of_id = Window.partitionBy("client_id", "_id")
    place = F.struct(PATH, BLOCK, PLACE)
    ordered_place = F.struct(F.col("_order"), place)
    without_order = F.max(F.when(F.col("_gone") & F.col("_order").isNull(), place)).over(of_id)
    with_order = F.max(F.when(F.col("_gone") & F.col("_order").isNotNull(), ordered_place)).over(of_id)
    taken = F.coalesce(place <= without_order, F.lit(False)) | F.coalesce(ordered_place <= with_order, F.lit(False))
    return {
        "_withdrawn": taken,
        "_final": F.col("_gone") & (place == F.max(F.when(F.col("_gone"), place)).over(of_id)),
        "_until": with_order["_order"],
    }


def _unique() -> Column:
    """Whether a numbered row is an event."""
    return ~F.col("_again") & ~F.col("_conflict") & ~F.col("_withdrawn")


def _kept_counters(spec: DataSetSpec) -> dict[str, Column]:
    """What is counted of numbered rows, by name."""
    unique = _unique()
    names = table_names(spec.source)
    return {
        "rows": F.count_if(unique),
        "duplicates": F.count_if(F.col("_again") & ~F.col("_withdrawn")),
        "conflicts": F.count_if(F.col("_conflict") & ~F.col("_withdrawn")),
        "withdrawn": F.count_if("_withdrawn"),
        "first": F.min(F.when(unique, F.col("event_time"))).cast("string"),
        "last": F.max(F.when(unique, F.col("event_time"))).cast("string"),
        **{f"absent_{field.name}": F.count_if(F.col(f"f_{field.name}").isNull() & unique) for field in spec.fields},
        **{f"beside_{place}": F.count_if(~unique & (F.col(FILE) == name)) for place, name in enumerate(names)},
    }


def _placed(numbered: DataFrame, spec: DataSetSpec, kept: Observation) -> DataFrame:
    """Events in their final form; `event_seq` counts from 0 by `time.order`, then event id, digits as numbers."""
    counted = numbered.observe(kept, *(column.alias(name) for name, column in _kept_counters(spec).items()))
    by_file = (PATH, BLOCK, PLACE) if spec.time.order == FILE_ORDER else ()
    digits = F.when(F.col("_id").rlike("^[0-9]{1,38}$"), F.col("_id").try_cast("decimal(38,0)"))
    order = ("_order", *by_file, digits.asc_nulls_last(), "_id", "_nth")
    # A row that takes away has its place behind all events.
    behind = ("_final",) if spec.event_id.deleted else ()
    same_time = Window.partitionBy("client_id", "event_time").orderBy(*behind, *order)
    left = counted.where(_unique() | F.col("_final"))
    placed = left.withColumn("event_seq", (F.row_number().over(same_time) - 1).cast("long"))
    keep_repeats = not spec.event_id.columns and spec.event_id.repeats == "keep"
    return placed.select(
        "client_id",
        (F.concat_ws("-", "_id", "_nth") if keep_repeats else F.col("_id")).alias("event_id"),
        "event_time",
        "event_seq",
        "amount",
        "currency",
        *(F.col(f"f_{field.name}").alias(field.name) for field in spec.fields),
        FILE,
        *([_order_of_id(spec).alias(EVENT_ORDER)] if ordered(spec) else []),
        F.col("_final").alias("_gone"),
    )


def taken_away(delivered: DataFrame) -> DataFrame:
    """The ids that rows have taken away, with how far: rows of them before that `event_order` go, whenever they come.

    Args:
        delivered: see `Ingested`, of a data set whose rows say their order.

    Returns:
        client_id, event_id, event_order.
    """
    rows = delivered.where(F.col("_gone") & F.col(EVENT_ORDER).isNotNull())
    return rows.select("client_id", "event_id", EVENT_ORDER)


def _order_of_id(spec: DataSetSpec) -> Column:
    """The place of a row among those of its id; of one that takes the event away, the latest of such rows."""
    if not spec.event_id.deleted:
        return F.col("_order")
    return F.when(F.col("_final") & F.col("_order").isNotNull(), F.col("_until")).otherwise(F.col("_order"))


def ordered(spec: DataSetSpec) -> bool:
    """Whether a column of the data says in which order events of one instant stand."""
    return spec.time.order not in ("", None, FILE_ORDER)
