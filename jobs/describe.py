"""Tells what is said about each client, sentence by sentence: free text of events, attributes put into words."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.events.asked import asked
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.sentences import TextSource, notes, sentences_of


class DescribeConf(Conf):
    """Settings of the describe job."""

    sources: tuple[TextSource, ...] = Field(min_length=1, description="where sentences come from")
    most: int = Field(24, ge=1, description="newest sentences kept of a client")
    as_of: dt.datetime | None = Field(
        None, description="end of what is told of clients without a label; left out, the data set's, or the last event"
    )


def run(ctx: Context, conf: DescribeConf) -> StageResult:
    """Writes the sentences, and the same as documents of format `notes` for the finetune job."""
    events, clients = ctx.read("events"), ctx.read("clients")
    labels = ctx.maybe("labels")
    end = ctx.end(conf.as_of)
    as_of = asked(clients, labels, end)
    written = ctx.write("sentences", sentences_of(events, clients, as_of, conf.sources, conf.most))
    if not written.rows:
        raise DataError("not one sentence was found: look at the sources' `where` and `text`, and at the events table")
    sentences = ctx.own("sentences")
    documents = ctx.write("documents", notes(sentences, as_of), {"format": ("notes",)})
    counted = sentences.groupBy("domain").agg(F.count(F.lit(1)).alias("rows")).orderBy("domain").collect()
    example = ctx.own("documents").orderBy(F.desc("event_count_used"), "client_id").first()
    return StageResult(
        rows_in=as_of.count(),
        rows_out=written.rows,
        facts={
            "as_of": end.isoformat(),
            "domains": {row["domain"]: row["rows"] for row in counted},
            "clients_described": documents.rows,
            "report": [_section({row["domain"]: row["rows"] for row in counted}, example["text"] if example else "")],
        },
    )


def _section(domains: dict[str, int], example: str) -> dict[str, Any]:
    """What the report shows: sentences by domain, and one client's."""
    blocks = [
        {"kind": "table", "columns": ["domain", "sentences"], "rows": [list(row) for row in domains.items()]},
        {"kind": "text", "heading": "One client", "text": example[:1500]},
    ]
    return {"title": "What is said of clients", "note": "Sentences before as_of, oldest first.", "blocks": blocks}


JOB = Job(
    name="describe",
    engine="spark",
    conf=DescribeConf,
    run=run,
    reads=("events", "clients", "labels?"),
    writes=lambda _: {"sentences": {}, "documents": {"format": ("notes",)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
