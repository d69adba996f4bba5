"""Deliveries of a simulated bank: the files that it would send, a history and then a file a night, as banks send them.

The second night brings what nightly files bring: events that come late, events that were wrong, events that never were.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.events.simulator.bank import SimulateConf, simulate_banks
from ledgerlm.events.simulator.clients import SimulatorConf

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from ledgerlm.events.spec import DataSetSpec

_TASKS = ("churn", "default")
_ODDITIES = 500  # one event in so many is late, one is wrong, one never was
_NIGHT_OF_CHANGES = 2


class DeliveriesConf(Conf):
    """What the simulated bank sends."""

    clients: int = Field(400, ge=1, description="clients")
    purchases: float = Field(30, gt=0, description="mean card purchases of a client in the history")
    months: int = Field(6, ge=1, description="months of history")
    nights: int = Field(3, ge=1, le=31, description="files after the history, each of a day of January")
    seed: int = Field(42, description="of every draw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deliveries:
    """The files, as frames.

    Attributes:
        files: name -> rows: `history`, `night-1` and so on, columns of the bank's events as text, and `op`.
        labels: client_id, churn, default: 0 or 1.
        as_of: end of the history.
    """

    files: dict[str, DataFrame]
    labels: DataFrame
    as_of: dt.date


def deliveries(spark: SparkSession, spec: DataSetSpec, conf: DeliveriesConf) -> Deliveries:
    """Simulates a bank and cuts its events into files.

    Args:
        spark: session in UTC.
        spec: `datasets/simulated_bank.yaml`.
        conf: sizes.
    """
    bank = SimulatorConf(
        clients=conf.clients, purchases=conf.purchases, months=conf.months, future_months=1, seed=conf.seed
    )
    made = simulate_banks(spark, spec, SimulateConf(banks=(bank,)), seed=conf.seed)
    assert spec.as_of is not None, "the simulated bank has one"
    first = spec.as_of.date()
    events = made.tables["events"].frame.withColumn("op", F.lit("")).withColumn("_odd", _odd())
    before = F.col("event_time") < F.lit(first.isoformat()).cast("timestamp")
    files = {"history": events.where(before & (F.col("_odd") != "late"))}
    for night in range(1, conf.nights + 1):
        rows = events.where(F.to_date("event_time") == F.lit(first + dt.timedelta(days=night - 1)))
        if night == _NIGHT_OF_CHANGES:
            rows = rows.unionByName(_changes(events.where(before)))
        files[f"night-{night}"] = rows
    names = [name for name in events.columns if name not in ("_odd", "source_file")]
    return Deliveries(
        files={
            name: rows.select(*names).orderBy("event_time", "client_id", "event_id") for name, rows in files.items()
        },
        labels=_labels(made.tables["labels"].frame),
        as_of=first,
    )


def _odd() -> Column:
    """What becomes of an event: `late`, `wrong`, `never`, or nothing, by a hash of its id."""
    draw = F.pmod(F.xxhash64("client_id", "event_id"), F.lit(_ODDITIES))
    return F.when(draw == 0, "late").when(draw == 1, "wrong").when(draw == 2, "never").otherwise("")


def _changes(history: DataFrame) -> DataFrame:
    """Late events, corrections, and rows that take events away without saying more than which."""
    late = history.where("_odd = 'late'")
    wrong = history.where("_odd = 'wrong'").withColumn("amount", F.col("amount") * 2)
    never = history.where("_odd = 'never'").withColumn("op", F.lit("D"))
    for name in ("amount", "event_time"):
        never = never.withColumn(name, F.lit(None).cast(never.schema[name].dataType))
    return late.unionByName(wrong.withColumn("amount", F.col("amount").cast("decimal(18,4)"))).unionByName(never)


def _labels(labels: DataFrame) -> DataFrame:
    wide = labels.groupBy("client_id").pivot("task", list(_TASKS)).agg(F.first(F.col("label").cast("int")))
    return wide.where(" OR ".join(f"{task} IS NOT NULL" for task in _TASKS)).orderBy("client_id")
