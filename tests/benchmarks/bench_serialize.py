"""Serialisation against Spark copying the same events sorted by client and time, and at ten times as many events."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.events.simulator.clients import benchmark_conf, simulate_clients
from ledgerlm.events.simulator.events import simulate_dictionaries, simulate_events
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.serialize import DocumentConf, serialize

SMALL, LARGE = 500_000, 5_000_000
SPEC = DataSetSpec.model_validate(
    {
        "name": "simulated",
        "amount": {"column": "amount", "currency": "EUR"},
        "fields": [
            *({"name": name} for name in ("type", "mcc", "channel", "city", "country")),
            *({"name": name, "kind": "text"} for name in ("merchant", "note")),
        ],
    }
)
DESCRIBED = ("type", "mcc")


def run(spark: SparkSession, workdir: Path, turns: int = 5) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared.

    Args:
        spark: the session.
        workdir: where events and copies are written.
        turns: of each way.
    """
    dictionaries = simulate_dictionaries(spark, benchmark_conf(SMALL)).localCheckpoint()
    small, large = (_events(spark, workdir, count) for count in (SMALL, LARGE))
    out = str(workdir / "out")

    def write(events: DataFrame) -> None:
        documents = serialize(
            events, None, dt.datetime(2100, 1, 1), SPEC, DocumentConf(), dictionaries=dictionaries, described=DESCRIBED
        )
        documents.write.mode("overwrite").parquet(out)

    def copy(events: DataFrame) -> None:
        ordered = events.repartition("client_id").sortWithinPartitions("client_id", "event_time")
        ordered.write.mode("overwrite").parquet(out)

    counts = {SMALL: small.count(), LARGE: large.count()}
    # Copy and serialize are compared at the large size: of the small one half the time is planning and starting.
    little, much, copying = _alternately([lambda: write(small), lambda: write(large), lambda: copy(large)], turns)
    live_small, live_large = (_live_memory(spark, partial(write, events)) for events in (small, large))
    rates = {SMALL: counts[SMALL] / little, LARGE: counts[LARGE] / much}
    return [
        {
            "what": f"serialize, events/s at {counts[LARGE]:,} events",
            "against": "Spark copying the same table sorted by client and time",
            "ratio": copying / much,
            "target": 0.5,
            "better": "higher",
            "detail": f"{rates[LARGE]:,.0f} against {counts[LARGE] / copying:,.0f} events/s",
        },
        {
            "what": f"serialize, time per event at {counts[LARGE]:,} events",
            "against": f"at {counts[SMALL]:,} events",
            "ratio": rates[SMALL] / rates[LARGE],
            "target": 1.15,
            "better": "lower",
            "detail": f"{rates[LARGE]:,.0f} against {rates[SMALL]:,.0f} events/s",
        },
        {
            "what": f"serialize, peak memory at {counts[LARGE]:,} events",
            "against": f"at {counts[SMALL]:,} events",
            "ratio": live_large / live_small,
            "target": 1.15,
            "better": "lower",
            "detail": f"{live_large / 1e6:,.0f} MB against {live_small / 1e6:,.0f} MB of live Java heap",
        },
    ]


def _events(spark: SparkSession, workdir: Path, count: int) -> DataFrame:
    """Simulated events, written once in no order."""
    path = str(workdir / f"events_{count}")
    if not Path(path, "_SUCCESS").exists():
        conf = benchmark_conf(count)
        events = simulate_events(simulate_clients(spark, conf), conf).withColumn("run_id", F.lit("bench"))
        events.repartition(F.xxhash64("event_id") % 64).write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


def _alternately(ways: list[Callable[[], None]], turns: int) -> list[float]:
    """Median seconds of each way; the first turn warms the compilers and does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + 1):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            if turn:
                seconds[place].append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


def _live_memory(spark: SparkSession, way: Callable[[], None]) -> float:
    """Most bytes that the session's Java heap needs during a run: what is left after each of many forced collections.

    The resident size says nothing here: a heap grows to the limit that it was given before Java collects it. Nor does
    the use of the heap a moment after a collection, when two tasks have already filled new memory: the pools keep what
    the collection itself left.
    """
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    beans = jvm.java.lang.management.ManagementFactory.getMemoryPoolMXBeans()
    pools = [pool for pool in beans if pool.getType().name() == "HEAP" and pool.getCollectionUsage() is not None]
    peaks: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            jvm.System.gc()
            peaks.append(float(sum(pool.getCollectionUsage().getUsed() for pool in pools)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        way()
    finally:
        over.set()
        watcher.join()
    return max(peaks)
