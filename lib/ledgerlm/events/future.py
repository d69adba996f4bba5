"""Labels that are computed from events: what a client does in the days from an instant on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.clock import aware, fixed_instant, local, zoned
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.money import one_currency
from ledgerlm.events.patterns import offset_of
from ledgerlm.events.spec import DataSetSpec, FutureSpec, LabelSpec
from ledgerlm.events.spec_times import GridSpec

_STEPS = {"week": "7 days", "month": "1 month", "quarter": "3 months", "year": "1 year"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """The values of a task that is computed from events.

    Attributes:
        label: the task.
        rows: client_id, as_of, value double, covered (whether the data cover the days), unpriced (whether an event
            that counts has no amount); of every client with an event before as_of.
    """

    label: LabelSpec
    rows: DataFrame


def computed_labels(
    events: DataFrame | None, spec: DataSetSpec, firsts: DataFrame, end: dt.datetime | None = None
) -> Iterator[Computed]:
    """The labels that the spec computes from events.

    Args:
        events: the `events` table.
        spec: the data set.
        firsts: client_id, first_event_time.
        end: the end of the data; looked for if left out.

    Raises:
        DataError: no events were given, there are none, or amounts of several currencies would be added up.
    """
    for label in spec.labels:
        if label.future is None:
            continue
        if events is None:
            raise DataError(f"task {label.name} is computed from events, but no events were given")
        end = end or end_of_data(events, spec.time).time
        shown = aware(end, spec.time.zone)
        if shown.tzinfo is not None:
            shown = shown.astimezone(offset_of(spec.time.zone)).replace(tzinfo=None)
        grid = _grid(label, spec, shown)
        values = _values(events, firsts, label, grid, spec)
        covered = F.col("_day") + F.make_dt_interval(F.lit(_rule(label).days)) <= _literal(shown)
        yield Computed(label=label, rows=values.withColumn("covered", covered).drop("_day"))


def _values(events: DataFrame, firsts: DataFrame, label: LabelSpec, grid: Column, spec: DataSetSpec) -> DataFrame:
    """client_id, as_of, _day (as_of on the clock of the zone), value, unpriced."""
    rule, zone = _rule(label), spec.time.zone
    days = F.make_dt_interval(F.lit(rule.days))
    counting = reduce(DataFrame.where, (F.col(name).isin(*among) for name, among in label.only.items()), events)
    if rule.value == "amount" and spec.several_currencies:
        one_currency(counting, f"task {label.name}", "labels.only: {currency: [...]}")
    time = local(F.col("event_time"), zone)
    inside = F.filter(grid, lambda day: (day <= time) & (time < day + days))
    amount = F.col("amount") if rule.value == "amount" else F.lit(1)
    sums = (
        counting.select("client_id", amount.alias("_amount"), F.explode(inside).alias("_day"))
        .groupBy("client_id", "_day")
        .agg(_exact_sum("_amount").alias("_sum"), F.count_if(F.col("_amount").isNull()).alias("_absent"))
    )
    asked = firsts.withColumn("_day", F.explode(grid)).withColumn("as_of", zoned(F.col("_day"), zone))
    known = asked.where(F.col("first_event_time") < F.col("as_of")).join(sums, ["client_id", "_day"], how="left")
    return known.select(
        "client_id",
        "as_of",
        "_day",
        F.coalesce("_sum", F.lit(0.0)).alias("value"),
        (F.coalesce("_absent", F.lit(0)) > 0).alias("unpriced"),
    )


def _exact_sum(amount: str) -> Column:
    """The sum in decimals, since thresholds are set against it (ten tenths are one); in doubles where they overflow."""
    return F.coalesce(F.try_sum(amount).cast("double"), F.sum(F.col(amount).cast("double")))


def _grid(label: LabelSpec, spec: DataSetSpec, last: dt.datetime) -> Column:
    """The instants of a task as a clock in the zone of the data shows them; `last` is the end of the data there."""
    zone, rule = spec.time.zone, label.as_of if label.as_of is not None else spec.as_of
    if isinstance(rule, dt.datetime):
        return F.array(local(fixed_instant(rule, zone), zone))
    if not isinstance(rule, GridSpec):
        raise DataError(f"task {label.name}: a computed label without a fixed as_of passed the check of the spec")
    days = _rule(label).days
    first = dt.datetime.combine(rule.first, dt.time())
    to = dt.datetime.combine(rule.to, dt.time()) if rule.to else last - dt.timedelta(days=days)
    if to < first:
        raise DataError(
            f"task {label.name}: as_of: no instant from {rule.first} on has its {days} days before the "
            f"end of the data, {last}; begin earlier"
        )
    return F.sequence(_literal(first), _literal(to), F.expr(f"INTERVAL {_STEPS[rule.every]}"))


def _rule(label: LabelSpec) -> FutureSpec:
    assert label.future is not None, "asked of computed labels alone"
    return label.future


def _literal(shown: dt.datetime) -> Column:
    return F.lit(shown.isoformat(sep=" ")).cast("timestamp")
