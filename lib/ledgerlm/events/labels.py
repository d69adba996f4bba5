"""Clients with their attributes, and labels with their `as_of`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from ledgerlm.engines.frames import Keep, small_frame
from ledgerlm.errors import DataError
from ledgerlm.events.attributes import attributes_of
from ledgerlm.events.cells import Uses, code, raw, real, type_of
from ledgerlm.events.clock import fixed_instant, local, zoned
from ledgerlm.events.columns import DAMAGED, FAULT, FILE, FINER, LEFT_OUT, PAYLOAD
from ledgerlm.events.erased import without_erased
from ledgerlm.events.future import Computed, computed_labels
from ledgerlm.events.identity import damaged_client
from ledgerlm.events.numbers import lost_digits
from ledgerlm.events.quality import Reason, aside, first_fault, pseudonymised, said
from ledgerlm.events.sources import read_file
from ledgerlm.events.spec import DataSetSpec, LabelSpec, source_of
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.events.spec_times import AsOfSpec, GridSpec
from ledgerlm.events.times import CLOCK_CHOICES, DOUBLED, LOSSY, SKIPPED, TIME, timed

_KEY = ("client_id", "task", "as_of")
_LEFT_OUT, _CENSORED = "left_out", "censored"
"""In place of a reason, and counted: a row that `only` passes over (or an empty period of a wide line), and a computed
label whose days the data do not cover."""
_KEPT = "reason IS NULL AND _nth = 1"
_JUDGED = (
    "client_id string, task string, as_of timestamp, label double, label_text string, unpriced boolean, cut boolean, "
    f"{', '.join(f'{name} boolean' for name in CLOCK_CHOICES)}, reason string, detail string, source_file string, "
    "payload string"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCounts:
    """What became of the labels of a task, or of all.

    Attributes:
        rows: labels in files, and computed ones whose days the data cover.
        out: labels.
        quarantined: rows set aside.
        duplicates: equal rows again.
        left_out: rows that `only` passes over; not among `rows`.
        censored: computed labels whose days reach beyond the end of the data; not among `rows`.
        lonely: rows set aside because their client has no event before.
        unpriced: computed sums over events of which some have no amount.
        cut: labels of more digits than a double keeps.
        skipped: labels whose as_of the clock of its zone skipped.
        doubled: labels whose as_of that clock showed twice; the earlier is taken.
        lossy: labels whose as_of was cut to the microsecond, or from second 60 to 59.
    """

    rows: int
    out: int
    quarantined: int
    duplicates: int
    left_out: int
    censored: int
    lonely: int
    unpriced: int
    cut: int
    skipped: int
    doubled: int
    lossy: int

    def __add__(self, other: LabelCounts) -> LabelCounts:
        """The counts of both."""
        return LabelCounts(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """The labels of a data set, each judged; not computed yet.

    Attributes:
        judged: client_id, task, as_of, label, label_text, unpriced, cut, the flags of `CLOCK_CHOICES`, reason, detail,
            source_file, payload, `_nth`.
        spec: the data set.
    """

    judged: DataFrame
    spec: DataSetSpec

    def kept(self, keep: Keep) -> Labelled:
        """The same, computed once."""
        return replace(self, judged=keep(self.judged))

    @property
    def labels(self) -> DataFrame:
        """client_id, task, as_of, label (class number or value), label_text; key (client_id, task, as_of)."""
        return self.judged.where(_KEPT).select(*_KEY, "label", "label_text")

    @property
    def quarantine(self) -> DataFrame:
        """reason, detail, source_file, payload."""
        return aside(self.judged.where(~_outside()), self.spec)

    def by_task(self) -> dict[str, LabelCounts]:
        """The counts of each task, in the order of the spec.

        Raises:
            DataError: when they do not add up.
        """
        rows = self.judged.groupBy("task").agg(*(F.count_if(one).alias(name) for name, one in _counters().items()))
        seen = {row["task"]: row.asDict() for row in rows.collect()}
        found = {}
        for label in self.spec.labels:
            one = LabelCounts(**{part.name: seen.get(label.name, {}).get(part.name, 0) for part in fields(LabelCounts)})
            if one.rows != one.out + one.quarantined + one.duplicates:
                raise DataError(
                    f"labels of {label.name}: {one.rows} in, but {one.out} out + {one.quarantined} quarantined + "
                    f"{one.duplicates} duplicates"
                )
            found[label.name] = one
        return found

    def counts(self) -> LabelCounts:
        """The counts of all tasks."""
        nothing = LabelCounts(**{one.name: 0 for one in fields(LabelCounts)})
        return reduce(LabelCounts.__add__, self.by_task().values(), nothing)


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


def labels_of(
    spark: SparkSession,
    spec: DataSetSpec,
    firsts: DataFrame,
    events: DataFrame | None = None,
    end: dt.datetime | None = None,
    *,
    erased: DataFrame | None = None,
) -> Labelled:
    """Reads or computes the labels of all tasks.

    Args:
        spark: session in UTC.
        spec: the data set.
        firsts: from `first_events`; a label without an event before its `as_of` is set aside.
        events: the events table; needed for labels that are computed from it.
        end: the end of the data, from `end_of_data`; looked for where it is needed and left out.
        erased: digests of clients who were erased, whose rows are none; None: nobody was.

    Returns:
        Labels and quarantine, not computed yet; `kept` computes them once.

    Raises:
        DataError: amounts of several currencies would be added up.
    """
    none = small_frame(spark, [], _JUDGED)
    files = [(label, label.file, place) for place, label in enumerate(spec.labels) if label.file]
    tasks = [none, *(_task(spark, spec, label, file, place) for label, file, place in files)]
    told = without_erased(reduce(DataFrame.unionByName, tasks), erased, F.col("client_id"), spec)
    rows = pseudonymised(told, ["client_id"], spec.pseudonymise.key_env if spec.pseudonymise else None)
    for made in computed_labels(events, spec, firsts, end):
        rows = rows.unionByName(_computed_rows(made))
    known = rows.join(firsts, "client_id", how="left")
    unseen = F.col("first_event_time").isNull() | (F.col("first_event_time") >= F.col("as_of"))
    lonely = F.col("reason").isNull() & unseen
    known = known.withColumns(
        {
            "reason": F.when(lonely, Reason.LABEL_WITHOUT_HISTORY.value).otherwise(F.col("reason")),
            "detail": F.when(lonely, F.concat(F.lit("task "), "task", F.lit(": "), "client_id")).otherwise(
                F.col("detail")
            ),
        }
    ).drop("first_event_time")
    return Labelled(judged=_agreed(known, spec), spec=spec)


def _outside() -> Column:
    """Whether a row is none of those that are accounted for."""
    return F.coalesce(F.col("reason").isin(_LEFT_OUT, _CENSORED), F.lit(False))


def _counters() -> dict[str, Column]:
    """What `LabelCounts` counts."""
    reason, kept = F.col("reason"), F.expr(_KEPT)
    return {
        "rows": ~_outside(),
        "out": kept,
        "quarantined": reason.isNotNull() & ~_outside(),
        "duplicates": reason.isNull() & ~kept,
        "left_out": reason == _LEFT_OUT,
        "censored": reason == _CENSORED,
        "lonely": reason == Reason.LABEL_WITHOUT_HISTORY.value,
        "unpriced": kept & F.col("unpriced"),
        "cut": kept & F.col("cut"),
        "skipped": kept & F.col(SKIPPED),
        "doubled": kept & F.col(DOUBLED),
        "lossy": kept & F.col(LOSSY),
    }


def _agreed(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Adds `_nth` among the labels of a client, task and instant, and a reason to those that another contradicts.

    Bad rows come last, so that they never make a conflict. Where a task keeps none of those that differ, all have the
    reason; else the least or most is the first, and the others have it.
    """
    most = [label.name for label in spec.labels if label.conflicts == "most"]
    ranked = F.when(F.col("task").isin(most), -F.col("label")).otherwise(F.col("label")) if most else F.col("label")
    key = Window.partitionBy(*_KEY)
    order = key.orderBy(F.col("reason").asc_nulls_first(), ranked, "source_file")
    good = F.when(F.col("reason").isNull(), F.col("label"))
    numbered = rows.withColumns(
        {
            "_nth": F.row_number().over(order),
            "_first": F.first("label").over(order),
            "_differ": F.min(good).over(key) != F.max(good).over(key),
        }
    )
    none_kept = F.col("task").isin([label.name for label in spec.labels if label.conflicts == "absent"])
    conflict = F.col("reason").isNull() & F.col("_differ") & (none_kept | (F.col("label") != F.col("_first")))
    return numbered.withColumns(
        {
            "reason": F.when(conflict, Reason.CONFLICTING_LABEL.value).otherwise(F.col("reason")),
            "detail": F.when(
                conflict, F.concat(F.lit("task "), F.col("task"), F.lit(": "), F.col("label_text"))
            ).otherwise(F.col("detail")),
        }
    )


def _computed_rows(made: Computed) -> DataFrame:
    """Judged label rows of a task that is computed from events; their client ids are pseudonyms already."""
    label, absent = made.label, F.lit(None).cast("string")
    typed = made.rows.withColumns({"_text": F.col("value").cast("string"), "_number": F.col("value")})
    typed = typed.withColumn("_class", _class(label))
    inside = F.col("_number").between(*label.between) if label.between else F.lit(True)
    reason = F.when(~F.col("covered"), _CENSORED).when(~inside, Reason.LABEL_OUTSIDE.value)
    return typed.select(
        "client_id",
        F.lit(label.name).alias("task"),
        "as_of",
        F.col("_class").alias("label"),
        _label_text(label).alias("label_text"),
        "unpriced",
        *(F.lit(False).alias(name) for name in ("cut", *CLOCK_CHOICES)),
        reason.alias("reason"),
        F.when(~inside, F.concat(F.lit(f"task {label.name}: "), F.col("_text"))).alias("detail"),
        absent.alias(FILE),
        absent.alias("payload"),
    )


def label_rows(spark: SparkSession, spec: DataSetSpec) -> Iterator[tuple[FileSpec, DataFrame]]:
    """The rows of each label file as they are judged before clients and other labels are known, for a look at them.

    Yields:
        The file, and reason (null of a good row), detail, source_file, payload, shown map<string, string>.
    """
    for place, label in enumerate(spec.labels):
        if label.file:
            rows = _task(spark, spec, label, label.file, place).where(~_outside())
            names = ("client_id", "task", "as_of", "label", "label_text")
            shown = F.create_map(*(part for name in names for part in (F.lit(name), F.col(name).cast("string"))))
            yield label.file, rows.select("reason", "detail", FILE, "payload", shown.alias("shown"))


def _task(spark: SparkSession, spec: DataSetSpec, label: LabelSpec, file: FileSpec, place: int) -> DataFrame:
    """Judged label rows of one task: the columns of labels, and reason, detail, source_file, payload."""
    key = f"labels.{place}"
    needed = {label.id: f"{key}.id", label.column: f"{key}.column"} | dict.fromkeys(label.only, f"{key}.only")
    as_of = label.as_of if label.as_of is not None else spec.as_of
    times: set[str] = set()
    if isinstance(as_of, AsOfSpec):
        needed[as_of.column] = f"{key}.as_of.column"
        times = {as_of.column}
    uses = Uses(
        codes={label.id, *label.only}, reals=set() if label.values else {label.column}, times=times, zone=spec.time.zone
    )
    source = read_file(spark, file, source_of(spec), needed=needed, uses=uses)
    typed = source.withColumns(
        {
            "client_id": code(label.id),
            "_text": raw(label.column),
            "_number": F.lit(None).cast("double") if label.values else real(label.column),
        }
    ).withColumn("_class", _class(label))
    typed = _with_as_of(typed, as_of, spec)
    task, client, text = F.lit(f"task {label.name}: "), F.col("client_id"), F.col("_text")
    number = F.col("_number")
    written = said(as_of.column, raw(as_of.column)) if isinstance(as_of, AsOfSpec) else F.lit("as_of")
    typed = typed.withColumn("cut", lost_digits(text, number) if not label.values else F.lit(False))
    outside = ~number.between(*label.between) if label.between else F.lit(False)
    # Rounded to a double it is at the limit itself, so nobody knows on which side of it.
    unclear = F.col("cut") & number.isin(*label.thresholds, *(label.between or ()))
    fault = first_fault(
        (client.isNull(), Reason.NO_CLIENT, F.lit(f"task {label.name}")),
        (damaged_client(client), Reason.DAMAGED_ID, F.concat(task, client)),
        (text.isNull(), Reason.NO_LABEL, F.lit(f"task {label.name}")),
        (F.col("_as_of").isNull(), Reason.BAD_TIME, F.concat(task, written)),
        (outside, Reason.LABEL_OUTSIDE, F.concat(task, text)),
        (F.col("_class").isNull() | unclear, Reason.BAD_LABEL, F.concat(task, text)),
    )
    asked = reduce(
        and_, (F.coalesce(code(name).isin(*among), F.lit(False)) for name, among in label.only.items()), F.lit(True)
    )
    passed_over = F.when(~asked | F.col(LEFT_OUT), _LEFT_OUT)
    return typed.withColumn("_bad", fault).select(
        "client_id",
        F.lit(label.name).alias("task"),
        F.col("_as_of").alias("as_of"),
        F.col("_class").alias("label"),
        _label_text(label).alias("label_text"),
        F.lit(False).alias("unpriced"),
        "cut",
        *CLOCK_CHOICES,
        F.coalesce(F.col(FAULT), passed_over, F.col("_bad.reason")).alias("reason"),
        F.when(F.col(FAULT).isNull(), F.col("_bad.detail")).otherwise(F.concat(task, DAMAGED)).alias("detail"),
        FILE,
        F.col(PAYLOAD).alias("payload"),
    )


def _with_as_of(rows: DataFrame, as_of: dt.datetime | AsOfSpec | GridSpec | None, spec: DataSetSpec) -> DataFrame:
    """Adds `_as_of`, and the flags of `CLOCK_CHOICES`."""
    if isinstance(as_of, AsOfSpec):
        zone = as_of.zone or spec.time.zone
        form = as_of.model_copy(update={"zone": zone})
        rows, time = timed(rows, raw(as_of.column), type_of(rows, as_of.column), form), F.col(TIME)
        rows = rows.withColumn(LOSSY, F.col(LOSSY) | F.col(FINER))
        if as_of.start_of:
            time = zoned(F.date_trunc(as_of.start_of, local(time, zone)), zone)
            # What the clock showed on another day of the month decides nothing.
            rows = rows.withColumns(dict.fromkeys(CLOCK_CHOICES, F.lit(False)))
        return rows.withColumn("_as_of", time + F.make_dt_interval(secs=F.lit(as_of.hours * 3600)))
    if not isinstance(as_of, dt.datetime):
        raise DataError("a label without as_of passed the check of the spec")
    flags = dict.fromkeys(CLOCK_CHOICES, F.lit(False))
    return rows.withColumns({**flags, "_as_of": fixed_instant(as_of, spec.time.zone)})


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
