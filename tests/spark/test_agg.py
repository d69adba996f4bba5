"""Agg by hand: exact values, nothing after as_of, codes of training clients only."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from math import log, log1p
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import Agg, AggConf, attribute_features, what_is_summed
from ledgerlm.baselines.folding import Partials
from ledgerlm.baselines.partials import Summed
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.events.asked import asked
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_times import TimeSpec
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import BEFORE

START = datetime(2020, 3, 2, 10, tzinfo=UTC)  # a Monday
END = START + timedelta(days=10)
SCHEMA = (
    "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), "
    "dept string, quantity double"
)


def events(spark: SparkSession, *rows: tuple[str, float, float | None, str | None, float | None]) -> DataFrame:
    """Rows of client, day after START, amount, dept, quantity."""
    made = [
        (client, f"e{place}", START + timedelta(days=day), 0, amount, dept, quantity)
        for place, (client, day, amount, dept, quantity) in enumerate(rows)
    ]
    frame = spark.createDataFrame(
        [
            (*row[:4], None if row[4] is None else str(row[4]), row[5], None if row[6] is None else float(row[6]))
            for row in made
        ],
        SCHEMA.replace("decimal(18,4)", "string"),
    )
    return frame.withColumn("amount", F.col("amount").cast("decimal(18,4)"))


SUMMED = Summed(
    categorical=("dept",),
    numeric=("quantity",),
    by_code=("log_amount",),
    amounts=True,
    currencies=False,
    hour=True,
    weekday=True,
)
PLAIN = SUMMED.model_copy(update={"numeric": (), "hour": False, "weekday": False})


def as_it_is(frame: DataFrame) -> DataFrame:
    """A `keep` that keeps nothing."""
    return frame


def features(
    frame: DataFrame,
    as_of: DataFrame,
    summed: Summed = SUMMED,
    *,
    training: DataFrame | None = None,
    max_codes: int = 10,
    recency: bool = False,
) -> dict[tuple[str, datetime], dict[str, float]]:
    """Features of each client and time; codes are learnt on all histories where no others are given."""
    partials = Partials.of(frame, summed, keep=as_it_is)
    learnt_on = partials.histories(as_of if training is None else training)
    model = Agg.fit(learnt_on, AggConf(max_codes=max_codes, recency=recency), summed)
    rows = model.transform(partials.histories(as_of), as_of).collect()
    return {(row["client_id"], row["as_of"].replace(tzinfo=UTC)): row["features"] for row in rows}


def until(spark: SparkSession, *clients: str, end: datetime = END) -> DataFrame:
    return spark.createDataFrame([(client, end) for client in clients], "client_id string, as_of timestamp")


def test_values_are_those_computed_by_hand(spark: SparkSession) -> None:
    frame = events(
        spark, ("a", 0, -10, "X", 2), ("a", 1.5, 20, "Y", None), ("a", 4.5, 5, "X", 1), ("a", 4.5, 0, None, 1)
    )
    found = features(frame, until(spark, "a", "empty"))
    logs = [-log(11), log(21), log(6), 0.0]
    gaps = [0.0, log1p(1.5), log1p(3), 0.0]
    expected = {
        "count": 4,
        "amount:sum": 15,
        "amount:mean": 3.75,
        "amount:std": stdev([-10, 20, 5, 0]),
        "log_amount:sum": sum(logs),
        "log_amount:mean": mean(logs),
        "log_amount:std": stdev(logs),
        "log_days:sum": sum(gaps),
        "log_days:mean": mean(gaps),
        "log_days:std": stdev(gaps),
        "quantity:sum": 4,
        "quantity:mean": 4 / 3,
        "quantity:std": stdev([2, 1, 1]),
        "dept:distinct": 3,
        "dept=X:count": 2,
        "dept=X:log_amount:mean": mean([logs[0], logs[2]]),
        "dept=X:log_amount:std": stdev([logs[0], logs[2]]),
        "dept=Y:count": 1,
        "dept=Y:log_amount:mean": logs[1],
        "dept=-:count": 1,
        "hour:distinct": 2,
        "hour=10:count": 1,
        "hour=10:log_amount:mean": logs[0],
        "hour=22:count": 3,
        "hour=22:log_amount:mean": mean(logs[1:]),
        "hour=22:log_amount:std": stdev(logs[1:]),
        "weekday:distinct": 3,
        "weekday=2:count": 1,
        "weekday=2:log_amount:mean": logs[0],
        "weekday=3:count": 1,
        "weekday=3:log_amount:mean": logs[1],
        "weekday=6:count": 2,
        "weekday=6:log_amount:mean": mean(logs[2:]),
        "weekday=6:log_amount:std": stdev(logs[2:]),
    }
    assert found["a", END] == pytest.approx(expected, rel=1e-6)
    assert found["empty", END] == {}


def test_the_clock_by_hand(spark: SparkSession) -> None:
    frame = events(spark, ("a", -90, 10, "X", 1), ("a", -60, 20, "X", 1), ("a", 0, 30, "X", 1), ("a", 5, -40, "X", 1))
    frame = frame.unionByName(events(spark, ("a", 11, 1e6, "LEAK", 1), ("b", 10 - 31, 0, "X", 1)))
    found = features(frame, until(spark, "a", "b", "empty"), PLAIN, recency=True)
    of_clock = ("since", "last", "log_amount:slope")
    by_client = {
        client: {name: value for name, value in one.items() if name.startswith(of_clock)}
        for (client, _), one in found.items()
    }
    ago, logs = [100, 70, 10, 5], [log(11), log(21), log(31), -log(41)]
    spread = sum((day - mean(ago)) ** 2 for day in ago)
    slope = -sum((day - mean(ago)) * value for day, value in zip(ago, logs, strict=True)) / spread
    assert by_client["a"] == pytest.approx(
        {
            "since_last_days": 5,
            "since_first_days": 100,
            "last_30d:count": 2,
            "last_30d:amount:sum": -10,
            "last_30d:log_rate": log(3 / 30) - log(3 / 70),
            "last_90d:count": 3,
            "last_90d:amount:sum": 10,
            "last_90d:log_rate": log(4 / 90) - log(2 / 10),
            "last_365d:count": 4,
            "last_365d:amount:sum": 20,
            "log_amount:slope": 365.25 * slope,
        },
        rel=1e-6,
    )
    assert by_client["b"] == pytest.approx(
        {
            "since_last_days": 31,
            "since_first_days": 31,
            "last_90d:count": 1,
            "last_30d:log_rate": log(1 / 30) - log(2 / 1),
            "last_365d:count": 1,
        },
        rel=1e-6,
    )
    assert by_client["empty"] == {}


def test_a_planted_leak_changes_nothing(spark: SparkSession) -> None:
    honest = [("a", 1.0, 3.0, "X", 1.0), ("b", 2.0, 4.0, "Y", 1.0)]
    leaks = [("a", 10.0, 1e6, "LEAK", 9.0), ("b", 11.0, 1e6, "LEAK", 9.0)]  # at as_of, and after it
    ends = until(spark, "a", "b")
    told = features(events(spark, *honest, *leaks), ends, recency=True)
    assert told == features(events(spark, *honest), ends, recency=True)


def test_each_as_of_of_a_client_sees_its_own_past(spark: SparkSession) -> None:
    frame = events(spark, ("a", 1, 3, "X", 1), ("a", 5, 3, "X", 1))
    ends = until(spark, "a").unionByName(until(spark, "a", end=START + timedelta(days=2)))
    found = features(frame, ends, PLAIN)
    assert [found["a", end]["count"] for end in (START + timedelta(days=2), END)] == [1, 2]
    gaps = [found["a", end].get("log_days:sum", 0.0) for end in (START + timedelta(days=2), END)]
    assert gaps == pytest.approx([0.0, log1p(4)])


def test_codes_are_the_most_frequent_of_training_clients(spark: SparkSession) -> None:
    frame = events(
        spark,
        *[("train", day, 1, dept, 1) for day, dept in enumerate(["B", "B", "A", "C", "C"])],
        *[("test", day, 1, "T", 1) for day in range(9)],
    )
    summed = PLAIN.model_copy(update={"by_code": ("amount",)})
    found = features(frame, until(spark, "test", "train"), summed, training=until(spark, "train"), max_codes=2)
    assert {name: value for name, value in found["test", END].items() if "dept" in name} == {"dept:distinct": 1}
    assert {name for name in found["train", END] if "dept" in name} == {
        "dept:distinct",
        *(f"dept={code}:{kind}" for code in "BC" for kind in ("count", "amount:mean")),
    }
    assert found["train", END]["dept:distinct"] == 3


def test_histories_end_at_the_labels_or_at_the_default(spark: SparkSession) -> None:
    clients = spark.createDataFrame([("a",), ("b",)], "client_id string")
    labels = until(spark, "a", "a", "gone", end=START).withColumn("task", F.lit("t"))
    rows = {(row.client_id, row.as_of.replace(tzinfo=UTC)) for row in asked(clients, labels, END).collect()}
    assert rows == {("a", START), ("b", END)}
    assert {row.client_id for row in asked(clients, None, END).collect()} == {"a", "b"}
    assert end_of_data(events(spark, ("a", 1.5, 1, "X", 1)), TimeSpec(column="t")).time == datetime(2020, 3, 4)
    with pytest.raises(DataError, match="no history to tell"):
        end_of_data(events(spark, ("a", 1, 1, "X", 1)).limit(0), TimeSpec(column="t"))


def test_attributes_are_numbers_or_one_hot(spark: SparkSession) -> None:
    clients = spark.createDataFrame(
        [("a", "12.5", "MONTHLY", None), ("b", "0", "WEEKLY", "x")],
        "client_id string, amount string, kind string, o string",
    )
    found = {
        row["client_id"]: row["features"]
        for row in attribute_features(clients, until(spark, "a", "b"), ["amount", "kind", "o"]).collect()
    }
    assert found == {"a": {"amount": 12.5, "kind=MONTHLY": 1, "o=-": 1}, "b": {"kind=WEEKLY": 1, "o=x": 1}}
    with pytest.raises(DataError, match="no column terms"):
        attribute_features(clients, until(spark, "a"), ["terms"])


def test_data_without_amounts(spark: SparkSession, tmp_path: Path) -> None:
    """Ratings have no amount, clinical events no amount but a value: counts, gaps and the numbers there are remain."""
    lake = Lake(str(tmp_path / "lake"), spark)
    stays = [
        ("a", "e1", 1, "LAB", "50912", 1.5),
        ("a", "e2", 2, "LAB", "50912", 2.5),
        ("b", "e3", 3, "LAB", None, None),
    ]
    frame = spark.createDataFrame(
        [(c, e, START + timedelta(days=day), 0, kind, code, value) for c, e, day, kind, code, value in stays],
        "client_id string, event_id string, event_time timestamp, event_seq long, kind string, code string, "
        "value double",
    ).withColumn("amount", F.lit(None).cast("decimal(18,4)"))
    clients = spark.createDataFrame([("a", "train"), ("b", "train")], "client_id string, split string")
    for table, rows in {"events": frame, "clients": clients}.items():
        lake.write(table, rows, by=BEFORE)
    cases: list[tuple[str, dict[str, Any], dict[str, float]]] = [
        ("movielens_100k", {"categorical": ["kind"]}, {"kind=LAB:count": 2.0}),
        ("mimic", {"categorical": ["code"], "numeric": ["value"]}, {"code=50912:value:mean": 2.0, "value:sum": 4.0}),
    ]
    for name, settings, expected in cases:
        # Clients here have none of the attributes that the data set's own protocol asks for.
        settings |= {"attributes": [], "feature_set": name, "as_of": END.replace(tzinfo=None).isoformat()}
        content = {
            "pipeline": name,
            "out": str(tmp_path),
            "data": f"datasets/{name}.yaml",
            "source": {"path": str(tmp_path)},
            "stages": {"aggregate": settings},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
        Runner(load_pipeline(tmp_path / f"{name}.yaml"), Progress()).run()
        written = lake.read("features").where(F.col("feature_set") == name).collect()
        found = {row["client_id"]: row["features"] for row in written}
        assert expected.items() <= found["a"].items()
        assert found["b"]["count"] == 1
        assert not [feature for feature in found["a"] if "amount" in feature]


def test_the_job_writes_every_client_and_a_rerun_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), spark)
    frame = events(spark, ("a", 1, 3, "X", 1), ("b", 2, 4, "Y", 2), ("b", 30, 4, "LATE", 2))
    clients = spark.createDataFrame(
        [("a", "train", "12"), ("b", "test", "7"), ("c", "train", None)], "client_id string, split string, terms string"
    )
    labels = until(spark, "a", "b").select(
        "client_id", F.lit("t").alias("task"), "as_of", F.lit(1.0).alias("label"), F.lit("x").alias("label_text")
    )
    for table, rows in {"events": frame, "clients": clients, "labels": labels}.items():
        lake.write(table, rows, by=BEFORE)
    settings = {"categorical": ["dept"], "numeric": ["quantity"], "attributes": ["terms"]}
    content = {
        "pipeline": "small",
        "out": str(tmp_path),
        "data": "datasets/complete_journey.yaml",
        "stages": {"aggregate": settings},
    }
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content))
    for fresh in (False, True):
        run = Runner(load_pipeline(tmp_path / "pipeline.yaml"), Progress()).run(fresh=fresh)
        record = run.stages[0].record
        assert (record.rows_in, record.rows_out) == (6, 6)
        found = {(row.client_id, row.feature_set): row.features for row in lake.read("features").collect()}
        assert len(found) == lake.read("features").count() == 6
        assert found["b", "agg"]["count"] == 1
        assert "dept=Y:count" not in found["b", "agg"]
        assert found["c", "agg"] == {}
        assert found["a", "attributes"] == {"terms": 12}
    model = Agg.load(tmp_path / "artefacts" / "features" / "agg")
    assert model.codes["dept"] == ("X",)
    partials = Partials(rows=lake.read("partials"), events=frame, summed=model.summed, keep=as_it_is)
    again = model.transform(partials.histories(until(spark, "a", "b")), until(spark, "a", "b")).collect()
    assert {row.client_id: row.features for row in again} == {name: found[name, "agg"] for name in "ab"}
    (tmp_path / "artefacts" / "features" / "agg" / "agg.json").write_text("{}")
    with pytest.raises(ArtefactError, match="run aggregate again"):
        Agg.load(tmp_path / "artefacts" / "features" / "agg")


def test_currencies_are_not_added_up(spark: SparkSession) -> None:
    frame = events(spark, ("a", 0, 10, "X", 1), ("a", 1, 10_000, "X", 1), ("a", 2, 2, "Y", 1), ("b", 0, 5, "X", 1),
                   ("c", 0, 7, "X", 1))  # fmt: skip
    currency = F.when(F.col("amount") == 10_000, "JPY").when(F.col("amount") != 7, "EUR")
    frame = frame.withColumn("currency", currency)
    spec = DataSetSpec.model_validate(
        {"name": "small", "fields": [{"name": "dept"}], "amount": {"column": "amount", "currency_column": "currency"}}
    )
    ends = until(spark, "a", "b", "c")

    def made(training: DataFrame, **conf: int) -> dict[str, dict[str, float]]:
        partials = Partials.of(frame, what_is_summed(AggConf(**conf), spec, frame), keep=as_it_is)
        model = Agg.fit(partials.histories(training), AggConf(**conf), partials.summed)
        return {row.client_id: row.features for row in model.transform(partials.histories(ends), ends).collect()}

    both = made(ends)
    sums = {name: value for name, value in both["a"].items() if name.endswith(":sum") and "log" not in name}
    assert sums == {
        "amount in EUR:sum": 12.0, "amount in JPY:sum": 10_000.0,
        **{f"last_{days}d:amount in EUR:sum": 12.0 for days in (30, 90, 365)},
        **{f"last_{days}d:amount in JPY:sum": 10_000.0 for days in (30, 90, 365)},
    }  # fmt: skip
    assert both["a"]["amount in EUR:mean"] == 6.0
    assert both["a"]["dept=X:log_amount in JPY:mean"] == pytest.approx(math.log(10_001))
    assert (both["a"]["currency=EUR:count"], both["a"]["currency=JPY:count"]) == (2.0, 1.0)
    assert both["c"]["amount in -:sum"] == 7.0
    assert not any("JPY" in name and "currency" not in name for name in made(ends, max_currencies=2)["a"])
    # What training clients have one currency of is of that one; amounts of others are in no sum.
    one = made(ends.where("client_id = 'b'"))
    assert (one["a"]["amount:sum"], one["b"]["amount:sum"]) == (12.0, 5.0)
    assert "amount:sum" not in one["c"]
