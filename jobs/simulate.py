"""Makes a bank, or two: events, dictionaries, clients, labels, and the probabilities the labels were drawn from."""

from __future__ import annotations

import sys

from ledgerlm.events.bank import bank_slices
from ledgerlm.events.simulator.bank import SimulateConf, simulate_banks
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: SimulateConf) -> StageResult:
    """Writes dictionaries, clients, labels, bayes and events."""
    return ctx.publish(simulate_banks(ctx.spark, ctx.spec, conf, seed=ctx.seed))


JOB = Job(
    name="simulate",
    engine="spark",
    conf=SimulateConf,
    run=run,
    writes=lambda stage: bank_slices(stage.spec, truth=True),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
