"""From raw files to typed events: one pass that judges and counts every row, and one shuffle by client.

The shuffle brings all rows of a client together, which serves the three things that need a neighbour: occurrence
numbers of equal raw rows, duplicates by id, and the place among events of the same instant. No window is wider than a
client's rows of one id or one instant, so a client with a million events sorts and spills, and does not have to fit
into memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as F

from ledgerlm.errors import DataError, SpecError
from ledgerlm.events.masks import masked
from ledgerlm.events.quality import (
    Reason,
    decimal_amount,
    number,
    present,
    pseudonymised,
    recoded,
    time_of,
)
from ledgerlm.events.sources import FAULT, FILE, PAYLOAD, read_file
from ledgerlm.events.spec import DataSetSpec, FieldSpec, FileSpec, JoinSpec, SignSpec, SourceSpec
from ledgerlm.lake.schemas import AMOUNT

_DETAIL_LENGTH = 200  # characters of an offending value that the detail quotes
_ID_LENGTH = 32  # hexadecimal digits of a hashed id: 128 bits
QUARANTINED = ("reason", "detail", FILE, "payload")
"""Columns of the rows that are set aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestCounts:
    """What happened to the rows.

    Attributes:
        rows_in: rows read (headers and blank lines are none).
        rows_out: events.
        duplicates: rows dropped because their client and event id were there already.
        reasons: quarantined rows by reason.
        first: time of the earliest event; None without events.
        last: time of the latest event.
        unmatched: rows whose key a join file lacks, by key column.
        absent: events without a value, by field.
    """

    rows_in: int
    rows_out: int
    duplicates: int
    reasons: Mapping[str, int]
    first: str | None
    last: str | None
    unmatched: Mapping[str, int]
    absent: Mapping[str, int]

    @property
    def quarantined(self) -> int:
        """Rows set aside."""
        return sum(self.reasons.values())

    def check(self, source: str) -> None:
        """Asserts that no row vanished and that every file was read under its own header.

        Raises:
            DataError: with the figures, or what to do about a second header.
        """
        found = self.rows_out + self.quarantined + self.duplicates
        if self.rows_in != found:
            raise DataError(
                f"{source}: {self.rows_in} rows in, but {self.rows_out} out + {self.quarantined} quarantined + "
                f"{self.duplicates} duplicates = {found}; were the files changed while they were read? Run it again"
            )
        if self.reasons.get(Reason.OTHER_HEADER):
            raise DataError(
                f"{source}: {self.reasons[Reason.OTHER_HEADER]} lines are the header in another order than that "
                "of the first file, so columns would be mixed up; give such files their own entry under source.files"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """Events and what was set aside, neither computed yet.

    Attributes:
        events: client_id, event_id, event_time, event_seq, amount, currency, one column a field, source_file; by
            client, time and event_seq within each partition.
        quarantine: reason, detail, source_file, payload; reads the files again when it is computed.
        spec: the data set.
        judged: counts before the shuffle, filled when `events` is computed (once).
        kept: counts after it.
    """

    events: DataFrame
    quarantine: DataFrame
    spec: DataSetSpec
    judged: Observation
    kept: Observation

    def counts(self) -> IngestCounts:
        """The counts, once `events` has been written; waits for ever before."""
        judged, kept = self.judged.get, self.kept.get
        reasons = {reason.value: int(judged[f"reason_{reason}"]) for reason in Reason}
        return IngestCounts(
            rows_in=int(judged["rows"]),
            rows_out=int(kept["rows"]),
            duplicates=int(kept["duplicates"]),
            reasons={reason: count for reason, count in reasons.items() if count},
            first=kept["first"],
            last=kept["last"],
            unmatched={join.key: int(judged[f"unmatched_{place}"]) for place, join in enumerate(self.spec.joins)},
            absent={field.name: int(kept[f"absent_{field.name}"] or 0) for field in self.spec.fields},
        )


def ingest_events(spark: SparkSession, spec: DataSetSpec, partitions: int | None = None) -> Ingested:
    """Reads the event files of a data set.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        partitions: partitions of the shuffle by client; None lets Spark choose by size.

    Returns:
        Events and quarantine as lazy DataFrames.

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
    """
    source = source_of(spec)
    parts = [_judged(_read(spark, spec, source, place), spec) for place in range(len(source.files))]
    rows = reduce(DataFrame.unionByName, parts)
    judged, kept = Observation(), Observation()
    counted = rows.observe(judged, *_judged_counters(spec))
    good = counted.where(F.col("reason").isNull())
    return Ingested(
        events=_placed(_hidden(good, spec), spec, kept, partitions),
        quarantine=aside(rows, spec),
        spec=spec,
        judged=judged,
        kept=kept,
    )


def dictionaries(spark: SparkSession, spec: DataSetSpec) -> DataFrame:
    """Code and description of every field that has a dictionary.

    Returns:
        field, code, description; key (field, code): of a code that is described twice the first in alphabet is kept.
    """
    frames = [spark.createDataFrame([], "field string, code string, description string")]
    for place, field in enumerate(spec.fields):
        if isinstance(field.dictionary, dict) and field.dictionary:
            inline = [(field.name, code, text) for code, text in field.dictionary.items()]
            frames.append(spark.createDataFrame(inline, frames[0].schema))
        elif field.dictionary is not None and not isinstance(field.dictionary, dict):
            book, key = field.dictionary, f"fields.{place}.dictionary"
            needed = {book.code: f"{key}.code", book.description: f"{key}.description"}
            rows = sound(read_file(spark, book.file, spec.source or SourceSpec(files=(book.file,)), needed=needed))
            frames.append(
                rows.select(
                    F.lit(field.name).alias("field"),
                    present(F.col(book.code)).alias("code"),
                    present(F.col(book.description)).alias("description"),
                )
            )
    known = reduce(DataFrame.unionByName, frames).where("code IS NOT NULL AND description IS NOT NULL")
    return known.groupBy("field", "code").agg(F.min("description").alias("description"))


def unknown_codes(events: DataFrame, known: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Codes that stand in events but not in their dictionary; they stay readable as they are.

    Args:
        events: the events table.
        known: the dictionaries table.
        spec: the data set.

    Returns:
        field, code, events (count), most frequent first; empty when no field has a dictionary.
    """
    named = [field.name for field in spec.fields if field.dictionary]
    pairs = [F.struct(F.lit(name).alias("field"), F.col(name).alias("code")) for name in named]
    exploded = F.explode(F.array(*pairs).cast("array<struct<field:string,code:string>>"))
    codes = events.select(exploded.alias("pair")).select("pair.*").where("code IS NOT NULL")
    seen = codes.groupBy("field", "code").agg(F.count(F.lit(1)).alias("events"))
    return seen.join(known, ["field", "code"], how="left_anti").orderBy(F.desc("events"), "field", "code")


def source_of(spec: DataSetSpec) -> SourceSpec:
    """The source of a data set that is read from files.

    Raises:
        SpecError: when the spec has none.
    """
    if spec.source is None:
        raise SpecError(f"data set {spec.name} has no 'source': the simulate job makes its events, or add source.path")
    return spec.source


def sound(rows: DataFrame) -> DataFrame:
    """The rows without a fault of reading."""
    return rows.where(F.col(FAULT).isNull())


def damaged(rows: DataFrame) -> DataFrame:
    """The rows with a fault of reading, as quarantine takes them."""
    return rows.where(F.col(FAULT).isNotNull()).select(
        F.col(FAULT).alias("reason"), F.lit(None).cast("string").alias("detail"), FILE, F.col(PAYLOAD).alias("payload")
    )


def aside(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    """The judged rows that have a reason, as quarantine takes them; without the raw row if the spec wants that."""
    keep = spec.pseudonymise is None or spec.pseudonymise.keep_payload
    payload = F.col("payload") if keep else F.lit(None).cast("string")
    detail = F.col("detail") if keep else F.lit(None).cast("string")
    bad = rows.where(F.col("reason").isNotNull())
    return bad.select("reason", detail.alias("detail"), FILE, payload.alias("payload"))


def first_reason(*faults: tuple[Column, Reason, Column]) -> tuple[Column, Column]:
    """Reason and detail of the first fault that applies.

    Args:
        faults: condition, reason, and the offending value.
    """
    reason = F.coalesce(*(F.when(condition, name.value) for condition, name, _ in faults))
    detail = F.coalesce(*(F.when(condition, F.left(value, F.lit(_DETAIL_LENGTH))) for condition, _, value in faults))
    return reason, detail


def _read(spark: SparkSession, spec: DataSetSpec, source: SourceSpec, place: int) -> DataFrame:
    """One file entry with the columns that the spec needs, join columns included."""
    file = source.files[place]
    joined = {column for join in spec.joins for column in join.columns}
    needed = {column: key for column, key in _needed(spec).items() if column not in joined or column in file.constants}
    rows = read_file(
        spark,
        file,
        source,
        needed=needed,
        optional={column for field in spec.fields if field.optional for column in field.columns},
        numbers=_number_columns(spec),
        times={spec.time.column},
    )
    for number_of_join, join in enumerate(spec.joins):
        rows = _joined(spark, rows, join, number_of_join, source)
    return rows


def _needed(spec: DataSetSpec) -> dict[str, str]:
    """Column to the key of the spec that names it."""
    needed = {spec.client: "client", spec.time.column: "time.column"}
    if spec.time.order:
        needed[spec.time.order] = "time.order"
    if spec.time.hour:
        needed[spec.time.hour] = "time.hour"
    needed |= dict.fromkeys(spec.event_id.columns, "event_id.columns")
    if spec.amount is not None:
        needed[spec.amount.column] = "amount.column"
        if spec.amount.times:
            needed[spec.amount.times] = "amount.times"
        if isinstance(spec.amount.sign, SignSpec):
            needed[spec.amount.sign.column] = "amount.sign.column"
        if spec.amount.currency_column:
            needed[spec.amount.currency_column] = "amount.currency_column"
    for place, field in enumerate(spec.fields):
        for column in field.columns:
            needed.setdefault(column, f"fields.{place}.{'flags' if field.flags else 'column'}")
    return needed | {join.key: f"joins.{place}.key" for place, join in enumerate(spec.joins)}


def _number_columns(spec: DataSetSpec) -> set[str]:
    columns = {field.column for field in spec.fields_of("numeric")}
    of_amount = {spec.amount.column, spec.amount.times} if spec.amount else set()
    return columns | {column for column in of_amount if column}


def _joined(spark: SparkSession, rows: DataFrame, join: JoinSpec, place: int, source: SourceSpec) -> DataFrame:
    """Adds the columns of an attribute file; of a key that stands there twice, one whole row is taken."""
    key = f"joins.{place}"
    needed = {join.key: f"{key}.key"} | dict.fromkeys(join.columns, f"{key}.columns")
    found = sound(read_file(spark, join.file, source, needed=needed))
    one = found.groupBy(present(F.col(join.key)).alias("_key")).agg(F.max(F.struct(*join.columns)).alias("_found"))
    matched = rows.withColumn("_key", present(F.col(join.key))).join(one.where("_key IS NOT NULL"), "_key", how="left")
    unmatched = F.col("_key").isNotNull() & F.col("_found").isNull()
    added = {column: F.col(f"_found.{column}") for column in join.columns}
    return matched.withColumns({**added, f"_unmatched_{place}": unmatched}).drop("_key", "_found")


def _judged(raw: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Typed columns, and reason and detail of rows that cannot be an event."""
    kinds = {column.name: column.dataType for column in raw.schema}
    time = time_of(F.col(spec.time.column), kinds[spec.time.column], spec.time)
    if spec.time.hour:
        hour = number(F.col(spec.time.hour))
        time = F.timestamp_seconds(F.unix_seconds(time) + F.when(hour.between(0, 23), hour.cast("int")) * 3600)
    order = F.col(spec.time.order).try_cast("double") if spec.time.order else F.lit(0.0)
    numeric = {field.name: present(F.col(field.column), field.nulls) for field in spec.fields_of("numeric")}
    typed = raw.withColumns(
        {
            "client_id": present(F.col(spec.client)),
            "_id": _raw_id(spec),
            "event_time": time,
            "_order": order,
            "_amount": present(F.col(spec.amount.column)) if spec.amount else F.lit(None).cast("string"),
            **{f"_raw_{name}": value for name, value in numeric.items()},
        }
    ).withColumns({"amount": _amount(spec), **{f"_n_{name}": number(F.col(f"_raw_{name}")) for name in numeric}})
    reason, detail = _reason(spec, numeric)
    return typed.select(
        "client_id",
        "_id",
        "event_time",
        "_order",
        "amount",
        _currency(spec).alias("currency"),
        *(_value(field, spec).alias(f"f_{field.name}") for field in spec.fields),
        FILE,
        F.coalesce(F.col(FAULT), reason).alias("reason"),
        F.when(F.col(FAULT).isNull(), detail).alias("detail"),
        F.col(PAYLOAD).alias("payload"),
        *(f"_unmatched_{place}" for place in range(len(spec.joins))),
    )


def _raw_id(spec: DataSetSpec) -> Column:
    if not spec.event_id.columns:
        return F.substring(F.sha2(F.col(PAYLOAD), 256), 1, _ID_LENGTH)
    parts = [present(F.col(column)) for column in spec.event_id.columns]
    # Unlike concat_ws, concat is null when a part is.
    return F.concat(parts[0], *(part for one in parts[1:] for part in (F.lit("|"), one)))


def _amount(spec: DataSetSpec) -> Column:
    if spec.amount is None:
        return F.lit(None).cast(AMOUNT)
    amount = decimal_amount(F.col("_amount"))
    if spec.amount.times:
        amount = (amount * decimal_amount(present(F.col(spec.amount.times)))).try_cast(AMOUNT)
    if spec.amount.sign == "negative":
        return -amount
    if isinstance(spec.amount.sign, SignSpec):
        outgoing = present(F.col(spec.amount.sign.column)).isin(*spec.amount.sign.negative)
        return F.when(outgoing, -amount).otherwise(amount)
    return amount


def _currency(spec: DataSetSpec) -> Column:
    if spec.amount is None or not (spec.amount.currency or spec.amount.currency_column):
        return F.lit(None).cast("string")
    return present(F.col(spec.amount.currency_column)) if spec.amount.currency_column else F.lit(spec.amount.currency)


def _value(field: FieldSpec, spec: DataSetSpec) -> Column:
    if field.kind == "numeric":
        return F.col(f"_n_{field.name}")
    if field.flags:
        ones = (F.when(present(F.col(column)) == "1", word) for column, word in field.flags.items())
        return F.nullif(F.concat_ws("|", *ones), F.lit(""))
    text = present(F.col(field.column), field.nulls)
    if field.extract:
        text = present(F.regexp_extract(text, field.extract, 1))
    text = recoded(text, field.values)
    return masked(text, spec.mask, spec.mask_words) if field.kind == "text" else text


def _reason(spec: DataSetSpec, numeric: Mapping[str, Column]) -> tuple[Column, Column]:
    def said(name: str, value: Column) -> Column:
        return F.concat(F.lit(f"{name}: "), F.coalesce(value.cast("string"), F.lit("absent")))

    raw_time = said(spec.time.column, F.col(spec.time.column))
    time = F.col("event_time")
    bad_amount = F.col("_amount").isNotNull() & F.col("amount").isNull()
    return first_reason(
        (F.col("client_id").isNull(), Reason.NO_CLIENT, said(spec.client, F.col(spec.client))),
        (F.col("_id").isNull(), Reason.NO_EVENT_ID, F.lit("event_id: " + ", ".join(spec.event_id.columns) + " absent")),
        (time.isNull(), Reason.BAD_TIME, raw_time),
        (time < F.lit(spec.time.earliest).cast("timestamp"), Reason.TIME_BEFORE_RANGE, raw_time),
        (time >= F.lit(spec.time.far_future).cast("timestamp"), Reason.TIME_IN_FAR_FUTURE, raw_time),
        (bad_amount, Reason.BAD_AMOUNT, said(spec.amount.column if spec.amount else "", F.col("_amount"))),
        *(
            (
                F.col(f"_raw_{name}").isNotNull() & F.col(f"_n_{name}").isNull(),
                Reason.BAD_NUMBER,
                said(name, F.col(f"_raw_{name}")),
            )
            for name in numeric
        ),
    )


def _judged_counters(spec: DataSetSpec) -> list[Column]:
    return [
        F.count(F.lit(1)).alias("rows"),
        *(F.count_if(F.col("reason") == reason.value).alias(f"reason_{reason}") for reason in Reason),
        *(F.count_if(f"_unmatched_{place}").alias(f"unmatched_{place}") for place in range(len(spec.joins))),
    ]


def _hidden(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    if spec.pseudonymise is None:
        return rows
    columns = ["client_id", *(f"f_{name}" for name in spec.pseudonymise.fields)]
    return pseudonymised(rows, columns, spec.pseudonymise.key_env)


def _placed(good: DataFrame, spec: DataSetSpec, kept: Observation, partitions: int | None) -> DataFrame:
    """Event ids, duplicates and places, after one shuffle by client.

    Of rows with the same client and id, the earliest is kept. `event_seq` counts from 0 by `time.order`, then event id.
    """
    values = [f"f_{field.name}" for field in spec.fields]
    columns = ["client_id", "_id", "event_time", "_order", "amount", "currency", *values, FILE]
    rows = good.select(*columns)
    together = rows.repartition(partitions, "client_id") if partitions else rows.repartition("client_id")
    same_id = Window.partitionBy("client_id", "_id").orderBy("event_time", FILE, F.xxhash64(*columns))
    numbered = together.withColumn("_nth", F.row_number().over(same_id))
    hashed = not spec.event_id.columns
    keep_repeats = hashed and spec.event_id.repeats == "keep"
    event_id = F.concat_ws("-", "_id", "_nth") if keep_repeats else F.col("_id")
    unique = F.lit(True) if keep_repeats else F.col("_nth") == 1
    counters: dict[str, Column] = {
        "rows": F.count_if(unique),
        "duplicates": F.count_if(~unique),
        "first": F.min("event_time").cast("string"),
        "last": F.max("event_time").cast("string"),
        **{f"absent_{field.name}": F.count_if(F.col(f"f_{field.name}").isNull() & unique) for field in spec.fields},
    }
    counted = numbered.observe(kept, *(column.alias(name) for name, column in counters.items()))
    same_time = Window.partitionBy("client_id", "event_time").orderBy("_order", "event_id")
    placed = counted.where(unique).withColumn("event_id", event_id)
    return placed.withColumn("event_seq", (F.row_number().over(same_time) - 1).cast("long")).select(
        "client_id",
        "event_id",
        "event_time",
        "event_seq",
        "amount",
        "currency",
        *(F.col(f"f_{field.name}").alias(field.name) for field in spec.fields),
        FILE,
    )


def facts_of(counts: IngestCounts) -> dict[str, Any]:
    """The counts as JSON values."""
    return {
        "quarantined_by_reason": dict(counts.reasons),
        "first_event": counts.first,
        "last_event": counts.last,
        "unmatched": dict(counts.unmatched),
        "absent": dict(counts.absent),
    }


def attribute_files(spec: DataSetSpec) -> list[tuple[FileSpec, dict[str, str]]]:
    """Join and client files with the columns that the spec needs of them."""
    joins = [
        (join.file, dict.fromkeys((join.key, *join.columns), f"joins.{place}")) for place, join in enumerate(spec.joins)
    ]
    clients = [
        (one.file, dict.fromkeys((one.id, *one.attributes.values()), f"clients.{place}"))
        for place, one in enumerate(spec.clients)
    ]
    return [*joins, *clients]


def damaged_attributes(spark: SparkSession, spec: DataSetSpec) -> DataFrame | None:
    """Damaged lines of join and client files, as quarantine takes them; None when no such file is text."""
    source = source_of(spec)
    text = [(file, needed) for file, needed in attribute_files(spec) if file.format in ("csv", "json")]
    frames = [damaged(read_file(spark, file, source, needed=needed)) for file, needed in text]
    return reduce(DataFrame.unionByName, frames) if frames else None
