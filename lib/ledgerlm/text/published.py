"""The text form that LLM4ES published (arXiv 2508.05688): whole days, logarithms of amounts, ranks of codes.

It loses what a language model could read (the time of day, the amounts, the meaning of ranked codes) and is here so
that ours can be compared with it. Two things differ from the public code: ranks are learnt on training clients, and a
code without a description is shown as `code 1234` instead of stopping the run.
"""

from __future__ import annotations

import datetime as dt

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.events.clock import local
from ledgerlm.events.spec import DataSetSpec, PublishedField
from ledgerlm.text.formats import Shown
from ledgerlm.text.numbers import plain_amount, plain_number

MOST_RANKED = 10_000  # codes of a field with a rank of their own, as in pytorch-lifestream
_FIRST_RANK = 2  # 0 is padding, 1 an unknown code
_EMPTY = "#EMPTY"  # the code of an absent value
_KEYS = ("client_id", "event_time", "event_seq", "event_id")


def published_fields(spec: DataSetSpec) -> tuple[PublishedField, ...]:
    """The columns that the spec states, or else day, log amount and all fields."""
    if spec.published:
        return spec.published
    amount = [PublishedField(of="amount", title="amount (scaled)", show="log_int")] if spec.amount else []
    fields = [PublishedField(of=field.name, title=field.title or field.name) for field in spec.fields]
    return (PublishedField(of="day", title="scaled time", show="day"), *amount, *fields)


def published_shown(spec: DataSetSpec) -> tuple[Shown, ...]:
    """What each event of a published document shows, in order."""
    return tuple(Shown(name=_name(one), title=one.title, kind="word") for one in published_fields(spec))


def as_published(events: DataFrame, spec: DataSetSpec, ranked_on: DataFrame) -> DataFrame:
    """Replaces the columns of events by those of a published document, as text.

    Args:
        events: the events table.
        spec: the data set.
        ranked_on: events on which codes are ranked by frequency: those of training clients.

    Returns:
        client_id, event_time, event_seq, event_id, and one string column for each of `published_shown`; a field shown
        as text keeps its codes, which the dictionaries describe.
    """
    fields = published_fields(spec)
    rows = events.select(*_KEYS, *(_value(one, spec).alias(_name(one)) for one in fields))
    for one in fields:
        if one.show == "rank":
            rows = _ranked(rows, _name(one), ranked_on.select(_value(one, spec).alias("code")))
    return rows


def _name(one: PublishedField) -> str:
    return one.of if one.show in ("text", "day") else f"{one.of}_{one.show}"


def _value(one: PublishedField, spec: DataSetSpec) -> Column:
    """The value as text; of a ranked field its code."""
    value, kind = _source(one, spec)
    if one.show == "rank":
        return F.coalesce(value.cast("string"), F.lit(_EMPTY))
    number = value.try_cast("double")
    log = F.signum(number) * F.log1p(F.abs(number))
    if one.show == "log_int":
        return log.cast("int").cast("string")
    if one.show == "log_2":
        return F.round(log, 2).cast("string")
    if kind == "amount":
        return plain_amount(value)
    return plain_number(value) if kind == "numeric" else value.cast("string")


def _source(one: PublishedField, spec: DataSetSpec) -> tuple[Column, str]:
    """The value before it is shown, and its kind: day, amount or that of the field."""
    if one.of == "day":
        origin = (spec.time.origin - dt.date(1970, 1, 1)).days if spec.time.origin else 0
        return F.unix_date(F.to_date(local(F.col("event_time"), spec.time.zone))) - origin, "day"
    return F.col(one.of), "amount" if one.of == "amount" else spec.field(one.of).kind


def _ranked(rows: DataFrame, name: str, learnt: DataFrame) -> DataFrame:
    """Replaces the codes in column `name` by their rank; ties by code."""
    order = (F.desc("count"), "code")
    # The window has one partition: of no more than MOST_RANKED codes.
    codes = learnt.groupBy("code").count().orderBy(*order).limit(MOST_RANKED)
    rank = F.row_number().over(Window.partitionBy(F.lit(0)).orderBy(*order)) - 1 + _FIRST_RANK
    ranks = codes.select(F.col("code").alias(name), rank.alias("_rank"))
    found = F.coalesce("_rank", F.lit(_FIRST_RANK - 1)).cast("string")
    return rows.join(F.broadcast(ranks), name, how="left").withColumn(name, found).drop("_rank")
