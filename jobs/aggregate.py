"""Computes the Agg features of each client's history before its `as_of`, and client attributes as features."""

from __future__ import annotations

import sys

from ledgerlm.baselines.agg import AggregateConf, aggregate_histories
from ledgerlm.baselines.nightly import aggregate_night
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: AggregateConf) -> StageResult:
    """Adds up months, learns the codes on training clients, folds the histories of all; on a night, learns nothing."""
    tables = ctx.read("events"), ctx.read("clients"), ctx.asked(conf)
    folder = ctx.artefacts / "features" / conf.feature_set
    dictionaries = ctx.read("dictionaries") if conf.described else None
    standing = ctx.before("features") if ctx.night is not None else None
    if standing is None:
        made = aggregate_histories(
            *tables, conf, spec=ctx.spec, folder=folder, keep=ctx.keep, dictionaries=dictionaries
        )
    else:
        made = aggregate_night(
            *tables,
            conf,
            standing=standing,
            partials=ctx.before("partials"),
            dirty=ctx.dirty(),
            folder=folder,
            keep=ctx.keep,
            dictionaries=dictionaries,
        )
    return ctx.publish(made)


JOB = Job(
    name="aggregate",
    engine="spark",
    conf=AggregateConf,
    run=run,
    reads=("events", "clients", "labels?", "dictionaries?", "changes?"),
    writes=lambda stage: {
        "partials": {"feature_set": (stage.conf.feature_set,)},
        "features": {"feature_set": stage.conf.feature_sets},
    },
    rows="balance",
    follows=("events", "clients", "labels", "changes"),
    fits=True,
    results=3,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
