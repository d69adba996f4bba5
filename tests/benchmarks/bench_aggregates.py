"""Aggregate features: from standing monthly partials against from events, and Spark against pandas on the same events.

The figures are CPU seconds of all processes, since a shared machine's clock says how busy it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import Agg, AggConf, what_is_summed
from ledgerlm.baselines.folding import Partials
from ledgerlm.engines.frames import Keeper
from ledgerlm.events.spec import DataSetSpec
from tests.cpu_meter import CpuMeter

CLIENTS, MONTHS, EVENTS_A_MONTH = 30, 24, 60
PANDAS_CLIENTS = 200
SPEC = DataSetSpec.model_validate(
    {"name": "bank", "amount": {"column": "amount"}, "fields": [{"name": "category"}, {"name": "store"}]}
)
CODES = ("category", "store", "hour", "weekday")


def run(spark: SparkSession, workdir: Path, turns: int = 2) -> list[dict[str, Any]]:
    """Measures, in alternating turns, medians compared; rows of what, against, ratio, target, better and detail."""
    return [_from_partials(spark, workdir, turns), _against_pandas(spark, workdir, turns)]


def _from_partials(spark: SparkSession, workdir: Path, turns: int) -> dict[str, Any]:
    """Monthly times over all months of the history, each client asked at each of them."""
    events = _kept(_events(spark, CLIENTS), workdir / "events")
    months = spark.range(1, MONTHS + 1).selectExpr("add_months(DATE '2023-01-01', id)::timestamp AS as_of")
    asked = _kept(events.select("client_id").distinct().crossJoin(months), workdir / "asked")
    summed = what_is_summed(AggConf(), SPEC, events)
    keeper = Keeper()
    standing = _kept(Partials.of(events, summed, keep=keeper.keep).rows, workdir / "partials")
    partials = Partials(rows=standing, events=events, summed=summed, keep=keeper.keep)
    model = Agg.fit(partials.histories(asked.where("as_of = TIMESTAMP '2025-01-01'")), AggConf(), summed)

    def folded() -> DataFrame:
        return model.transform(partials.histories(asked), asked)

    def from_events() -> DataFrame:
        # Each history by itself: a client of its own, with the events before its time.
        name = F.concat("client_id", F.lit("@"), F.col("as_of").cast("string"))
        each = events.join(asked, "client_id").where("event_time < as_of").withColumn("client_id", name).drop("as_of")
        own = asked.select(name.alias("client_id"), "as_of")
        found = model.transform(Partials.of(each, summed, keep=keeper.keep).histories(own), own)
        return found.withColumn("client_id", F.split("client_id", "@")[0])

    if _digest(folded()) != _digest(from_events()):
        raise AssertionError("features from partials and from events differ")
    keeper.release()
    by_partials, by_events = alternately([_noop(folded, keeper), _noop(from_events, keeper)], turns)
    return {
        "what": f"aggregate features at {MONTHS} monthly times from partials that stand, equal bit by bit; CPU",
        "against": "from events",
        "ratio": by_events / by_partials,
        "target": 5,
        "better": "higher",
        "detail": f"{by_partials:.1f} against {by_events:.1f} CPU seconds, {CLIENTS} clients with "
        f"{EVENTS_A_MONTH} events a month",
    }


def _against_pandas(spark: SparkSession, workdir: Path, turns: int) -> dict[str, Any]:
    """One time for each client: from the file of events to features, partials included."""
    path = workdir / "many"
    events = _kept(_events(spark, PANDAS_CLIENTS), path)
    asked = events.select("client_id").distinct().withColumn("as_of", F.lit("2025-01-01").cast("timestamp"))
    asked = _kept(asked, workdir / "all")
    keeper = Keeper()
    summed = what_is_summed(AggConf(), SPEC, events)
    learnt = Partials.of(events, summed, keep=keeper.keep).histories(asked)
    model = Agg.fit(learnt, AggConf(recency=False), summed)
    keeper.release()

    def made() -> DataFrame:
        return model.transform(Partials.of(events, summed, keep=keeper.keep).histories(asked), asked)

    frame = made()
    counts = {row["client_id"]: row["features"]["category=CATEGORY 3:count"] for row in frame.collect()}
    table = by_pandas(path)
    if not np.allclose(table["category=CATEGORY 3:count"].sort_index(), pd.Series(counts).sort_index()):
        raise AssertionError("pandas and Spark count different events")
    keeper.release()
    ours, pandas = alternately([_noop(made, keeper), lambda: by_pandas(path)], turns)
    count = events.count()
    return {
        "what": f"aggregate features of {count:,} events, events/s; CPU",
        "against": "pandas, one thread",
        "ratio": pandas / ours,
        "target": 5,
        "better": "higher",
        "detail": f"{count / ours:,.0f} against {count / pandas:,.0f} events a CPU second",
    }


def by_pandas(path: Path) -> pd.DataFrame:
    """The same features (but those of the clock) as one would write them with pandas, a row a client."""
    events = pd.read_parquet(path).sort_values(["client_id", "event_time", "event_id"])
    amount = events["amount"].astype("float64")
    events["amount"], events["log_amount"] = amount, np.sign(amount) * np.log1p(amount.abs())
    gaps = events.groupby("client_id")["event_time"].diff().dt.total_seconds().fillna(0)
    events["log_days"] = np.log1p(gaps / 86_400)
    events["hour"], events["weekday"] = events["event_time"].dt.hour, events["event_time"].dt.dayofweek
    numbers = events.groupby("client_id")[["amount", "log_amount", "log_days"]].agg(["sum", "mean", "std"])
    numbers.columns = pd.Index([":".join(one) for one in numbers.columns.to_flat_index()])
    parts = [numbers, events.groupby("client_id").size().rename("count")]
    for field in CODES:
        each = events.groupby(["client_id", field])["log_amount"].agg(["count", "mean", "std"])
        table = pd.DataFrame(each.unstack(fill_value=0))
        table.columns = pd.Index([f"{field}={one[1]}:{one[0]}" for one in table.columns.to_flat_index()])
        parts += [table, events.groupby("client_id")[field].nunique().rename(f"{field}:distinct")]
    return pd.concat(parts, axis=1).fillna(0).astype("float32")


def _events(spark: SparkSession, clients: int) -> DataFrame:
    """As many events of each client, at any second of the months."""
    return spark.range(clients * MONTHS * EVENTS_A_MONTH).selectExpr(
        f"concat('c', id % {clients}) AS client_id",
        "concat('e', id) AS event_id",
        "TIMESTAMP '2025-01-01' - make_interval(0, 0, 0, 0, 0, 0, 1 + pmod(hash(id), 730 * 86400)) AS event_time",
        "0L AS event_seq",
        "CAST(pmod(xxhash64(id, 2), 50000) / 100 AS decimal(18,4)) AS amount",
        "concat('CATEGORY ', floor(pow(pmod(xxhash64(id, 3), 1000) / 1000D, 2) * 40)) AS category",
        "concat('s', floor(pow(pmod(xxhash64(id, 4), 1000) / 1000D, 2) * 200)) AS store",
    )


def _kept(rows: DataFrame, path: Path) -> DataFrame:
    rows.write.mode("overwrite").parquet(str(path))
    return rows.sparkSession.read.parquet(str(path))


def _digest(rows: DataFrame) -> Any:
    """Of all bits of all features."""
    told = F.to_json(F.sort_array(F.map_entries("features")))
    found = rows.agg(F.count("*"), F.bit_xor(F.xxhash64("client_id", F.unix_micros("as_of"), told))).first()
    return tuple(found or ())


def _noop(make: Callable[[], DataFrame], keeper: Keeper) -> Callable[[], None]:
    def work() -> None:
        make().write.mode("overwrite").format("noop").save()
        keeper.release()

    return work


def alternately(ways: list[Callable[[], Any]], turns: int) -> list[float]:
    """Median CPU seconds of each way; the first turn, in which the JVM compiles, does not count."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + 1):
        for place, way in enumerate(ways):
            before = cpu_so_far()
            way()
            if turn:
                taken[place].append(cpu_so_far() - before)
    return [median(each) for each in taken]


@cache
def _meter() -> CpuMeter:
    meter = CpuMeter(every=2.0)  # idle workers end after a minute, long after they were seen
    meter.start()
    return meter


def cpu_so_far() -> float:
    """CPU seconds of this process and of those that it started, Python workers that ended among them."""
    return _meter().now()
