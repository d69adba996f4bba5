"""Simulated events of a bank, with the dictionaries of their codes."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines.frames import small_frame
from ledgerlm.events.simulator.account import account_events
from ledgerlm.events.simulator.calendar import calendar_of
from ledgerlm.events.simulator.clients import SimulatorConf
from ledgerlm.events.simulator.labels import with_outcomes
from ledgerlm.events.simulator.purchases import Part, purchases
from ledgerlm.events.simulator.world import Bank, World, load_world

FIELDS = ("type", "mcc", "merchant", "channel", "city", "country", "note")
EVENT_COLUMNS = ("client_id", "event_id", "event_time", "event_seq", "amount", "currency", *FIELDS)


def simulate_events(clients: DataFrame, conf: SimulatorConf) -> DataFrame:
    """Makes every event of the clients: native expressions, no shuffle, work and memory linear in the events.

    Args:
        clients: `simulate_clients` of the same configuration.

    Returns:
        One row an event, unordered: `EVENT_COLUMNS` and `source_file`. `event_id` and `event_seq` (which breaks ties in
        time) are unique for a client. Amounts are signed: money out is negative; contacts with the bank have none.
        Times are UTC, to the second.
    """
    world = load_world(conf.world)
    calendar = calendar_of(conf, world.banks[conf.bank].country)
    known = with_outcomes(clients, conf) if conf.future_months else clients
    events = account_events(known, conf, world, calendar).unionByName(
        purchases(known, conf, world, calendar, Part("P", 0, calendar.past, past=True))
    )
    if conf.future_months:
        future = Part("F", calendar.past, len(calendar.days) - calendar.past, past=False)
        events = events.unionByName(purchases(known, conf, world, calendar, future))
    return events.withColumn("source_file", F.lit(f"simulator:{conf.bank}"))


def simulate_dictionaries(spark: SparkSession, conf: SimulatorConf) -> DataFrame:
    """The codes of one bank: `field` (`type` or `mcc`), `code`, `description`. Both banks describe alike."""
    return small_frame(
        spark, _codes(load_world(conf.world), conf.bank), "field string, code string, description string"
    )


def _codes(world: World, bank: Bank) -> list[tuple[str, str, str]]:
    types = [("type", str(getattr(kind, bank)), kind.description) for kind in world.types.values()]
    coded = [*world.categories, *(item.category for item in world.items if item.category)]
    return sorted({*types, *(("mcc", thing.codes[bank], thing.description) for thing in coded)})
