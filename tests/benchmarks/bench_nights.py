"""Thirty nights of a simulated bank in a row: what the last ten take against the first ten, with upkeep once a week.

All nights go through one session, so that nothing but the lake grows older: the session is warmed by nights of a
second lake, whose time does not count. Upkeep comes as the shipped crontab has it, and is timed by itself.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import SparkSession

from ledgerlm.events.simulator.deliveries import DeliveriesConf
from ledgerlm.jobs.maintain import maintain
from ledgerlm.jobs.rescore import rescore
from ledgerlm.jobs.run import run_pipeline
from ledgerlm.runs.record import write_json
from tests.benchmarks.bench_aggregates import cpu_so_far
from tests.benchmarks.bench_plan import nightly_pipeline, random_backbone

CLIENTS, WARMING_CLIENTS, PURCHASES, NIGHTS, WARMING = 50, 40, 30, 30, 3
UPKEEP = 7  # nights
FIRST = dt.datetime(2025, 1, 2)
Used = tuple[float, float]
"""Wall and CPU seconds."""


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures; returns rows of what, against, ratio, target, better and detail."""
    folder = random_backbone(spark, workdir)
    _nights(DeliveriesConf(clients=WARMING_CLIENTS, purchases=PURCHASES, nights=WARMING), folder, workdir)
    conf = DeliveriesConf(clients=CLIENTS, purchases=PURCHASES, nights=NIGHTS)
    nights, upkeep = _nights(conf, folder, workdir)
    rows = []
    for place, by in enumerate(("wall time", "CPU seconds")):
        first, last = (median(one[place] for one in part) for part in (nights[:10], nights[-10:]))
        kept = ", ".join(f"{one[place]:.0f}" for one in upkeep)
        rows.append(
            {
                "what": f"a night of {CLIENTS} clients, the last ten of {NIGHTS}, {by}",
                "against": "the first ten",
                "ratio": last / first,
                "target": 1.2,
                "better": "lower",
                "detail": f"{last:.1f} against {first:.1f} s a night; upkeep every {UPKEEP} nights {kept} s",
            }
        )
    return rows


def _nights(conf: DeliveriesConf, folder: Path, workdir: Path) -> tuple[list[Used], list[Used]]:
    """A study, then a night a file; what each night took, and each upkeep."""
    file = nightly_pipeline(conf, folder, workdir)
    bank = workdir / f"bank-{conf.clients}"
    _used(lambda: run_pipeline(str(file)))
    nights, upkeep = list[Used](), list[Used]()
    for night in range(conf.nights):
        delivered = bank / "nights" / f"night-{night + 1}.csv"
        shutil.copy(delivered, bank / "deliveries" / delivered.name)
        as_of = FIRST + dt.timedelta(days=night)
        nights.append(_used(partial(rescore, str(file), as_of=as_of)))
        if (night + 1) % UPKEEP == 0:
            upkeep.append(_used(lambda: maintain(str(file))))
        write_json(workdir / f"nights-{conf.clients}.json", {"nights": nights, "upkeep": upkeep})
    return nights, upkeep


def _used(work: Callable[[], int]) -> Used:
    began, before = time.perf_counter(), cpu_so_far()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - began, cpu_so_far() - before
