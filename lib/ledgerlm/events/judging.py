"""Raw rows become typed events, or carry the reason why they cannot be one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.engines.frames import with_columns
from ledgerlm.events.attributes import joined
from ledgerlm.events.cells import code, currency_at, event_uses, exact, raw, real, type_of
from ledgerlm.events.clock import fixed_instant, known_zone
from ledgerlm.events.columns import (
    BLOCK,
    DAMAGED,
    FAULT,
    FILE,
    FINER,
    KEY,
    LEFT_OUT,
    ODD,
    PATH,
    PAYLOAD,
    PLACE,
    ROW,
)
from ledgerlm.events.csv_files import Part
from ledgerlm.events.files import path_of
from ledgerlm.events.identity import damaged_client, damaged_id, present, without
from ledgerlm.events.masks import chosen, mask_steps, told
from ledgerlm.events.numbers import EXACT, amount_of, converted, lost_digits, number, product, same
from ledgerlm.events.quality import Reason, first_fault, recoded, said
from ledgerlm.events.sources import Needed, read_file
from ledgerlm.events.spec import AmountSpec, DataSetSpec, FieldSpec, SignSpec, source_of
from ledgerlm.events.spec_times import FILE_ORDER, TimeSpec
from ledgerlm.events.table_rows import TableRows, key_of
from ledgerlm.events.times import DOUBLED, LOSSY, READABLE, SKIPPED, TIME, timed
from ledgerlm.lake.schemas import AMOUNT

_ID_LENGTH = 32  # hexadecimal digits of a hashed id: 128 bits
_ONE, _ZERO = r"(?i)^(?:1(?:\.0+)?|true)$", r"(?i)^(?:0(?:\.0+)?|false)$"
NOTED = ("_signed", "_rounded", "_converted", "_cut", "_unordered", SKIPPED, DOUBLED, LOSSY)
"""What the settings of a spec decided about a row: counted, and written nowhere."""


def judged_rows(
    spark: SparkSession,
    spec: DataSetSpec,
    seen: Callable[[Part], None] | None = None,
    tables: Mapping[str, TableRows] | None = None,
) -> DataFrame:
    """The rows of all event files.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        seen: told the files as they are looked at, before any row is read.
        tables: path of a Delta table -> what is read of it; of others their newest version is.

    Returns:
        client_id, _id, _gone (the row takes the event of its id away), event_time, _order, amount, currency, `f_NAME`
        of each field, source_file, reason and detail (null for a good row), payload, PATH, BLOCK, PLACE, `_unmatched_N`
        of each join, ODD, LEFT_OUT, and the flags of `NOTED`.

    Raises:
        SpecError: no source, nothing at its path, or files that are not as the spec says.
    """
    places = range(len(source_of(spec).files))
    return reduce(DataFrame.unionByName, [judged_entry(spark, spec, place, seen, tables) for place in places])


def judged_entry(
    spark: SparkSession,
    spec: DataSetSpec,
    place: int,
    seen: Callable[[Part], None] | None = None,
    tables: Mapping[str, TableRows] | None = None,
) -> DataFrame:
    """The rows of one entry of event files, as `judged_rows` has them."""
    file, source = source_of(spec).files[place], source_of(spec)
    table = tables.get(path_of(file, source)) if tables and file.format == "delta" else None
    judged = _judged(_read(spark, spec, place, seen, None if table is None else table.rows), spec)
    if table is None or table.keys is None:
        return judged
    keyed = judged.withColumn(KEY, key_of(F.col("client_id"), F.col("_id"), F.col("payload")))
    return keyed.join(table.keys, KEY, how="left_semi").drop(KEY)


def good_rows(rows: DataFrame) -> DataFrame:
    """The judged rows that become events."""
    return rows.where(F.col("reason").isNull() & ~F.col(LEFT_OUT))


def _read(
    spark: SparkSession,
    spec: DataSetSpec,
    place: int,
    seen: Callable[[Part], None] | None,
    table: DataFrame | None,
) -> DataFrame:
    """One file entry with the columns that the spec needs, join columns included."""
    needed = needed_of_events(spec, place)
    rows = read_file(
        spark,
        needed.file,
        source_of(spec),
        needed=needed.keys,
        optional=needed.optional,
        uses=event_uses(spec),
        seen=seen,
        table=table,
    )
    for number_of_join in range(len(spec.joins)):
        rows = joined(spark, rows, spec, number_of_join)
    return rows


def needed_of_events(spec: DataSetSpec, place: int) -> Needed:
    """What the spec needs of an entry of event files; columns of joins are not in it, unless it gives them itself."""
    file = source_of(spec).files[place]
    columns = {column for join in spec.joins for column in join.columns}
    return Needed(
        file=file,
        keys={name: key for name, key in _keys(spec).items() if name not in columns or name in file.constants},
        optional=frozenset(column for field in spec.fields if field.optional for column in field.columns),
    )


def _keys(spec: DataSetSpec) -> dict[str, str]:
    """Column to the key of the spec that names it."""
    needed = {spec.client: "client"} | dict.fromkeys(spec.time.parts, "time.column")
    if spec.time.order and spec.time.order != FILE_ORDER:
        needed[spec.time.order] = "time.order"
    if spec.time.hour:
        needed[spec.time.hour] = "time.hour"
    if spec.time.zone_column:
        needed[spec.time.zone_column] = "time.zone_column"
    needed |= dict.fromkeys(spec.event_id.deleted, "event_id.deleted")
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


def _judged(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Typed columns, and reason and detail of rows that cannot be an event; step by step, so that none stands twice."""
    typed = rows.withColumns(
        {
            "client_id": code(spec.client),
            "_id": _raw_id(spec),
            "_gone": _gone(spec),
            "_order": _order(spec),
            **{f"_raw_{field.name}": without(field.nulls, raw(field.column)) for field in spec.fields_of("numeric")},
            **_money(spec),
        }
    )
    typed = _timed(typed, spec).withColumnRenamed(TIME, "event_time")
    valued = typed.withColumns({**_amount(spec), "_unordered": _unordered(spec), "_cut": _cut(spec)})
    rows = valued.withColumns({"_bad": _fault(spec)} | {f"f_{field.name}": _value(field) for field in spec.fields})
    rows = _masked(rows, [f"f_{field.name}" for field in spec.fields_of("text") if not field.flags], spec)
    return rows.select(
        "client_id",
        "_id",
        "_gone",
        "event_time",
        "_order",
        "amount",
        "currency",
        *(f"f_{field.name}" for field in spec.fields),
        FILE,
        F.when(~F.col(LEFT_OUT), F.coalesce(F.col(FAULT), F.col("_bad.reason"))).alias("reason"),
        F.when(F.col(FAULT).isNull(), F.col("_bad.detail")).otherwise(F.col(DAMAGED)).alias("detail"),
        F.col(PAYLOAD).alias("payload"),
        PATH,
        BLOCK,
        PLACE,
        *(f"_unmatched_{place}" for place in range(len(spec.joins))),
        *NOTED,
        ODD,
        LEFT_OUT,
    )


def _masked(rows: DataFrame, texts: Sequence[str], spec: DataSetSpec) -> DataFrame:
    """The rows with what names a person in texts replaced, as `masked` does it, in a projection for each step."""
    steps = mask_steps(spec.mask, spec.mask_words)
    if not texts or not steps:
        return rows
    found = {name: f"_told_{name}" for name in texts}
    rows = with_columns(rows, {one: told(F.col(name)) for name, one in found.items()})
    for step in steps:
        rows = with_columns(rows, {one: step(F.col(one)) for one in found.values()})
    return with_columns(rows, {name: chosen(F.col(name), F.col(one)) for name, one in found.items()})


def _none() -> Column:
    return F.lit(None).cast("string")


def _timed(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Adds the instant, as `timed` does, and `_zone` and `_hour` of each row: null where they are none."""
    form = spec.time
    if form.columns:
        texts = [raw(name).cast("string") for name in form.columns]
        # Unlike concat_ws, concat is null when a part is.
        value = F.concat(texts[0], *(part for one in texts[1:] for part in (F.lit(" "), one)))
    else:
        value = raw(form.column)
    zone, hour = F.lit(form.zone), F.lit(0)
    if form.zone_column:
        zone = F.when(code(form.zone_column).isNull(), form.zone).otherwise(known_zone(code(form.zone_column)))
    if form.hour:
        written = number(raw(form.hour))
        hour = F.when(written.between(0, 23) & (written == F.floor(written)), written.cast("int"))
    found = timed(
        rows.withColumns({"_zone": zone, "_hour": hour}),
        value,
        T.StringType() if form.columns else type_of(rows, form.column),
        form,
        zone=F.col("_zone") if form.zone_column else None,
        hours=F.col("_hour") if form.hour else None,
        days_in_zone=form.clock is not True,
    )
    return found.withColumn(LOSSY, F.col(LOSSY) | F.col(FINER))


def _order(spec: DataSetSpec) -> Column:
    if not spec.time.order or spec.time.order == FILE_ORDER:
        return F.lit(0).cast("decimal(38,9)")
    return raw(spec.time.order).try_cast("decimal(38,9)")


def _unordered(spec: DataSetSpec) -> Column:
    """Whether the order column holds something that is no number."""
    if not spec.time.order or spec.time.order == FILE_ORDER:
        return F.lit(False)
    return F.col("_order").isNull()


def _raw_id(spec: DataSetSpec) -> Column:
    if not spec.event_id.columns:
        return F.substring(F.sha2(F.col(ROW), 256), 1, _ID_LENGTH)
    parts = [code(name) for name in spec.event_id.columns]
    if len(parts) > 1:
        parts = [F.replace(F.replace(part, F.lit("\\"), F.lit("\\\\")), F.lit("|"), F.lit(r"\|")) for part in parts]
    # Unlike concat_ws, concat is null when a part is.
    return F.concat(parts[0], *(part for one in parts[1:] for part in (F.lit("|"), one)))


def _gone(spec: DataSetSpec) -> Column:
    """Whether the row takes the event of its id away."""
    marks = [code(column).isin(*values) for column, values in spec.event_id.deleted.items()]
    return F.coalesce(reduce(and_, marks), F.lit(False)) if marks else F.lit(False)


def _unknown(column: str, spec: DataSetSpec) -> Column:
    """Whether a column that tells deletions holds a value that the spec says nothing of; null of an empty one."""
    return ~code(column).isin(*spec.event_id.deleted[column], *spec.event_id.kept.get(column, ()))


def _cut(spec: DataSetSpec) -> Column:
    """Whether a number field holds more digits than a double keeps."""
    cut = [lost_digits(F.col(f"_raw_{field.name}"), real(field.column)) for field in spec.fields_of("numeric")]
    return reduce(or_, cut, F.lit(False))


def _money(spec: DataSetSpec) -> dict[str, Column]:
    """What is written as the amount, as text and exactly; its currency, and whether all that is said of it agrees."""
    conf = spec.amount
    if conf is None:
        nothing = {"_raw_amount": _none(), "_exact": F.lit(None).cast(EXACT), "_currency": _none()}
        return {**nothing, "_agree": F.lit(True)}
    written = without(conf.nulls, raw(conf.column))
    number_of = exact(conf.column) if not conf.nulls else F.when(written.isNotNull(), exact(conf.column))
    stated = currency_at(conf.currency_column) if conf.currency_column else F.lit(conf.currency).cast("string")
    at = currency_at(conf.column)
    return {
        "_raw_amount": written,
        "_exact": product(number_of, exact(conf.times)) if conf.times else number_of,
        "_currency": F.coalesce(stated, at),
        "_agree": F.coalesce(stated == at, F.lit(True)),
    }


def _amount(spec: DataSetSpec) -> dict[str, Column]:
    """The amount, null where it cannot be told, its currency, and what the settings decided."""
    conf, value = spec.amount, F.col("_exact")
    if conf is None:
        nothing = dict.fromkeys(("_signed", "_rounded", "_converted"), F.lit(False))
        return {"amount": F.lit(None).cast(AMOUNT), "currency": F.col("_currency"), **nothing}
    read = amount_of(value, conf.scale, rounded=conf.round)
    rounded = F.coalesce(~same(F.round(value, conf.scale), value), F.lit(False)) if conf.round else F.lit(False)
    currency, foreign = F.col("_currency"), F.lit(False)
    if conf.convert:
        rates = F.create_map(*(F.lit(part) for name, rate in conf.convert.rates.items() for part in (name, str(rate))))
        home, foreign = currency == conf.convert.into, F.coalesce(currency != conf.convert.into, F.lit(False))
        turned = amount_of(converted(value, F.try_element_at(rates, currency)), conf.scale, rounded=True)
        read, currency = F.when(home, read).when(foreign, turned), F.lit(conf.convert.into)
    amount = F.when(F.col("_agree"), _with_sign(read, conf))
    signed = F.coalesce(value < 0, F.lit(False)) if conf.sign != "as_is" else F.lit(False)
    return {
        "amount": amount,
        "currency": F.when(amount.isNotNull(), currency) if conf.convert else currency,
        "_signed": signed,
        "_rounded": rounded & ~foreign,
        "_converted": foreign & amount.isNotNull(),
    }


def _with_sign(amount: Column, conf: AmountSpec) -> Column:
    if conf.sign == "negative":
        return -amount
    if not isinstance(conf.sign, SignSpec):
        return amount
    mark = code(conf.sign.column)
    magnitude = F.abs(amount) if conf.sign.signed == "column" else amount
    # Not by a factor: Spark shortens products of long decimals.
    return F.when(mark.isin(*conf.sign.negative), -magnitude).when(mark.isin(*conf.sign.positive), magnitude)


def _value(field: FieldSpec) -> Column:
    if field.kind == "numeric":
        return (
            F.when(F.col(f"_raw_{field.name}").isNotNull(), real(field.column)) if field.nulls else real(field.column)
        )
    if field.flags:
        ones = (F.when(raw(column).rlike(_ONE), word) for column, word in field.flags.items())
        return F.nullif(F.concat_ws("|", *ones), F.lit(""))
    text = without(field.nulls, raw(field.column) if field.kind == "text" else code(field.column))
    if field.extract:
        text = present(F.regexp_extract(text, field.extract, 1))
    return recoded(text, field.values)


def _fault(spec: DataSetSpec) -> Column:
    """Struct of reason and detail, null of a good row."""
    written = F.concat_ws(" ", *(raw(name).cast("string") for name in spec.time.parts))

    def midnight_of(day: dt.date) -> Column:
        return fixed_instant(dt.datetime.combine(day, dt.time()), spec.time.zone)

    raw_time = said(" ".join(spec.time.parts), F.nullif(written, F.lit("")))
    time, client = F.col("event_time"), F.col("client_id")
    flags = [(name, raw(name)) for field in spec.fields for name in field.flags]
    numeric = [(field.column, F.col(f"_raw_{field.name}")) for field in spec.fields_of("numeric")]
    ids = "event_id: " + ", ".join(spec.event_id.columns) + " absent"
    named = (
        (client.isNull(), Reason.NO_CLIENT, said(spec.client, raw(spec.client).cast("string"))),
        (damaged_client(client), Reason.DAMAGED_ID, said(spec.client, client)),
        (F.col("_id").isNull(), Reason.NO_EVENT_ID, F.lit(ids)),
        *((damaged_id(code(name)), Reason.DAMAGED_ID, said(name, code(name))) for name in spec.event_id.columns),
        *((_unknown(name, spec), Reason.BAD_OPERATION, said(name, code(name))) for name in spec.event_id.deleted),
    )
    found = first_fault(
        *named,
        *_zone_faults(spec.time),
        (time.isNull(), Reason.BAD_TIME, raw_time),
        (time < midnight_of(spec.time.first_day), Reason.TIME_BEFORE_RANGE, raw_time),
        (time >= midnight_of(spec.time.far_future), Reason.TIME_IN_FAR_FUTURE, raw_time),
        *(_amount_faults(spec.amount) if spec.amount else ()),
        *((text.isNotNull() & real(name).isNull(), Reason.BAD_NUMBER, said(name, text)) for name, text in numeric),
        *((~value.rlike(f"{_ONE}|{_ZERO}"), Reason.BAD_FLAG, said(name, value)) for name, value in flags),
    )
    # What takes an event away need not say more than which.
    return F.when(F.col("_gone"), first_fault(*named)).otherwise(found) if spec.event_id.deleted else found


def _zone_faults(form: TimeSpec) -> list[tuple[Column, Reason, Column]]:
    """Faults of times that can be read, but for the zone or the hour that stands in a column of its own."""
    bad = F.col("event_time").isNull() & F.col(READABLE)
    parts = (("_zone", form.zone_column), ("_hour", form.hour))
    return [(bad & F.col(part).isNull(), Reason.BAD_TIME, said(name, raw(name))) for part, name in parts if name]


def _amount_faults(conf: AmountSpec) -> list[tuple[Column, Reason, Column]]:
    parts = [F.concat(F.lit(f"{conf.column}: "), F.col("_raw_amount"))]
    faults = []
    if isinstance(conf.sign, SignSpec):
        parts.append(F.concat(F.lit(f"{conf.sign.column}: "), F.coalesce(raw(conf.sign.column), F.lit("absent"))))
        if conf.sign.signed == "refuse":
            faults.append((F.col("_signed"), Reason.SIGNED_AMOUNT, F.concat_ws(", ", *parts)))
    if conf.times:
        parts.append(F.concat(F.lit(f"{conf.times}: "), F.coalesce(raw(conf.times), F.lit("absent"))))
    if conf.convert:
        parts.append(F.concat(F.lit("currency: "), F.coalesce("_currency", F.lit("absent"))))
    bad = F.col("_raw_amount").isNotNull() & F.col("amount").isNull()
    return [*faults, (bad, Reason.BAD_AMOUNT, F.concat_ws(", ", *parts))]


def counters(spec: DataSetSpec) -> Mapping[str, Column]:
    """What is counted while rows are judged, by name."""
    return {
        "rows": F.count_if(~F.col(LEFT_OUT)),
        LEFT_OUT: F.count_if(LEFT_OUT),
        **{f"reason_{reason}": F.count_if(F.col("reason") == reason.value) for reason in Reason},
        **{f"unmatched_{place}": F.count_if(f"_unmatched_{place}") for place in range(len(spec.joins))},
        **{f"keyed_{place}": F.count(f"_unmatched_{place}") for place in range(len(spec.joins))},
        **{name: F.count_if(F.col(name) & F.col("reason").isNull() & ~F.col(LEFT_OUT)) for name in NOTED},
        "odd": F.count_if(ODD),
        "open": F.count_if(F.col(ODD) & (F.col("reason") == Reason.UNCLOSED_QUOTE.value)),
    }
