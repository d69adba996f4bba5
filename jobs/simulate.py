"""Makes a bank, or two: events, dictionaries, clients, labels, and the probabilities the labels were drawn from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field, field_validator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.events.simulator import (
    ATTRIBUTES,
    FIELDS,
    SimulatorConf,
    known_attributes,
    load_world,
    simulate_clients,
    simulate_dictionaries,
    simulate_events,
    simulate_labels,
    task_classes,
    true_probabilities,
)
from ledgerlm.events.splits import with_split
from ledgerlm.lake.slices import Slice
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.context import Context


class SimulateConf(Conf):
    """Makes the events of one or two banks that know the truth about their clients."""

    banks: tuple[SimulatorConf, ...] = Field(
        (SimulatorConf(),), min_length=1, description="the banks; the pipeline's seed and the data set's as_of hold"
    )

    @field_validator("banks")
    @classmethod
    def _banks_differ(cls, banks: tuple[SimulatorConf, ...]) -> tuple[SimulatorConf, ...]:
        names = [bank.bank for bank in banks]
        if len(set(names)) < len(names):
            raise ValueError(f"banks {', '.join(names)}: each bank once, or client ids would meet")
        return banks


def run(ctx: Context, conf: SimulateConf) -> StageResult:
    """Writes events, dictionaries, clients, labels and bayes."""
    banks = [_placed(ctx, bank) for bank in conf.banks]
    clients = [simulate_clients(ctx.spark, bank) for bank in banks]

    def every(make: Callable[[DataFrame, SimulatorConf], DataFrame]) -> DataFrame:
        return _union([make(people, bank) for people, bank in zip(clients, banks, strict=True)])

    events = ctx.write("events", every(simulate_events))
    ctx.write("dictionaries", _union([simulate_dictionaries(ctx.spark, bank) for bank in banks]))
    known = every(lambda people, _: known_attributes(people))
    everyone = ctx.write("clients", with_split(known, known.select("client_id"), ctx.spec.split))
    ctx.write("labels", every(simulate_labels), _tasks(ctx.spec))
    ctx.write("bayes", every(true_probabilities), _tasks(ctx.spec))
    return StageResult(
        rows_in=events.rows,
        rows_out=events.rows,
        facts={
            "clients": everyone.rows,
            "labels": _label_counts(ctx.own("labels")),
            "banks": [bank.model_dump(mode="json") for bank in banks],
        },
    )


def _placed(ctx: Context, bank: SimulatorConf) -> SimulatorConf:
    """The bank with the pipeline's seed and the data set's as_of."""
    _check_spec(ctx.spec, bank)
    as_of = ctx.spec.as_of.date() if ctx.spec.as_of else bank.as_of
    return SimulatorConf.model_validate(bank.model_dump() | {"seed": ctx.seed, "as_of": as_of})


def _check_spec(spec: DataSetSpec, bank: SimulatorConf) -> None:
    """Whether the spec describes what the simulator makes."""
    made = {
        "fields": set(FIELDS) == {field.name for field in spec.fields},
        "clients.attributes": set(ATTRIBUTES) == set(spec.attributes),
        "labels": {(task.name, task.class_names) for task in spec.labels}
        == set(task_classes(load_world(bank.world)).items()),
    }
    wrong = [key for key, fits in made.items() if not fits]
    if wrong:
        raise ConfigError(
            f"data set {spec.name}: {', '.join(wrong)} do not describe what the simulator makes; "
            "use datasets/simulated_bank.yaml, or a copy of it that keeps them"
        )


def _label_counts(labels: DataFrame) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in labels.groupBy("task", "label_text").count().orderBy("task", F.col("label_text")).collect():
        found.setdefault(row["task"], {})[row["label_text"]] = row["count"]
    return found


def _union(frames: Sequence[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)


def _tasks(spec: DataSetSpec) -> Slice:
    return {"task": tuple(task.name for task in spec.labels)}


JOB = Job(
    name="simulate",
    engine="spark",
    conf=SimulateConf,
    run=run,
    writes=lambda stage: {
        "events": {},
        "dictionaries": {},
        "clients": {},
        "labels": _tasks(stage.spec),
        "bayes": _tasks(stage.spec),
    },
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
