"""`make bench [ONLY=serialize]`: prints a table of ratios and writes build/bench/bench.json.

Absolute times of a shared machine mean little; each figure is the ratio of two ways that took turns in this run.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.settings import SparkConf
from ledgerlm.engines.spark import start
from ledgerlm.runs.record import now, versions, write_json
from tests.benchmarks import (
    bench_aggregates,
    bench_backtests,
    bench_embed,
    bench_finetune,
    bench_first_run,
    bench_ingest,
    bench_night,
    bench_nights,
    bench_overhead,
    bench_plan,
    bench_predict,
    bench_run,
    bench_score,
    bench_serialize,
)

BENCHMARKS = {
    "first_run": bench_first_run,
    "run": bench_run,
    "ingest": bench_ingest,
    "serialize": bench_serialize,
    "embed": bench_embed,
    "backtests": bench_backtests,
    "night": bench_night,
    "nights": bench_nights,
    "overhead": bench_overhead,
    "aggregates": bench_aggregates,
    "plan": bench_plan,
    "finetune": bench_finetune,
    "score": bench_score,
    "predict": bench_predict,
}
OUT = Path("build/bench").absolute()


def main(names: list[str]) -> int:
    """Runs the benchmarks of these names, all when none is given. Returns 1 when a target is missed."""
    profile = load_yaml(shipped("engines/laptop.yaml"))["spark"]
    spark = start(SparkConf(**profile), log=OUT / "spark.log")
    console, rows = Console(highlight=False), list[dict[str, Any]]()
    try:
        for name in names or list(BENCHMARKS):
            work = OUT / name
            work.mkdir(parents=True, exist_ok=True)
            measured = [{"benchmark": name, **_judged(row)} for row in BENCHMARKS[name].run(spark, work)]
            console.print(_table(measured))
            rows += measured
    finally:
        spark.stop()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    write_json(OUT / "bench.json", {"at": now(), "machine": machine, "versions": versions(), "rows": rows})
    console.print(f"{OUT / 'bench.json'}")
    return 0 if all(row["reached"] for row in rows) else 1


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    reached = row["ratio"] >= row["target"] if row["better"] == "higher" else row["ratio"] <= row["target"]
    return {**row, "reached": reached}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for heading in ("what", "against", "ratio", "to reach", ""):
        table.add_column(heading)
    for row in rows:
        sign = "at least" if row["better"] == "higher" else "at most"
        verdict = "reached" if row["reached"] else "missed"
        table.add_row(row["what"], row["against"], f"{row['ratio']:.2f}", f"{sign} {row['target']}", verdict)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
