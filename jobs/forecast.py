"""Scores histories with heads of the learn job: probabilities, prediction and decile for each client and as_of."""

from __future__ import annotations

import sys

from ledgerlm.heads.recurrent.forecasting import ForecastConf, forecast
from ledgerlm.heads.recurrent.head import RecurrentHead
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: ForecastConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit; who has no event is set aside."""
    ids = {head_id: stage for stage in conf.stages for head_id in ctx.heads(stage)}
    made = forecast(
        [(stage, RecurrentHead.load(ctx.artefacts / "heads", head_id)) for head_id, stage in ids.items()],
        events=ctx.read("events"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        dictionaries=ctx.maybe("dictionaries"),
        spec=ctx.spec,
        conf=conf,
        # The series that a head saw is named by the stage that trained it.
        files={name: path for one in ctx.given.planned("learn") for name, path in one.files.items()},
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(made)


JOB = Job(
    name="forecast",
    engine="spark",
    conf=ForecastConf,
    run=run,
    extras=("embed",),
    reads=("events", "clients", "labels", "dictionaries?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("torch",),
    rows="balance",
    results=2,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
