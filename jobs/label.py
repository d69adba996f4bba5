"""Makes labels from events by rules: the next merchant category (with the truth where known), the next goal."""

from __future__ import annotations

import sys
from dataclasses import replace

from ledgerlm.evaluation.report.data import labels_section
from ledgerlm.events.labelling import LabelConf, label_events
from ledgerlm.events.simulator import SimulatorConf
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: LabelConf) -> StageResult:
    """Writes the labels of each task, and `bayes` where a simulate stage made the events."""
    simulated = conf.next_category and ctx.given.planned("simulate")
    banks = ctx.facts("simulate")["banks"] if simulated else ()
    made = label_events(
        ctx.read("events"),
        ctx.read("clients"),
        conf,
        dictionaries=ctx.maybe("dictionaries"),
        banks=[SimulatorConf.model_validate(bank) for bank in banks],
        time=ctx.spec.time,
        seed=ctx.seed,
        keep=ctx.keep,
    )
    return ctx.publish(replace(made, report=[labels_section(made.facts["tasks"])]))


JOB = Job(
    name="label",
    engine="spark",
    conf=LabelConf,
    run=run,
    reads=("events", "clients", "dictionaries?"),
    writes=lambda stage: {"labels": {"task": stage.conf.tasks}, "bayes": {"task": stage.conf.tasks}},
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
