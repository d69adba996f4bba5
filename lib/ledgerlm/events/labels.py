"""Clients with their attributes, and labels with their `as_of`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window, WindowSpec
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.attributes import attributes_of
from ledgerlm.events.cells import Uses, code, raw, real, type_of
from ledgerlm.events.clock import fixed_instant, local, zoned
from ledgerlm.events.columns import FAULT, FILE, PAYLOAD
from ledgerlm.events.identity import damaged_client
from ledgerlm.events.judging import aside, first_fault
from ledgerlm.events.quality import Reason, pseudonymised
from ledgerlm.events.sources import read_file
from ledgerlm.events.spec import DataSetSpec, FutureSpec, LabelSpec, source_of
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.events.spec_times import AsOfSpec
from ledgerlm.events.times import time_of

_KEY = ("client_id", "task", "as_of")
_LEFT_OUT = "left_out"
"""In place of a reason: a row that the spec's `only` passes over, which is counted and kept nowhere."""
_JUDGED = (
    "client_id string, task string, as_of timestamp, label double, label_text string, reason string, detail string, "
    "source_file string, payload string"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Labels and what was set aside, neither computed yet.

    Attributes:
        labels: client_id, task, as_of, label (class number or value), label_text; key (client_id, task, as_of).
        quarantine: reason, detail, source_file, payload.
        judged: filled when `labels` is computed (once).
    """

    labels: DataFrame
    quarantine: DataFrame
    judged: Observation

    def rows(self) -> tuple[int, int, int, int]:
        """Label rows in, out, quarantined and duplicate, once `labels` has been written.

        Raises:
            DataError: when they do not add up.
        """
        seen = self.judged.get
        rows, out, quarantined, duplicates = (int(seen[name]) for name in ("rows", "out", "quarantined", "duplicates"))
        if rows != out + quarantined + duplicates:
            raise DataError(f"labels: {rows} in, but {out} out + {quarantined} quarantined + {duplicates} duplicates")
        return rows, out, quarantined, duplicates

    @property
    def left_out(self) -> int:
        """Rows that `only` passes over, once `labels` has been written."""
        return int(self.judged.get[_LEFT_OUT])


def first_events(events: DataFrame) -> DataFrame:
    """client_id and first_event_time: one row for each client that has events."""
    return events.groupBy("client_id").agg(F.min("event_time").alias("first_event_time"))


def client_attributes(spark: SparkSession, spec: DataSetSpec, firsts: DataFrame) -> DataFrame:
    """The clients that have events, with the attributes of the spec.

    Args:
        spark: session in UTC.
        spec: the data set.
        firsts: from `first_events`.

    Returns:
        client_id and one string column for each attribute; null where no file knows it.
    """
    clients = firsts.select("client_id")
    for place, one in enumerate(spec.clients):
        found = attributes_of(spark, spec, one, place)
        hidden = pseudonymised(found, ["client_id"], spec.pseudonymise.key_env if spec.pseudonymise else None)
        clients = clients.join(hidden, "client_id", how="left")
    columns: dict[str, list[Column]] = {}
    for place, one in enumerate(spec.clients):
        for name in one.attributes:
            columns.setdefault(name, []).append(F.col(f"_{place}.{name}"))
    return clients.select("client_id", *(F.coalesce(*found).alias(name) for name, found in columns.items()))


def labels_of(spark: SparkSession, spec: DataSetSpec, firsts: DataFrame, events: DataFrame | None = None) -> Labelled:
    """Reads or computes the labels of all tasks.

    Args:
        spark: session in UTC.
        spec: the data set.
        firsts: from `first_events`; a label without an event before its `as_of` is set aside.
        events: the events table; needed for labels that are computed from it.

    Returns:
        Labels and quarantine as lazy DataFrames.
    """
    none = spark.createDataFrame([], _JUDGED)
    files = [(label, label.file, place) for place, label in enumerate(spec.labels) if label.file]
    tasks = [none, *(_task(spark, spec, label, file, place) for label, file, place in files)]
    rows = pseudonymised(
        reduce(DataFrame.unionByName, tasks), ["client_id"], spec.pseudonymise.key_env if spec.pseudonymise else None
    )
    for label in spec.labels:
        if label.future:
            rows = rows.unionByName(_future_task(events, spec, label, label.future))
    known = rows.join(firsts, "client_id", how="left")
    unseen = F.col("first_event_time").isNull() | (F.col("first_event_time") >= F.col("as_of"))
    lonely = F.when(unseen, Reason.LABEL_WITHOUT_HISTORY.value)
    known = known.withColumn("reason", F.coalesce("reason", lonely)).drop("first_event_time")
    ranked = known.withColumn("_nth", F.row_number().over(_same_key())).withColumn(
        "_label", F.first("label").over(_same_key())
    )
    left = F.coalesce(F.col("reason") == _LEFT_OUT, F.lit(False))
    again = F.col("reason").isNull() & (F.col("_nth") > 1)
    conflict = F.when(again & ~F.col("label").eqNullSafe(F.col("_label")), Reason.CONFLICTING_LABEL.value)
    final = ranked.withColumn("reason", F.coalesce("reason", conflict))
    kept = F.col("reason").isNull() & (F.col("_nth") == 1)
    judged = Observation()
    counted = final.observe(
        judged,
        F.count_if(~left).alias("rows"),
        F.count_if(kept).alias("out"),
        F.count_if(F.col("reason").isNotNull() & ~left).alias("quarantined"),
        F.count_if(left).alias(_LEFT_OUT),
        F.count_if(F.col("reason").isNull() & (F.col("_nth") > 1)).alias("duplicates"),
    )
    return Labelled(
        labels=counted.where(kept).select(*_KEY, "label", "label_text"),
        quarantine=aside(final.where(~left), spec),
        judged=judged,
    )


def _same_key() -> WindowSpec:
    """Rows of one client, task and instant; those without a reason first, so that bad ones never make a conflict."""
    return Window.partitionBy(*_KEY).orderBy(F.col("reason").asc_nulls_first(), "label", "source_file")


def _future_task(events: DataFrame | None, spec: DataSetSpec, label: LabelSpec, rule: FutureSpec) -> DataFrame:
    """Label rows computed from the events table; its client ids are pseudonyms already."""
    if events is None:
        raise DataError(f"task {label.name} is computed from events, but no events were given")
    start = _instant(label.as_of or spec.as_of, spec)
    before = F.col("event_time") < start
    end = start + F.make_dt_interval(F.lit(rule.days))
    amount = F.col("amount").cast("double") if rule.value == "amount" else F.lit(1.0)
    value = F.coalesce(F.sum(F.when(~before, amount)), F.lit(0.0))
    found = events.where(F.col("event_time") < end).groupBy("client_id")
    rows = found.agg(F.count_if(before).alias("_before"), value.cast("string").alias("_text")).where("_before > 0")
    absent = F.lit(None).cast("string")
    typed = rows.withColumn("_number", F.col("_text").try_cast("double")).withColumn("_class", _class(label))
    return typed.select(
        "client_id",
        F.lit(label.name).alias("task"),
        start.alias("as_of"),
        F.col("_class").alias("label"),
        _label_text(label).alias("label_text"),
        *(absent.alias(name) for name in ("reason", "detail", FILE, "payload")),
    )


def _task(spark: SparkSession, spec: DataSetSpec, label: LabelSpec, file: FileSpec, place: int) -> DataFrame:
    """Judged label rows of one task: the columns of labels, and reason, detail, source_file, payload."""
    key = f"labels.{place}"
    needed = {label.id: f"{key}.id", label.column: f"{key}.column"} | dict.fromkeys(label.only, f"{key}.only")
    as_of = label.as_of if label.as_of is not None else spec.as_of
    times: set[str] = set()
    if isinstance(as_of, AsOfSpec):
        needed[as_of.column] = f"{key}.as_of.column"
        times = {as_of.column}
    uses = Uses(codes={label.id, *label.only}, reals=set() if label.values else {label.column}, times=times)
    source = read_file(spark, file, source_of(spec), needed=needed, uses=uses)
    typed = source.withColumns(
        {
            "client_id": code(label.id),
            "_text": raw(label.column),
            "_number": F.lit(None).cast("double") if label.values else real(label.column),
            "_as_of": _instant(as_of, spec, source),
        }
    ).withColumn("_class", _class(label))
    task, client, text = F.lit(f"task {label.name}: "), F.col("client_id"), F.col("_text")
    outside = ~F.col("_number").between(*label.between) if label.between else F.lit(False)
    fault = first_fault(
        (client.isNull(), Reason.NO_CLIENT, F.lit(f"task {label.name}")),
        (damaged_client(client), Reason.DAMAGED_ID, F.concat(task, client)),
        (text.isNull(), Reason.NO_LABEL, F.lit(f"task {label.name}")),
        (F.col("_as_of").isNull(), Reason.BAD_TIME, F.lit(f"task {label.name}: as_of")),
        (outside, Reason.LABEL_OUTSIDE, F.concat(task, text)),
        (F.col("_class").isNull(), Reason.BAD_LABEL, F.concat(task, text)),
    )
    asked = reduce(
        and_, (F.coalesce(code(name).isin(*among), F.lit(False)) for name, among in label.only.items()), F.lit(True)
    )
    passed_over = F.when(~asked, _LEFT_OUT)
    return typed.withColumn("_bad", fault).select(
        "client_id",
        F.lit(label.name).alias("task"),
        F.col("_as_of").alias("as_of"),
        F.col("_class").alias("label"),
        _label_text(label).alias("label_text"),
        F.coalesce(F.col(FAULT), passed_over, F.col("_bad.reason")).alias("reason"),
        F.when(F.col(FAULT).isNull(), F.col("_bad.detail")).alias("detail"),
        FILE,
        F.col(PAYLOAD).alias("payload"),
    )


def _instant(as_of: dt.datetime | AsOfSpec | None, spec: DataSetSpec, rows: DataFrame | None = None) -> Column:
    if isinstance(as_of, AsOfSpec) and rows is not None:
        zone = as_of.zone or spec.time.zone
        time = time_of(raw(as_of.column), type_of(rows, as_of.column), as_of.model_copy(update={"zone": zone}))
        if as_of.start_of:
            time = zoned(F.date_trunc(as_of.start_of, local(time, zone)), zone)
        return time + F.make_dt_interval(secs=F.lit(as_of.hours * 3600)) if as_of.hours else time
    if not isinstance(as_of, dt.datetime):
        raise DataError("a label without as_of passed the check of the spec")
    return fixed_instant(as_of, spec.time.zone)


def _class(label: LabelSpec) -> Column:
    """Class number or value as a double; null where the text is none."""
    if label.values:
        pairs = [F.lit(part) for name, value in label.values.items() for part in (name, float(value))]
        return F.try_element_at(F.create_map(*pairs), F.col("_text"))
    value = F.col("_number")
    if label.thresholds:
        reached = [F.when(value >= limit, 1.0).otherwise(0.0) for limit in label.thresholds]
        return F.when(value.isNotNull(), reduce(Column.__add__, reached))
    if label.kind == "regression":
        return value
    return F.when(value.isin(*(float(place) for place in range(len(label.class_names)))), value)


def _label_text(label: LabelSpec) -> Column:
    if not label.class_names:
        return F.col("_text")
    names = F.array(*(F.lit(name) for name in label.class_names))
    return F.try_element_at(names, (F.col("_class") + 1).cast("int"))
