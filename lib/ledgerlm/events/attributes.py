"""Attribute files of joins, clients and dictionaries: one row for each key, and a count of keys that disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.frames import small_frame, with_columns
from ledgerlm.events.cells import Uses, code, event_uses, raw, type_of
from ledgerlm.events.clock import fixed_instant
from ledgerlm.events.columns import DAMAGED, FAULT, FILE, LEFT_OUT, PAYLOAD
from ledgerlm.events.erased import without_erased
from ledgerlm.events.identity import identity, without
from ledgerlm.events.quality import Reason, aside, first_fault, said
from ledgerlm.events.sources import Needed, read_file
from ledgerlm.events.spec import DataSetSpec, source_of
from ledgerlm.events.spec_files import ClientFileSpec, Conflict, FileSpec, SourceSpec
from ledgerlm.events.spec_times import AsOfSpec
from ledgerlm.events.times import time_of

_KEY, _VALUES, _DIFFER = "_key", "_values", "_differ"


def sound(rows: DataFrame) -> DataFrame:
    """The rows without a fault of reading that hold something."""
    return rows.where(F.col(FAULT).isNull() & ~F.col(LEFT_OUT))


def joined(spark: SparkSession, rows: DataFrame, spec: DataSetSpec, place: int) -> DataFrame:
    """Adds the columns of an attribute file to raw rows, and `_unmatched_N`: whether the file lacks the row's key.

    It is null of a row that has none.
    """
    join, uses = spec.joins[place], event_uses(spec)
    matched = rows.withColumn(_KEY, code(join.key)).join(_join_rows(spark, spec, place), _KEY, how="left")
    unmatched = F.when(F.col(_KEY).isNotNull(), F.col(_DIFFER).isNull())
    names = [name for column in join.columns for name in uses.columns(column)]
    added = with_columns(matched, {name: F.col(_VALUES)[name] for name in names})
    return added.withColumn(f"_unmatched_{place}", unmatched).drop(_KEY, _VALUES, _DIFFER)


def attributes_of(spark: SparkSession, spec: DataSetSpec, one: ClientFileSpec, place: int) -> DataFrame:
    """client_id and a struct `_N` of the attributes of one client file, one row a client."""
    rows = _client_rows(spark, spec, one, place)
    return rows.select(F.col(_KEY).alias("client_id"), F.col(_VALUES).alias(f"_{place}"))


def dictionaries(spark: SparkSession, spec: DataSetSpec) -> DataFrame | None:
    """Code and description of every field that has a dictionary.

    Returns:
        field, code, description; key (field, code). None when no field has one.
    """
    frames: list[DataFrame] = []
    for place, field in enumerate(spec.fields):
        if isinstance(field.dictionary, dict) and field.dictionary:
            inline = small_frame(spark, [*field.dictionary.items()], "code string, description string")
            frames.append(
                inline.select(F.lit(field.name).alias("field"), identity(F.col("code")).alias("code"), "description")
            )
        elif field.dictionary is not None and not isinstance(field.dictionary, dict):
            rows = _book_rows(spark, spec, place).where(F.col(_VALUES).isNotNull())
            description = F.col(_VALUES)["description"].alias("description")
            frames.append(rows.select(F.lit(field.name).alias("field"), F.col(_KEY).alias("code"), description))
    if not frames:
        return None
    return reduce(DataFrame.unionByName, frames).where("code IS NOT NULL AND description IS NOT NULL")


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


def conflicts(spark: SparkSession, spec: DataSetSpec) -> dict[str, int]:
    """How many keys of each attribute file have rows that differ, by the file's key in the spec; zeros left out."""
    frames = {f"joins.{place}": _join_rows(spark, spec, place) for place in range(len(spec.joins))}
    frames |= {f"clients.{place}": _client_rows(spark, spec, one, place) for place, one in enumerate(spec.clients)}
    for place, field in enumerate(spec.fields):
        if field.dictionary is not None and not isinstance(field.dictionary, dict):
            frames[f"fields.{place}.dictionary"] = _book_rows(spark, spec, place)
    if not frames:
        return {}
    named = [frame.where(_DIFFER).select(F.lit(name).alias("name")) for name, frame in frames.items()]
    counted = reduce(DataFrame.unionByName, named).groupBy("name").count().collect()
    return {f"{row['name']} conflicting keys": row["count"] for row in sorted(counted)}


def damaged_attributes(spark: SparkSession, spec: DataSetSpec, erased: DataFrame | None = None) -> DataFrame | None:
    """Damaged lines of join and client files, and those whose `valid_from` is none, as quarantine takes them.

    Args:
        spark: session in UTC.
        spec: the data set.
        erased: digests of clients who were erased; None: nobody was.

    Returns:
        None when there is no such file.
    """
    judged = [_judged(spark, needed_of_join(spec, place), spec, None) for place in range(len(spec.joins))]
    for place, one in enumerate(spec.clients):
        rows = _judged(spark, needed_of_clients(spec, place), spec, one.valid_from)
        judged.append(without_erased(rows, erased, F.col("shown")[one.id], spec))
    return aside(reduce(DataFrame.unionByName, judged), spec) if judged else None


def needed_of_join(spec: DataSetSpec, place: int) -> Needed:
    """What the spec needs of the file of a join."""
    join, key = spec.joins[place], f"joins.{place}"
    return Needed(file=join.file, keys={join.key: f"{key}.key"} | dict.fromkeys(join.columns, f"{key}.columns"))


def needed_of_clients(spec: DataSetSpec, place: int) -> Needed:
    """What the spec needs of a file of client attributes."""
    one, key = spec.clients[place], f"clients.{place}"
    keys = {one.id: f"{key}.id"} | {column: f"{key}.attributes.{name}" for name, column in one.attributes.items()}
    return Needed(file=one.file, keys=keys | ({one.valid_from: f"{key}.valid_from"} if one.valid_from else {}))


def needed_of_dictionary(spec: DataSetSpec, place: int) -> Needed | None:
    """What the spec needs of the file of a field's dictionary; None where the field has none in a file."""
    book, key = spec.fields[place].dictionary, f"fields.{place}.dictionary"
    if book is None or isinstance(book, dict):
        return None
    return Needed(file=book.file, keys={book.code: f"{key}.code", book.description: f"{key}.description"})


def attribute_rows(spark: SparkSession, spec: DataSetSpec) -> Iterator[tuple[FileSpec, DataFrame]]:
    """The rows of each attribute file and dictionary as they are read, for a look at them.

    Yields:
        The file, and reason (null of a good row), detail, source_file, payload, shown map<string, string>.
    """
    wanted: list[tuple[Needed, str | None]] = [(needed_of_join(spec, place), None) for place in range(len(spec.joins))]
    wanted += [(needed_of_clients(spec, place), one.valid_from) for place, one in enumerate(spec.clients)]
    books = [needed_of_dictionary(spec, place) for place in range(len(spec.fields))]
    for needed, since in [*wanted, *((book, None) for book in books if book is not None)]:
        yield needed.file, _judged(spark, needed, spec, since)


def _judged(spark: SparkSession, needed: Needed, spec: DataSetSpec, since: str | None) -> DataFrame:
    """The rows of an attribute file, as `attribute_rows` has them; one whose `since` is no time is bad."""
    uses = Uses(codes=needed.keys, times=(since,) if since else (), zone=spec.time.zone)
    rows = read_file(spark, needed.file, source_of(spec), needed=needed.keys, uses=uses).where(~F.col(LEFT_OUT))
    bad = first_fault((_since(rows, since, spec).isNull(), Reason.BAD_TIME, said(since, raw(since)))) if since else None
    faults = {"reason": F.col(FAULT), "detail": F.col(DAMAGED)}
    if bad is not None:
        rows = rows.withColumn("_bad", bad)
        faults = {
            "reason": F.coalesce(FAULT, "_bad.reason"),
            "detail": F.when(F.col(FAULT).isNull(), F.col("_bad.detail")).otherwise(F.col(DAMAGED)),
        }
    shown = F.create_map(*(part for name in needed.keys for part in (F.lit(name), code(name))))
    named = [column.alias(name) for name, column in faults.items()]
    return rows.select(*named, FILE, F.col(PAYLOAD).alias("payload"), shown.alias("shown"))


def _since(rows: DataFrame, column: str, spec: DataSetSpec) -> Column:
    """The instant from which a row of client attributes holds; null where it is none."""
    return time_of(raw(column), type_of(rows, column), AsOfSpec(column=column, zone=spec.time.zone))


def _join_rows(spark: SparkSession, spec: DataSetSpec, place: int) -> DataFrame:
    join, uses, needed = spec.joins[place], event_uses(spec), needed_of_join(spec, place)
    found = sound(read_file(spark, join.file, source_of(spec), needed=needed.keys, uses=replace(uses, times=())))
    values = F.struct(*(name for column in join.columns for name in uses.columns(column)))
    return _one_each(found, code(join.key), values, join.conflicts)


def _client_rows(spark: SparkSession, spec: DataSetSpec, one: ClientFileSpec, place: int) -> DataFrame:
    needed = needed_of_clients(spec, place).keys
    times = (one.valid_from,) if one.valid_from else ()
    rows = sound(
        read_file(
            spark, one.file, source_of(spec), needed=needed, uses=Uses(codes=needed, times=times, zone=spec.time.zone)
        )
    )
    values = F.struct(*(without(one.nulls, code(column)).alias(name) for name, column in one.attributes.items()))
    since = None
    if one.valid_from:
        since = _since(rows, one.valid_from, spec)
        rows = rows.where(since.isNotNull())
        if spec.as_of is not None:
            rows = rows.where(since < fixed_instant(spec.as_of, spec.time.zone))
    return _one_each(rows, code(one.id), values, one.conflicts, since)


def _book_rows(spark: SparkSession, spec: DataSetSpec, place: int) -> DataFrame:
    book, needed = spec.fields[place].dictionary, needed_of_dictionary(spec, place)
    assert book is not None and not isinstance(book, dict) and needed is not None
    rows = sound(
        read_file(
            spark,
            book.file,
            spec.source or SourceSpec(files=(book.file,)),
            needed=needed.keys,
            uses=Uses(codes=(book.code,), zone=spec.time.zone),
        )
    )
    text = raw(book.description)
    values = F.struct(text.alias("description"))
    return _one_each(rows.where(text.isNotNull()), code(book.code), values, book.conflicts)


def _one_each(rows: DataFrame, key: Column, values: Column, rule: Conflict, since: Column | None = None) -> DataFrame:
    """_key, _values (null where rows disagree and the rule wants none) and _differ, one row a key.

    Args:
        rows: of an attribute file.
        key: the key; rows without one are left out.
        values: struct of the attributes.
        rule: which row holds where several of a key differ.
        since: instant from which a row holds; only the latest rows of a key count.
    """
    keyed = rows.select(
        key.alias(_KEY), values.alias(_VALUES), (since if since is not None else F.lit(0)).alias("_since")
    )
    keyed = keyed.where(F.col(_KEY).isNotNull())
    if since is not None:
        latest = keyed.groupBy(_KEY).agg(F.max("_since").alias("_since"))
        keyed = keyed.join(latest, [_KEY, "_since"], how="left_semi")
    # A row that holds nothing contradicts none; JSON leaves out what is absent.
    filled = F.when(F.to_json(_VALUES) != "{}", F.col(_VALUES))
    found = keyed.groupBy(_KEY).agg(F.min(filled).alias("_first"), F.max(filled).alias("_last"))
    differ = ~F.col("_first").eqNullSafe(F.col("_last"))
    chosen = {"first": F.col("_first"), "last": F.col("_last"), "absent": F.when(~differ, F.col("_last"))}[rule]
    return found.select(_KEY, chosen.alias(_VALUES), differ.alias(_DIFFER))
