"""The documents of all clients in one format, each checked against the events that it tells."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.clock import aware, fixed_instant, with_clock
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.made import Made, Rows
from ledgerlm.text.check import check_documents, sum_up
from ledgerlm.text.serialize import DocumentConf, serialize, shown_fields

_EXAMPLE_LENGTH = 1500  # characters of the example document in the report


class SerializeConf(DocumentConf, AsOfConf):
    """Settings of the serialize job."""

    only: str | None = Field(None, description="SQL condition on columns of the events; others are not told")
    until: dt.datetime | None = Field(
        None,
        description="no history ends later, whatever its label's as_of: documents for a backbone that must not see "
        "what comes after",
    )


def tell_histories(
    events: DataFrame,
    clients: DataFrame,
    conf: SerializeConf,
    *,
    spec: DataSetSpec,
    end: dt.datetime,
    labels: DataFrame | None = None,
    dictionaries: DataFrame | None = None,
) -> Made:
    """Turns each client's history into a document, for each `as_of` that is asked of it.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        conf: format, fields, budgets; which events, until when.
        spec: the data set.
        end: end of the histories of clients without a label.
        labels: the `labels` table, if there is one.
        dictionaries: the `dictionaries` table, if there is one; codes are told by their descriptions.

    Returns:
        `documents` of the format; rows in are clients. When they are written all events are counted once more: none
        may have leaked in or been lost. Facts: `format`, `fields`, `as_of`, the counts of `Checked`,
        `clients_without_events` and an `example`.

    Raises:
        ConfigError: fields that the data set lacks.
        DataError: documents that do not hold what the events say, or clients that the clients table lacks.
    """
    spec = with_clock(spec, events)
    events = events if conf.only is None else events.where(conf.only)
    labels = labels if conf.labels else None
    end = aware(end, spec.time.zone)
    if conf.until is not None:
        end = min(end, aware(conf.until, spec.time.zone))
        last = fixed_instant(conf.until, spec.time.zone)
        labels = None if labels is None else labels.withColumn("as_of", F.least("as_of", last))
    if conf.everyone:
        labels = asked(clients, labels, end, conf)
    rows_in, described = _known(clients, dictionaries)
    documents = serialize(
        events,
        labels,
        end,
        spec,
        conf,
        dictionaries=dictionaries,
        described=described,
        ranked_on=events.join(clients.where("split = 'train'"), "client_id", how="left_semi"),
    )

    def tell(own: Mapping[str, DataFrame]) -> dict[str, Any]:
        checked = sum_up(check_documents(own["documents"], events, labels, end, spec=spec, conf=conf))
        with_events = checked.counts["clients_with_events"]
        if rows_in < with_events:
            raise DataError(
                f"{with_events} clients have events, but the clients table holds {rows_in}; run the ingest stage again"
            )
        example = _example(own["documents"], labels, checked.typical)
        return {**checked.counts, "clients_without_events": rows_in - with_events, "example": example}

    return Made(
        rows_in=rows_in,
        tables={"documents": Rows(frame=documents, slice={"format": (conf.format,)})},
        facts={
            "format": conf.format,
            "fields": [field.name for field in shown_fields(spec, conf)],
            "as_of": end.isoformat(),
        },
        tell=tell,
    )


def _known(clients: DataFrame, dictionaries: DataFrame | None) -> tuple[int, list[str]]:
    """How many clients there are, and which fields have a dictionary (no more than the data set has); in one query."""
    if dictionaries is None:
        return clients.count(), []
    rows = clients.select(F.lit(None).cast("string").alias("field")).unionByName(dictionaries.select("field"))
    counts = {row["field"]: row["count"] for row in rows.groupBy("field").count().collect()}
    return counts.pop(None, 0), sorted(counts)


def _example(documents: DataFrame, labels: DataFrame | None, tokens: int | None) -> dict[str, Any]:
    """A document of the typical length, of a client without a label where there is one."""
    typical = documents.where(F.col("token_estimate") == F.lit(tokens))
    labelled = F.lit(False)
    if labels is not None:
        known = labels.select("client_id", F.lit(True).alias("labelled"))
        typical = typical.join(known, on="client_id", how="left")
        labelled = F.coalesce("labelled", F.lit(False))
    row = typical.orderBy(labelled, "client_id", "as_of").select("text", "token_estimate", "event_count_used").first()
    if row is None:
        return {}
    text = row["text"]
    if len(text) > _EXAMPLE_LENGTH:
        text = text[: text.rfind("\n", 0, _EXAMPLE_LENGTH)] + "\n..."
    return {"text": text, "token_estimate": row["token_estimate"], "events": row["event_count_used"]}
