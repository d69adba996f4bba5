"""Ingest with all its checks against Spark reading the same CSV with a schema and writing it to Delta as it is.

Both in one session, in turns: by the clock, and by the CPU seconds of the process tree, since a shared machine's clock
says how busy it is.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession

from ledgerlm.jobs.run import run_pipeline
from ledgerlm.lake.lake import Lake
from tests.benchmarks.bench_aggregates import cpu_so_far
from tests.benchmarks.bench_run import write_pipeline

ROWS, CLIENTS, FILES = 500_000, 1_700, 4
SPEC = """
name: bank
source: {{path: {folder}, files: [{{glob: "events/*.csv"}}]}}
client: client_id
time: {{column: event_time}}
event_id: {{columns: [event_id]}}
amount: {{column: amount, currency_column: currency}}
fields:
  - {{name: type}}
  - {{name: mcc}}
  - {{name: merchant, kind: text}}
  - {{name: channel}}
  - {{name: city}}
as_of: 2025-01-01
labels: [{{name: churn, kind: binary, file: {{glob: labels.csv}}, id: client_id, column: churn}}]
"""
SCHEMA = (
    "client_id string, event_id string, event_time timestamp, amount decimal(18,4), currency string, type string, "
    "mcc string, merchant string, channel string, city string"
)


def run(spark: SparkSession, workdir: Path, turns: int = 2) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    _write_files(spark, workdir)
    file = write_pipeline(workdir, SPEC, {"ingest": {}})

    def ingest() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run_pipeline(str(file), only="ingest", fresh=True)

    def copy() -> None:
        rows = spark.read.csv(str(workdir / "events"), schema=SCHEMA, header=True)
        rows.write.format("delta").mode("overwrite").save(str(workdir / "copy"))

    ours, theirs = _alternately([ingest, copy], turns)
    taken = Lake(str(workdir / "out" / "lake"), spark).read("events").count()
    if taken != ROWS or spark.read.format("delta").load(str(workdir / "copy")).count() != ROWS:
        raise AssertionError(f"{taken:,} events of {ROWS:,} rows")
    return [
        {
            "what": f"ingest with all checks of {ROWS:,} rows, rows/s, {by}",
            "against": "Spark reading the same CSV and writing it to Delta unchecked",
            "ratio": other / one,
            "target": 0.6,
            "better": "higher",
            "detail": f"{ROWS / one:,.0f} against {ROWS / other:,.0f} rows/s",
        }
        for by, one, other in zip(("wall time", "CPU seconds"), ours, theirs, strict=True)
    ]


def _write_files(spark: SparkSession, folder: Path) -> None:
    """Rows in no order, as files of a delivery are, and labels of all clients."""
    rows = spark.range(ROWS).selectExpr(
        f"concat('c', pmod(xxhash64(id, 7), {CLIENTS})) AS client_id",
        "concat('e', id) AS event_id",
        "date_format(TIMESTAMP '2025-01-01' - make_interval(0, 0, 0, 0, 0, 0, 1 + pmod(xxhash64(id), 365 * 86400)), "
        "'yyyy-MM-dd HH:mm:ss') AS event_time",
        "CAST(pmod(xxhash64(id, 2), 500000) / 100 AS decimal(18,2)) AS amount",
        "element_at(array('EUR', 'EUR', 'EUR', 'USD'), int(1 + pmod(xxhash64(id, 3), 4))) AS currency",
        "element_at(array('card', 'transfer', 'cash'), int(1 + pmod(xxhash64(id, 4), 3))) AS type",
        "5000 + pmod(xxhash64(id, 5), 300) AS mcc",
        "concat('merchant ', pmod(xxhash64(id, 6), 5000)) AS merchant",
        "element_at(array('web', 'shop', 'phone'), int(1 + pmod(xxhash64(id, 8), 3))) AS channel",
        "concat('city ', pmod(xxhash64(id, 9), 200)) AS city",
    )
    rows.repartition(FILES).write.mode("overwrite").csv(str(folder / "events"), header=True)
    lines = "".join(f"c{number},{number % 2}\n" for number in range(CLIENTS))
    (folder / "labels.csv").write_text(f"client_id,churn\n{lines}", encoding="utf-8")


def _alternately(ways: list[Callable[[], None]], turns: int) -> list[tuple[float, float]]:
    """Median wall and CPU seconds of each way; the first turn, in which the JVM compiles, does not count."""
    taken: list[list[tuple[float, float]]] = [[] for _ in ways]
    for turn in range(turns + 1):
        for place, way in enumerate(ways):
            began, before = time.perf_counter(), cpu_so_far()
            way()
            if turn:
                taken[place].append((time.perf_counter() - began, cpu_so_far() - before))
    return [(median(wall for wall, _ in each), median(cpu for _, cpu in each)) for each in taken]
