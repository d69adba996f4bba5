"""Writes the files that a simulated bank would send: a history, and a file for each of some nights."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ledgerlm.config import shipped
from ledgerlm.events.simulator.deliveries import DeliveriesConf, deliveries
from ledgerlm.events.spec import load_spec
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def write_deliveries(folder: str, conf: DeliveriesConf) -> int:
    """Writes `deliveries/history.csv`, `labels.csv`, and `nights/night-N.csv`, which are to be delivered.

    Args:
        folder: where to; what it holds of an earlier call is replaced.
        conf: sizes.

    Returns:
        Exit code.
    """
    from ledgerlm.runs.engines import Engines

    root = Path(folder)
    for part in ("deliveries", "nights"):
        (root / part).mkdir(parents=True, exist_ok=True)
    logs = tempfile.TemporaryDirectory()
    engines = Engines(load_pipeline(shipped("simulated_bank.yaml"), [f"out={logs.name}"]))
    try:
        made = deliveries(engines.spark, load_spec("datasets/simulated_bank.yaml"), conf)
        _write(made.labels, root / "labels.csv")
        for name, rows in made.files.items():
            _write(rows, root / ("deliveries" if name == "history" else "nights") / f"{name}.csv")
    finally:
        engines.stop()
        logs.cleanup()
    Progress(Console(highlight=False)).say(
        f"{root}: deliveries/history.csv up to {made.as_of}, labels.csv, and {len(made.files) - 1} files in nights/, "
        "which are still to be delivered"
    )
    return 0


def _write(rows: DataFrame, file: Path) -> None:
    """One CSV file; Spark writes folders."""
    aside = file.with_suffix(".parts")
    rows.coalesce(1).write.mode("overwrite").csv(str(aside), header=True, nullValue="")
    next(aside.glob("part-*.csv")).replace(file)
    shutil.rmtree(aside)


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["deliveries", *sys.argv[1:]]))
