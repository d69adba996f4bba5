"""Guesses what comes next from counts alone: frequencies and Markov chains, the baselines of every other method."""

from __future__ import annotations

import sys

from ledgerlm.events.symbols import symbols_of
from ledgerlm.heads.guessing import GuessConf, guess
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: GuessConf) -> StageResult:
    """Counts on the chosen rows and scores all rows of the task, one head for each method."""
    dictionaries = ctx.maybe("dictionaries")
    rules = {one.stage.name: one.stage.conf for one in ctx.given.planned("label")}
    symbols = conf.symbols or symbols_of(conf.task, rules, ctx.facts, dictionaries)
    made = guess(
        ctx.task(conf.task),
        ctx.stage,
        events=ctx.read("events"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        dictionaries=dictionaries,
        conf=conf.model_copy(update={"symbols": symbols}),
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="guess",
    engine="spark",
    conf=GuessConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?"),
    needs=("label",),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
