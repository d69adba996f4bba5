"""Tells what is said about each client, sentence by sentence: free text of events, attributes put into words."""

from __future__ import annotations

import sys
from dataclasses import replace

from ledgerlm.evaluation.report.data import sentences_section
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.sentences import DescribeConf, describe_clients


def run(ctx: Context, conf: DescribeConf) -> StageResult:
    """Writes the sentences, and the same as documents of format `notes` for the finetune job."""
    made = describe_clients(
        ctx.read("events"),
        ctx.read("clients"),
        conf,
        end=ctx.end(conf.as_of),
        labels=ctx.maybe("labels"),
        keep=ctx.keep,
    )
    section = sentences_section(made.facts["domains"], made.facts["example"])
    return ctx.publish(replace(made, report=[section]))


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
