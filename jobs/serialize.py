"""Turns each client's history before its `as_of` into a document of one format."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.serialize import DocumentConf, check_documents, serialize, shown_fields

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

EXAMPLE_LENGTH = 1500  # characters of the example document in the report


class SerializeConf(DocumentConf):
    """Settings of the serialize job."""

    as_of: dt.datetime | None = Field(
        None,
        description="end of the histories of clients without a label; left out, the data set's, or else midnight after "
        "the last event",
    )
    labels: bool = Field(
        True,
        description="a document for each as_of of a client's labels; false: one for each client, which labels of later "
        "stages do not change",
    )
    only: str | None = Field(None, description="SQL condition on columns of the events; others are not told")
    until: dt.datetime | None = Field(
        None,
        description="no history ends later, whatever its label's as_of: documents for a backbone that must not see "
        "what comes after",
    )


def run(ctx: Context, conf: SerializeConf) -> StageResult:
    """Writes the documents of one format, then counts all events again to see that none leaked in and none was lost."""
    events, clients = ctx.read("events"), ctx.read("clients")
    events = events if conf.only is None else events.where(conf.only)
    labels = ctx.maybe("labels") if conf.labels else None
    dictionaries = ctx.maybe("dictionaries")
    as_of = ctx.end(conf.as_of)
    if conf.until is not None:
        as_of = min(as_of, conf.until)
        end = F.lit(conf.until.isoformat(sep=" ")).cast("timestamp")
        labels = None if labels is None else labels.withColumn("as_of", F.least("as_of", end))
    documents = serialize(
        events,
        labels,
        as_of,
        ctx.spec,
        conf,
        dictionaries=dictionaries,
        described=_described(dictionaries),
        ranked_on=events.join(clients.where("split = 'train'"), "client_id", how="left_semi"),
    )
    ctx.write("documents", documents, {"format": (conf.format,)})
    written = ctx.own("documents")
    checked = check_documents(written, events, labels, as_of, spec=ctx.spec, conf=conf)
    counts = _checked_counts(checked)
    rows_in = clients.count()
    if rows_in < counts["clients_with_events"]:
        raise DataError(
            f"{counts['clients_with_events']} clients have events, but the clients table holds {rows_in}; "
            "run the ingest stage again"
        )
    facts = {
        "format": conf.format,
        "fields": [field.name for field in shown_fields(ctx.spec, conf)],
        "as_of": as_of.isoformat(),
        **counts,
        "clients_without_events": rows_in - counts["clients_with_events"],
        "example": _example(written, labels),
    }
    return StageResult(rows_in=rows_in, rows_out=counts["documents"], facts=facts)


def _described(dictionaries: DataFrame | None) -> list[str]:
    """Fields that have a dictionary; no more names than the data set has fields."""
    return [] if dictionaries is None else [row["field"] for row in dictionaries.select("field").distinct().collect()]


def _checked_counts(checked: DataFrame) -> dict[str, Any]:
    """Sums up the check.

    Raises:
        DataError: for a leak, a lost event or a missing document, naming the kind, the number and one client.
    """
    row = checked.agg(
        F.count_distinct(F.when(F.col("event_count_used") > 0, F.col("client_id"))).alias("clients_with_events"),
        F.count_if(F.col("event_count_used") > 0).alias("documents"),
        F.coalesce(F.sum("events_before"), F.lit(0)).alias("events_before_as_of"),
        F.coalesce(F.sum("events_after"), F.lit(0)).alias("events_after_as_of"),
        F.coalesce(F.sum("event_count_used"), F.lit(0)).alias("events_used"),
        F.coalesce(F.sum("event_count_cut"), F.lit(0)).alias("events_cut"),
        F.count("fault").alias("faults"),
        F.min(F.when(F.col("fault").isNotNull(), F.struct("fault", "client_id", "as_of"))).alias("first"),
    ).first()
    counts = {} if row is None else row.asDict()
    first, faults = counts.pop("first", None), counts.pop("faults", 0)
    if faults:
        raise DataError(
            f"{faults} documents do not hold what the events say; the first: fault '{first['fault']}', client "
            f"{first['client_id']}, as_of {first['as_of']}; run the stage again, and ingest if it stays"
        )
    if counts["events_used"] + counts["events_cut"] != counts["events_before_as_of"]:
        raise DataError(f"events used and cut do not add up to the events before as_of: {counts}")
    return counts


def _example(documents: DataFrame, labels: DataFrame | None) -> dict[str, Any]:
    """A document of the median length, of a client without a label where there is one."""
    median = documents.select(F.percentile_approx("token_estimate", 0.5).alias("tokens"))
    typical = documents.join(F.broadcast(median), on=F.col("token_estimate") == F.col("tokens"))
    labelled = F.lit(False)
    if labels is not None:
        known = labels.select("client_id", F.lit(True).alias("labelled")).distinct()
        typical = typical.join(known, on="client_id", how="left")
        labelled = F.coalesce("labelled", F.lit(False))
    row = typical.orderBy(labelled, "client_id", "as_of").select("text", "token_estimate", "event_count_used").first()
    if row is None:
        return {}
    text = row["text"]
    if len(text) > EXAMPLE_LENGTH:
        text = text[: text.rfind("\n", 0, EXAMPLE_LENGTH)] + "\n..."
    return {"text": text, "token_estimate": row["token_estimate"], "events": row["event_count_used"]}


JOB = Job(
    name="serialize",
    engine="spark",
    conf=SerializeConf,
    run=run,
    reads=lambda stage: ("events", "clients", "dictionaries?", *(("labels?",) if stage.conf.labels else ())),
    writes=lambda stage: {"documents": {"format": (stage.conf.format,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
