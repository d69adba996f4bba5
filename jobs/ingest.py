"""Reads the files of a data set into typed events, clients and labels; bad rows go to quarantine with their reason."""

from __future__ import annotations

import sys

from rich.markup import escape

from ledgerlm.errors import DataError
from ledgerlm.events.bank import bank_slices
from ledgerlm.events.batch_rules import Held, Terms
from ledgerlm.events.ingesting import IngestConf, ingest_files
from ledgerlm.events.nightly import take_in, terms_now
from ledgerlm.events.sources import source_places
from ledgerlm.lake.slices import WHOLE, Slice
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

_OF_BATCHES: dict[str, Slice] = {"changes": WHOLE, "deletions": WHOLE, "batches": WHOLE}


def run(ctx: Context, conf: IngestConf) -> StageResult:
    """Writes quarantine, dictionaries, clients, labels and events; of a spec that does not fit, quarantine alone."""
    if conf.append:
        # What was begun under some terms goes on under them after a kill.
        begun = ctx.noted("terms")
        terms = Terms.model_validate_json(begun) if begun else terms_now(ctx.spark, ctx.spec, conf)
        ingestion = take_in(
            ctx.spark,
            ctx.spec,
            conf,
            terms,
            before=ctx.before,
            standing=ctx.since is not None,
            content=ctx.content,
            erased=ctx.erased,
            keep=ctx.keep,
        )
        for table in ingestion.tables:
            ctx.progress.say(f"    {escape(table.said)}")
        for one in ingestion.findings:
            ctx.progress.say(f"    [yellow]batch.{one.rule}: {one.action}[/yellow] {escape(one.said)}")
        if ingestion.refusal is None:
            ctx.note("terms", terms.model_dump_json())
    else:
        ingestion = ingest_files(ctx.spark, ctx.spec, conf, held=Held(erased=ctx.erased), keep=ctx.keep)
    if ingestion.refusal is not None:
        if ingestion.made.aside is not None:
            ctx.set_aside(ingestion.made)
        raise DataError(ingestion.refusal)
    return ctx.publish(ingestion.made)


JOB = Job(
    name="ingest",
    results=2,
    engine="spark",
    conf=IngestConf,
    run=run,
    writes=lambda stage: bank_slices(stage.spec) | (_OF_BATCHES if stage.conf.append else {}),
    rows="balance",
    follows=("sources",),
    sources=lambda stage: source_places(stage.spec),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
