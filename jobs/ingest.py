"""Reads the files of a data set into typed events, clients and labels; bad rows go to quarantine with their reason."""

from __future__ import annotations

import sys
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.events.ingest import (
    IngestCounts,
    Ingested,
    damaged_attributes,
    dictionaries,
    facts_of,
    ingest_events,
    unknown_codes,
)
from ledgerlm.events.labels import Labelled, client_attributes, first_events, labels_of
from ledgerlm.events.sources import source_places
from ledgerlm.events.splits import with_split
from ledgerlm.lake.slices import WHOLE, Slice
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.context import Context


class IngestConf(Conf):
    """Reads the files that the data set spec names."""

    max_quarantined_share: float = Field(
        0.05, ge=0.0, le=1.0, description="stop when a larger share of the rows is bad: then the spec is probably wrong"
    )
    partitions: int | None = Field(None, ge=1, description="partitions of the shuffle by client; Spark chooses if null")
    unknown_codes: int = Field(20, ge=0, description="how many codes without a description the report lists")


def run(ctx: Context, conf: IngestConf) -> StageResult:
    """Writes events, dictionaries, clients, labels and quarantine."""
    ingested = ingest_events(ctx.spark, ctx.spec, conf.partitions)
    _write_counted(ctx, "events", ingested.events)
    counts = ingested.counts()
    counts.check(f"data set {ctx.spec.name}")
    events = ctx.own("events")
    ctx.write("dictionaries", dictionaries(ctx.spark, ctx.spec))
    firsts = first_events(events)
    labelled = labels_of(ctx.spark, ctx.spec, firsts, events)
    _write_counted(ctx, "labels", labelled.labels, _labels_slice(ctx.spec))
    label_rows = labelled.rows()
    ids = ctx.own("labels").select("client_id").distinct()
    clients = ctx.write("clients", with_split(client_attributes(ctx.spark, ctx.spec, firsts), ids, ctx.spec.split))
    _set_aside(ctx, ingested, counts, labelled, label_rows[2])
    _stop_if_mostly_bad(ctx, counts, conf)
    return StageResult(
        rows_in=counts.rows_in,
        rows_out=counts.rows_out,
        quarantined=counts.quarantined,
        duplicates=counts.duplicates,
        facts={
            **facts_of(counts),
            "clients": clients.rows,
            "label_rows": dict(zip(("in", "out", "quarantined", "duplicates"), label_rows, strict=True)),
            "labels": _label_counts(ctx),
            "unknown_codes": _unknown_codes(ctx, conf, events),
        },
    )


def _labels_slice(spec: DataSetSpec) -> Slice:
    """Labels of the spec's tasks; of a spec without any, of none: other stages own the tasks that they make."""
    return {"task": tuple(task.name for task in spec.labels)}


def _write_counted(ctx: Context, table: str, frame: DataFrame, part: Slice = WHOLE) -> None:
    """Writes a frame that observes itself."""
    if ctx.write(table, frame, part).repeated:
        # Committed before this process was killed and started again: its counts are still to be made.
        frame.write.format("noop").mode("overwrite").save()


def _set_aside(ctx: Context, ingested: Ingested, counts: IngestCounts, labelled: Labelled, bad_labels: int) -> None:
    """Writes the quarantine; files are read again only if something in them is bad."""
    frames = [ctx.spark.createDataFrame([], "reason string, detail string, source_file string, payload string")]
    if counts.quarantined:
        frames.append(ingested.quarantine)
    if bad_labels:
        frames.append(labelled.quarantine)
    attributes = damaged_attributes(ctx.spark, ctx.spec)
    if attributes is not None:
        frames.append(attributes)
    written = ctx.quarantine(reduce(DataFrame.unionByName, frames))
    expected = counts.quarantined + bad_labels
    if written.rows < expected:
        raise DataError(
            f"{expected} rows to set aside, but {written.rows} in quarantine; were files changed? Run again"
        )


def _stop_if_mostly_bad(ctx: Context, counts: IngestCounts, conf: IngestConf) -> None:
    if counts.quarantined > conf.max_quarantined_share * counts.rows_in:
        worst = sorted(counts.reasons.items(), key=lambda item: -item[1])
        raise DataError(
            f"data set {ctx.spec.name}: {counts.quarantined} of {counts.rows_in} rows are bad "
            f"({', '.join(f'{reason}: {count}' for reason, count in worst)}), more than max_quarantined_share "
            f"{conf.max_quarantined_share}; look at table quarantine, then mend the spec or raise it"
        )


def _label_counts(ctx: Context) -> dict[str, dict[str, int]]:
    """Labels by task and class; of a regression only how many there are."""
    named = [task.name for task in ctx.spec.labels if task.class_names]
    name = F.when(F.col("task").isin(*named), F.col("label_text")).otherwise("values")
    rows = ctx.own("labels").groupBy("task", name.alias("class")).count().collect()
    found: dict[str, dict[str, int]] = {task.name: {} for task in ctx.spec.labels}
    for row in sorted(rows, key=lambda row: (row["task"], row["class"])):
        found[row["task"]][row["class"]] = row["count"]
    return found


def _unknown_codes(ctx: Context, conf: IngestConf, events: DataFrame) -> dict[str, Any]:
    """The most frequent codes without a description, by field."""
    if not any(field.dictionary for field in ctx.spec.fields) or not conf.unknown_codes:
        return {}
    found: dict[str, Any] = {}
    for row in unknown_codes(events, ctx.own("dictionaries"), ctx.spec).limit(conf.unknown_codes).collect():
        found.setdefault(row["field"], {})[row["code"]] = row["events"]
    return found


JOB = Job(
    name="ingest",
    engine="spark",
    conf=IngestConf,
    run=run,
    writes=lambda stage: {"events": {}, "dictionaries": {}, "clients": {}, "labels": _labels_slice(stage.spec)},
    sources=lambda stage: source_places(stage.spec),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
