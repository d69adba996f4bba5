"""A night over windows: what new events cost the model and Spark against a full pass over the same histories."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.model import backbone_id
from ledgerlm.backbone.states import fold, state_rows
from ledgerlm.text.serialize import DocumentConf
from ledgerlm.text.windows import windows
from tests.benchmarks.bench_backtests import EVENTS, SPEC, WINDOWING, backbone, events

SIZES = {300: 2, 3_000: 1}  # clients -> turns: planning and starting weighs less, the more there is to do
NIGHT = "2025-01-16"  # the middle of a month, whose window is half full
_KEY = ["client_id", "text_hash"]


@dataclass(frozen=True)
class _Night:
    """What comes, and what it may cost of a full pass.

    Attributes:
        name: for the table, and of a folder.
        new: the events.
        tokens: most share of the model's tokens.
        seconds: most share of the time.
    """

    name: str
    new: DataFrame
    tokens: float
    seconds: float


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    return [row for clients, turns in SIZES.items() for row in _nights(spark, workdir / str(clients), clients, turns)]


def _nights(spark: SparkSession, workdir: Path, clients: int, turns: int) -> list[dict[str, Any]]:
    workdir.mkdir(parents=True, exist_ok=True)
    before = _kept(events(spark, NIGHT, clients), workdir / "events")
    told = _kept(_told(before), workdir / "told")
    folder, definition = backbone(told, workdir / "backbone")
    asked = spark.range(clients).selectExpr("concat('c', id) AS client_id", f"TIMESTAMP '{NIGHT}' AS as_of")
    tomorrow = asked.withColumn("as_of", F.expr(f"TIMESTAMP '{NIGHT}' + INTERVAL 1 DAY"))
    # The first pass starts Python workers and opens the backbone in them; its time does not count.
    states, *_ = _pass(told, None, asked, folder, definition, workdir / "first")
    nights = (
        _Night("60 % with 1 to 3 new ones", _new_events(spark, clients, 60), 0.06, 0.15),
        _Night("10 % with 1 to 3 new ones", _new_events(spark, clients, 10), 0.01, 0.08),
        _Night("1 % with a late one of a year ago", _late_events(spark, clients), 0.02, 0.08),
    )
    rows = []
    for place, night in enumerate(nights):
        new = _kept(night.new, workdir / f"new-{place}")
        now = before.unionByName(new)
        dirty = new.groupBy("client_id").agg(F.min("event_time").alias("earliest"))
        mine = tomorrow.join(dirty.select("client_id"), "client_id", how="left_semi")
        read, all_tokens, took, all_of_it = 0, 0, list[float](), list[float]()
        for _ in range(turns):
            began = time.perf_counter()
            changed = _kept(_told(now, dirty), workdir / f"changed-{place}")
            old = told.join(dirty, "client_id").where(F.col("period") < F.trunc("earliest", "month")).drop("earliest")
            whole = changed.unionByName(old)
            _, read, _ = _pass(whole, states, mine, folder, definition, workdir / f"night-{place}")
            took.append(time.perf_counter() - began)
            began = time.perf_counter()
            _, all_tokens, _ = _pass(_told(now), None, tomorrow, folder, definition, workdir / f"full-{place}")
            all_of_it.append(time.perf_counter() - began)
        what = f"a night of {clients:,} clients with {EVENTS} events in the year, {night.name}"
        one, other = median(took), median(all_of_it)
        rows += [
            _row(f"{what}, model tokens", read / all_tokens, night.tokens, f"{read:,} against {all_tokens:,} tokens"),
            _row(
                f"{what}, windows to vectors, seconds", one / other, night.seconds, f"{one:.1f} against {other:.1f} s"
            ),
        ]
    return rows


def _row(what: str, ratio: float, target: float, detail: str) -> dict[str, Any]:
    return {
        "what": what,
        "against": "a full pass",
        "ratio": ratio,
        "target": target,
        "better": "lower",
        "detail": detail,
    }


def _told(rows: DataFrame, since: DataFrame | None = None) -> DataFrame:
    return windows(rows, SPEC, DocumentConf(), WINDOWING, since=since)


def _kept(rows: DataFrame, path: Path) -> DataFrame:
    rows.write.mode("overwrite").parquet(str(path))
    return rows.sparkSession.read.parquet(str(path))


def _new_events(spark: SparkSession, clients: int, share: int) -> DataFrame:
    """One to three events of a share of the clients, on the day of the night."""
    chosen = spark.range(clients).where(f"pmod(xxhash64(id, 9), 100) < {share}")
    each = chosen.selectExpr("id", "explode(sequence(1, 1 + pmod(xxhash64(id, 8), 3))) AS n")
    return each.selectExpr(
        "concat('c', id) AS client_id",
        "concat('n', id, '-', n) AS event_id",
        f"TIMESTAMP '{NIGHT}' + make_interval(0, 0, 0, 0, n * 5, 0, 0) AS event_time",
        "0L AS event_seq",
        "CAST(pmod(xxhash64(id, n), 500) AS decimal(18,4)) AS amount",
        "concat('CATEGORY ', pmod(xxhash64(id, n, 3), 40)) AS category",
        "concat('s', pmod(xxhash64(id, n, 4), 200)) AS store",
    )


def _late_events(spark: SparkSession, clients: int) -> DataFrame:
    """An event of a hundredth of the clients, a year before the night."""
    return spark.range(0, clients, 100).selectExpr(
        "concat('c', id) AS client_id",
        "concat('l', id) AS event_id",
        f"TIMESTAMP '{NIGHT}' - make_interval(0, 0, 0, 360, 0, id, 0) AS event_time",
        "0L AS event_seq",
        "CAST(pmod(xxhash64(id, 6), 500) AS decimal(18,4)) AS amount",
        "concat('CATEGORY ', pmod(xxhash64(id, 7), 40)) AS category",
        "concat('s', pmod(xxhash64(id, 8), 200)) AS store",
    )


def _pass(
    told: DataFrame,
    there: DataFrame | None,
    asked: DataFrame,
    folder: Path,
    definition: EmbeddingDefinition,
    workdir: Path,
) -> tuple[DataFrame, int, DataFrame]:
    """States of the texts that have none, tokens read for them, and vectors."""
    identity = backbone_id(folder)
    texts = told.dropDuplicates(_KEY)
    if there is not None:
        texts = texts.join(there.select(*_KEY), _KEY, how="left_anti")
    made = state_rows(
        texts.repartition(4, "text_hash"), folder=str(folder), backbone_id=identity, definition=definition
    )
    new = _kept(made, workdir)
    states = new if there is None else new.unionByName(there.join(told.select(*_KEY), _KEY, how="left_semi"))
    vectors = fold(told, states, asked, definition=definition, backbone_id=identity)
    vectors.write.mode("overwrite").format("noop").save()
    (read,) = new.agg(F.coalesce(F.sum("token_count"), F.lit(0)).alias("tokens")).collect()
    return states, read["tokens"], vectors
