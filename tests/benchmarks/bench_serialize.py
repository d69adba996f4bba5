"""Serialisation against Spark copying the same events sorted by client and time, and at ten times as many events."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
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
        turns: of copy and serialize at the small size; the large size takes 3.
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
    copying, writing = _alternately([lambda: copy(small), lambda: write(small)], turns)
    with _peak_memory(spark) as peak_small:
        write(small)
    with _peak_memory(spark) as peak_large:
        little, much = _alternately([lambda: write(small), lambda: write(large)], 3, warm=False)
    rates = {SMALL: counts[SMALL] / little, LARGE: counts[LARGE] / much}
    return [
        {
            "what": "serialize, events/s",
            "against": "Spark copying the same table sorted by client and time",
            "ratio": copying / writing,
            "target": 0.5,
            "better": "higher",
            "detail": f"{counts[SMALL] / writing:,.0f} against {counts[SMALL] / copying:,.0f} events/s",
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
            "ratio": peak_large() / peak_small(),
            "target": 1.15,
            "better": "lower",
            "detail": f"{peak_large() / 1e6:,.0f} MB against {peak_small() / 1e6:,.0f} MB resident in Spark's process",
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


def _alternately(ways: list[Callable[[], None]], turns: int, *, warm: bool = True) -> list[float]:
    """Median seconds of each way; the first turn warms the compilers and does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + warm):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            if turn or not warm:
                seconds[place].append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


@contextmanager
def _peak_memory(spark: SparkSession) -> Iterator[Callable[[], float]]:
    """Watches the resident memory of the session's Java process; the value is known after the block."""
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    process = psutil.Process(jvm.java.lang.ProcessHandle.current().pid())
    peaks = [0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peaks.append(float(process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(peaks)
    finally:
        over.set()
        watcher.join()
