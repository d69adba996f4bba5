"""Monthly partials: what each month of a client's events adds to its aggregate features.

A history is folded from the partials of its months (`ledgerlm.baselines.folding`), so events are added up once, and
not once for each time that is asked. The sums are such that a fold gives the same bytes however rows are spread and
whichever months were made anew:

* logarithms are whole numbers of steps of 2**-24, and so are their squares; integers add up to the same in any order;
* other numbers are doubles, added up within a month in the order of events, and over months in the order of months.

Nothing here depends on codes or currencies that are learnt: a month holds all that it has. See docs/rescoring.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.baselines.codes import ABSENT
from ledgerlm.config import Conf
from ledgerlm.engines.frames import settled
from ledgerlm.events.clock import local
from ledgerlm.lake.differences import applied, differences
from ledgerlm.lake.schemas import DOUBLE_SUMS, PARTIALS, STEP_SUMS
from ledgerlm.text.rendering import KEYS
from ledgerlm.text.windows import bucket, period_of

if TYPE_CHECKING:
    from ledgerlm.engines.frames import Keep

LOGS = ("log_amount", "log_days")
"""Numbers that are added up in steps."""
STEPS_OF_ONE = 1 << 24
"""Steps of one: the resolution of a float at one. A logarithm is off by half a step at most, 3e-8."""
LOW_BITS = 31
"""Bits of a square that are added up apart from the others, so that neither sum can overflow."""
DAY_MICROS = 86_400_000_000
_DAY_SECONDS = 86_400.0
_KEY = ("client_id", "month")


class Summed(Conf):
    """What is summed up of the events of a month."""

    categorical: tuple[str, ...] = Field(
        description="columns of codes, the currency among them where there are several"
    )
    numeric: tuple[str, ...] = Field(description="columns of numbers beside the amount")
    by_code: tuple[str, ...] = Field(description="numbers summed up for each code: log_amount, amount, log_days …")
    amounts: bool = Field(description="the data have amounts")
    currencies: bool = Field(description="amounts may be of several currencies, which are never added up")
    hour: bool = Field(description="the hour is a code")
    weekday: bool = Field(description="the weekday is a code")
    zone: str = Field("UTC", description="time zone of months, hours and weekdays")

    @property
    def whole(self) -> tuple[str, ...]:
        """Numbers summed up over all events."""
        return (*(("amount", "log_amount") if self.amounts else ()), "log_days", *self.numeric)

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of codes."""
        computed = (*(("hour",) if self.hour else ()), *(("weekday",) if self.weekday else ()))
        return tuple(dict.fromkeys((*self.categorical, *computed)))


def in_steps(names: Sequence[str]) -> list[str]:
    """The numbers that are added up in steps, in their order."""
    return [name for name in names if name in LOGS]


def in_doubles(names: Sequence[str]) -> list[str]:
    """The numbers that are added up as doubles, in their order."""
    return [name for name in names if name not in LOGS]


def bind(value: Column, body: Callable[[Column], Column]) -> Column:
    """An expression of a value that is computed once, however often it is used."""
    return F.element_at(F.transform(F.array(value), body), 1)


def month_partials(events: DataFrame, summed: Summed, spans: DataFrame | None = None) -> DataFrame:
    """Adds up events by client and month.

    Args:
        events: the `events` table.
        summed: what is summed up.
        spans: client_id, start (first day of a month), event_before (time of the client's last event before it, null
            for none): only these clients' months from `start` on. With a column `as_of`: only the events of the month
            `start` before that time, for each of them.

    Returns:
        client_id, as_of where `spans` has it, and the columns of `partials` without `feature_set` and `run_id`; key
        (client_id, month), or (client_id, as_of, month).
    """
    rows = _observed(events, summed, spans)
    key = (*(("as_of",) if "as_of" in rows.columns else ()), *_KEY)
    totals, groups = _totals(rows, summed, key), _groups(rows, summed, key)
    none = F.array().cast(PARTIALS.schema["groups"].dataType)
    joined = totals.join(groups, on=list(key), how="left").withColumn("bucket", bucket(F.col("client_id")))
    named = [name for name in PARTIALS.schema.fieldNames() if name not in ("feature_set", "run_id")]
    return joined.withColumn("groups", F.coalesce("groups", none)).select(*key[:-2], *named)


def changed_partials(
    events: DataFrame, standing: DataFrame, dirty: DataFrame, summed: Summed, *, keep: Keep
) -> DataFrame:
    """The differences between the partials that stand and those of the events now.

    Args:
        events: the `events` table.
        standing: partials of one feature set.
        dirty: client_id, earliest: whose events changed, and from which time on; one row a client.
        summed: what is summed up.
        keep: computes a frame once.

    Returns:
        Rows of the partials table as `lake.differences` has them, without `feature_set`; kept.
    """
    start = period_of(F.col("earliest"), "month", summed.zone)
    own = standing.join(dirty.select("client_id", start.alias("start")), on="client_id", how="inner")
    older = own.where(F.col("month") < F.col("start")).groupBy("client_id")
    before = older.agg(F.max_by("last_event_time", "month").alias("event_before"))
    spans = dirty.select("client_id", start.alias("start")).join(before, on="client_id", how="left")
    made = month_partials(events, summed, spans)
    old = own.where(F.col("month") >= F.col("start"))
    return settled(differences(old, made, _KEY, [name for name in made.columns if name not in _KEY]), keep)


def after(standing: DataFrame, changes: DataFrame) -> DataFrame:
    """The partials of one feature set after the differences of `changed_partials`."""
    return applied(standing, changes, _KEY)


def _observed(events: DataFrame, summed: Summed, spans: DataFrame | None) -> DataFrame:
    """Each event with its month, codes, currency and numbers, and the time of the event before."""
    fields: dict[str, Column] = {name: F.col(f"`{name}`") for name in summed.categorical}
    time = local(F.col("event_time"), summed.zone)
    # A field of the data of the same name wins, as in documents.
    fields |= {"hour": F.hour(time).cast("string")} if summed.hour and "hour" not in fields else {}
    fields |= {"weekday": F.dayofweek(time).cast("string")} if summed.weekday and "weekday" not in fields else {}
    codes = [
        F.struct(F.lit(name).alias("field"), F.coalesce(code, F.lit(ABSENT)).alias("code"))
        for name, code in fields.items()
    ]
    amount = F.col("amount").cast("double")
    currency = F.coalesce("currency", F.lit(ABSENT)) if summed.currencies else F.lit(None).cast("string")
    known = {*summed.whole, *summed.by_code} - {"amount", *LOGS}
    rows = events.select(
        *KEYS,
        period_of(F.col("event_time"), "month", summed.zone).alias("month"),
        F.array(*codes).cast("array<struct<field:string,code:string>>").alias("codes"),
        currency.alias("currency"),
        F.struct(
            amount.alias("amount"),
            (F.signum(amount) * F.log1p(F.abs(amount))).alias("log_amount"),
            *(F.col(f"`{name}`").cast("double").alias(name) for name in sorted(known)),
        ).alias("numbers"),
    )
    return _with_pause(_within(rows, spans))


def _within(rows: DataFrame, spans: DataFrame | None) -> DataFrame:
    """The events of spans, with `event_before` of their span."""
    if spans is None:
        return rows.withColumn("event_before", F.lit(None).cast("timestamp"))
    inside = F.col("month") >= F.col("start")
    if "as_of" in spans.columns:
        inside = (F.col("month") == F.col("start")) & (F.col("event_time") < F.col("as_of"))
    return rows.join(spans, on="client_id", how="inner").where(inside).drop("start")


def _with_pause(rows: DataFrame) -> DataFrame:
    """Adds the place of each event, and `log_days`: ln(1 + days since the client's event before)."""
    of = [name for name in ("client_id", "as_of") if name in rows.columns]
    order = Window.partitionBy(*of).orderBy("month", *KEYS[1:])
    placed = rows.withColumns(
        {
            "place": F.row_number().over(order),
            "event_before": F.coalesce(F.lag("event_time").over(order), F.col("event_before")),
        }
    )
    seconds = F.col("event_time").cast("double") - F.col("event_before").cast("double")
    # Never less than none: where a clock is put back over the end of a month, months are not in the order of time.
    pause = F.greatest(F.coalesce(seconds, F.lit(0.0)), F.lit(0.0))
    return placed.withColumn("log_days", F.log1p(pause / _DAY_SECONDS))


def _number(name: str) -> Column:
    return F.col("log_days") if name == "log_days" else F.col("numbers").getField(name)


def _sums_of_steps(name: str) -> list[Column]:
    """Aggregates of a number in steps: how many, their sum, and their squares in two parts."""
    steps = F.rint(_number(name) * STEPS_OF_ONE).cast("long")
    square = steps * steps
    return [
        F.count(steps).alias(f"{name}:events"),
        F.coalesce(F.sum(steps), F.lit(0)).alias(f"{name}:sum"),
        F.coalesce(F.sum(F.shiftright(square, LOW_BITS)), F.lit(0)).alias(f"{name}:high"),
        F.coalesce(F.sum(square.bitwiseAND(F.lit((1 << LOW_BITS) - 1))), F.lit(0)).alias(f"{name}:low"),
    ]


def _steps(names: Sequence[str]) -> Column:
    """What `_sums_of_steps` found, an element a number."""
    parts = ("events", "sum", "high", "low")
    each = (F.struct(*(F.col(f"`{name}:{part}`").alias(part) for part in parts)) for name in names)
    return F.array(*each).cast(STEP_SUMS).alias("steps")


def _doubles(names: Sequence[str]) -> Column:
    """What is summed up of numbers as doubles, in the order of `listed`, an element a number."""
    each = (_double(F.col("listed").getField(name)) for name in names)
    return F.array(*each).cast(DOUBLE_SUMS).alias("doubles")


def _double(values: Column) -> Column:
    """How many numbers, their sum, their mean, and their squared distances from it.

    The mean is counted from the first number, so that numbers that are all the same have it and no distance.
    """

    def told(known: Column) -> Column:
        first = F.coalesce(F.try_element_at(known, F.lit(1)), F.lit(0.0))
        return bind(
            _mean(known, first),
            lambda mean: F.struct(
                F.size(known).cast("long").alias("events"),
                _added(known, lambda one: one).alias("sum"),
                mean.alias("mean"),
                _added(known, lambda one: (one - mean) * (one - mean)).alias("spread"),
            ),
        )

    return bind(F.filter(values, lambda one: one.isNotNull()), told)


def _mean(values: Column, first: Column) -> Column:
    return first + _added(values, lambda one: one - first) / F.greatest(F.size(values), F.lit(1))


def _added(values: Column, part: Callable[[Column], Column]) -> Column:
    return F.aggregate(values, F.lit(0.0), lambda total, one: total + part(one))


def _trend() -> Column:
    """Moments of logarithms of amounts over time in days, for a line through them."""

    def told(known: Column) -> Column:
        days = F.transform(known, lambda one: F.unix_micros(one["event_time"]) / F.lit(float(DAY_MICROS)))
        logs = F.transform(known, lambda one: one["log_amount"])
        return bind(F.struct(days.alias("days"), logs.alias("logs")), moments)

    def moments(pair: Column) -> Column:
        days, logs = pair["days"], pair["logs"]
        firsts = (F.coalesce(F.try_element_at(one, F.lit(1)), F.lit(0.0)) for one in (days, logs))
        means = [_mean(one, first).alias(name) for name, one, first in zip("tx", (days, logs), firsts, strict=True)]
        return bind(F.struct(*means), lambda mean: moved(days, logs, mean["t"], mean["x"]))

    def moved(days: Column, logs: Column, time: Column, value: Column) -> Column:
        joint = F.zip_with(days, logs, lambda day, log: (day - time) * (log - value))
        return F.struct(
            F.size(days).cast("long").alias("events"),
            time.alias("time"),
            value.alias("value"),
            _added(days, lambda day: (day - time) * (day - time)).alias("spread"),
            _added(joint, lambda one: one).alias("joint"),
        )

    return bind(F.filter("listed", lambda one: one["log_amount"].isNotNull()), told).alias("trend")


def _totals(rows: DataFrame, summed: Summed, key: Sequence[str]) -> DataFrame:
    """Sums over all events of a month, an element a currency."""
    logs, others = in_steps(summed.whole), in_doubles(summed.whole)
    event = F.struct(
        "place",
        "event_time",
        "event_before",
        *(F.col("numbers").getField(name).alias(name) for name in dict.fromkeys(("amount", "log_amount", *others))),
    )
    each = rows.groupBy(*key, "currency").agg(
        F.count(F.lit(1)).alias("events"),
        *(one for name in logs for one in _sums_of_steps(name)),
        # Sorted by place, since the order of a collected list is promised by nobody; in order already, it costs little.
        F.sort_array(F.collect_list(event)).alias("listed"),
    )
    total = F.struct(
        "currency",
        "events",
        _steps(logs),
        _doubles(others),
        _trend(),
        F.col("listed").getField("event_time").alias("times"),
        F.col("listed").getField("amount").alias("amounts"),
    )
    first, last = F.element_at("listed", 1), F.element_at("listed", -1)
    told = each.select(*key, total.alias("total"), first.alias("first"), last["event_time"].alias("last"), "events")
    return told.groupBy(*key).agg(
        F.min(F.struct(F.col("first.place"), F.col("first.event_before")))
        .getField("event_before")
        .alias("event_before"),
        F.min("first.event_time").alias("first_event_time"),
        F.max("last").alias("last_event_time"),
        F.sum("events").alias("event_count"),
        F.sort_array(F.collect_list("total")).alias("totals"),
    )


def _groups(rows: DataFrame, summed: Summed, key: Sequence[str]) -> DataFrame:
    """Sums by field and code (and currency), an element each."""
    logs, others = in_steps(summed.by_code), in_doubles(summed.by_code)
    pairs = rows.withColumn("pair", F.explode("codes")).withColumns(
        {"field": F.col("pair.field"), "code": F.col("pair.code")}
    )
    listed = F.sort_array(F.collect_list(F.struct("place", *(_number(name).alias(name) for name in others))))
    each = pairs.groupBy(*key, "field", "code", "currency").agg(
        F.count(F.lit(1)).alias("events"),
        *(one for name in logs for one in _sums_of_steps(name)),
        *((listed.alias("listed"),) if others else ()),
    )
    group = F.struct("field", "code", "currency", "events", _steps(logs), _doubles(others))
    return (
        each.select(*key, group.alias("group")).groupBy(*key).agg(F.sort_array(F.collect_list("group")).alias("groups"))
    )
