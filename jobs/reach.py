"""Says what can be reached on a simulated bank from its events: a fit on many other clients whose truth is known."""

from __future__ import annotations

import sys

from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.reachable import ReachConf, reach
from ledgerlm.events.simulator import SimulatorConf
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: ReachConf) -> StageResult:
    """Writes `reachable` for every client of the banks that a simulate stage made."""
    if not ctx.stages_of("simulate"):
        raise ConfigError(
            f"stage {ctx.stage}: the truth is known of simulated banks alone, and no stage before it is of job "
            "simulate; put one there, or leave this stage out"
        )
    banks = [SimulatorConf.model_validate(bank) for bank in ctx.facts("simulate")["banks"]]
    made = reach(ctx.read("events"), ctx.read("clients"), banks, conf, progress=ctx.progress)
    return ctx.publish(made)


JOB = Job(
    name="reach",
    engine="spark + lightgbm",
    conf=ReachConf,
    run=run,
    reads=("events", "clients"),
    needs=("simulate",),
    writes=("reachable",),
    uses=("lightgbm", "scipy"),
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
