"""Makes documents by a text recipe (LLM-TRSR, HKFR or TALLRec), by rules or by a language model in Ray actors."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from ledgerlm.enrich.recipes.writer import VERSION, RecipeConf
from ledgerlm.enrich.staging import as_documents
from ledgerlm.jobs.enrich import PoolJobConf, expect, finished, write_texts
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class SummarizeConf(PoolJobConf, RecipeConf):
    """Settings of the summarize job."""

    clients: Literal["train", "all"] = Field(
        "all", description="whose documents; embedding needs all, training the training ones"
    )


def run(ctx: Context, conf: SummarizeConf) -> StageResult:
    """Lets the pool make one text of each document, and commits them as documents of the recipe's format."""
    made = write_texts(ctx, conf)
    serializer = f"{conf.recipe}/{VERSION}/{made.facts['engine']}"
    rows = as_documents(made.texts, made.sources, max_events=conf.max_events, serializer=serializer)
    written = ctx.write("documents", rows, {"format": (conf.format,)})
    return finished(ctx, made, written)


JOB = Job(
    name="summarize",
    engine="ray",
    conf=SummarizeConf,
    run=run,
    reads=("documents", "clients"),
    writes=lambda stage: {"documents": {"format": (stage.conf.format,)}},
    expect=expect,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
