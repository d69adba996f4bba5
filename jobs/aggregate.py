"""Computes the Agg features of each client's history before its `as_of`, and client attributes as features."""

from __future__ import annotations

import sys

from ledgerlm.baselines.agg import AggregateConf, aggregate_histories
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: AggregateConf) -> StageResult:
    """Learns the codes on training clients, then aggregates the histories of all."""
    made = aggregate_histories(
        ctx.read("events"),
        ctx.read("clients"),
        ctx.asked(conf),
        conf,
        spec=ctx.spec,
        folder=ctx.artefacts / "features" / conf.feature_set,
        dictionaries=ctx.read("dictionaries") if conf.described else None,
    )
    return ctx.publish(made)


JOB = Job(
    name="aggregate",
    engine="spark",
    conf=AggregateConf,
    run=run,
    reads=("events", "clients", "labels?", "dictionaries?"),
    writes=lambda stage: {"features": {"feature_set": stage.conf.feature_sets}},
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
