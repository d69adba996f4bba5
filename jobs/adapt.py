"""Adapts scores to the class shares of each population, such as a bank that no head learnt from: no label is needed."""

from __future__ import annotations

import sys
from dataclasses import replace

from ledgerlm.evaluation.report.populations import population_section
from ledgerlm.events.symbols import symbols_of
from ledgerlm.heads.populations import AdaptConf, adapt
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: AdaptConf) -> StageResult:
    """Counts each population's classes before as_of, and writes each method's scores moved by their shares."""
    task, dictionaries = ctx.task(conf.task), ctx.maybe("dictionaries")
    rules = {one.stage.name: one.stage.conf for one in ctx.given.planned("label")}
    symbols = conf.symbols or symbols_of(conf.task, rules, ctx.facts, dictionaries)
    made = adapt(
        task,
        ctx.stage,
        {name: ctx.head(source) for name, source in conf.methods.items()},
        events=ctx.read("events"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        scores=ctx.read("scores"),
        dictionaries=dictionaries,
        conf=conf.model_copy(update={"symbols": symbols}),
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(replace(made, report=[population_section(ctx.stage, task, made.facts["populations"])]))


JOB = Job(
    name="adapt",
    engine="spark",
    conf=AdaptConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
