"""The tables of one simulated bank, or of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from pydantic import Field, field_validator
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.events.bank import BankTables, count_labels
from ledgerlm.events.simulator.clients import ATTRIBUTES, SimulatorConf, known_attributes, simulate_clients
from ledgerlm.events.simulator.events import FIELDS, simulate_dictionaries, simulate_events
from ledgerlm.events.simulator.labels import simulate_labels, task_classes, true_probabilities
from ledgerlm.events.simulator.world import load_world
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.splits import with_split
from ledgerlm.lake.made import Made


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


def simulate_banks(spark: SparkSession, spec: DataSetSpec, conf: SimulateConf, *, seed: int) -> Made:
    """Makes the tables of the banks.

    Args:
        spark: session in UTC.
        spec: a data set whose fields, attributes and labels are those that the simulator makes.
        conf: the banks.
        seed: of every draw.

    Returns:
        Tables as `BankTables.tables` has them, `bayes` included. Facts: `clients`, `labels` (task -> class -> rows) and
        `banks`, as they were made.

    Raises:
        ConfigError: the spec describes something else.
    """
    banks = [_placed(bank, spec, seed) for bank in conf.banks]
    clients = [simulate_clients(spark, bank) for bank in banks]

    def every(make: Callable[[DataFrame, SimulatorConf], DataFrame]) -> DataFrame:
        return _union([make(people, bank) for people, bank in zip(clients, banks, strict=True)])

    known = every(lambda people, _: known_attributes(people))
    made = BankTables(
        events=every(simulate_events),
        dictionaries=_union([simulate_dictionaries(spark, bank) for bank in banks]),
        clients=with_split(known, known.select("client_id"), spec.split),
        labels=every(simulate_labels),
        bayes=every(true_probabilities),
    )
    return Made(
        tables=made.tables(spec),
        main="events",
        facts={
            "clients": sum(bank.clients for bank in banks),
            "banks": [bank.model_dump(mode="json") for bank in banks],
        },
        tell=lambda own: {"labels": count_labels(own["labels"], spec)},
    )


def _placed(bank: SimulatorConf, spec: DataSetSpec, seed: int) -> SimulatorConf:
    """The bank with the run's seed and the data set's as_of."""
    _check_spec(spec, bank)
    as_of = spec.as_of.date() if spec.as_of else bank.as_of
    return SimulatorConf.model_validate(bank.model_dump() | {"seed": seed, "as_of": as_of})


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


def _union(frames: Sequence[DataFrame]) -> DataFrame:
    return reduce(DataFrame.unionByName, frames)
