"""A bank that knows the truth: clients, events and labels by Spark-native expressions, the same for a seed anywhere."""

from ledgerlm.events.simulator.clients import (
    ATTRIBUTES,
    SimulatorConf,
    benchmark_conf,
    known_attributes,
    simulate_clients,
)
from ledgerlm.events.simulator.events import EVENT_COLUMNS, FIELDS, simulate_dictionaries, simulate_events
from ledgerlm.events.simulator.labels import simulate_labels, task_classes, true_probabilities
from ledgerlm.events.simulator.world import World, load_world

__all__ = [
    "ATTRIBUTES",
    "EVENT_COLUMNS",
    "FIELDS",
    "SimulatorConf",
    "World",
    "benchmark_conf",
    "known_attributes",
    "load_world",
    "simulate_clients",
    "simulate_dictionaries",
    "simulate_events",
    "simulate_labels",
    "task_classes",
    "true_probabilities",
]
