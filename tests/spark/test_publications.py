"""What readers see: a publication names versions that belong together, gates refuse, and one can go back."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.applications.gates import PublishConf
from ledgerlm.applications.publishing import Judged, publication
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.evaluation.explanation import as_page, as_text, explained
from ledgerlm.heads.vectors import newest_vectors
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.publications import (
    PUBLICATIONS,
    publications,
    published,
    refuse_past,
    shown_before,
    versions,
)
from ledgerlm.lake.upkeep import hours_kept, kept

NIGHT = dt.datetime(2025, 1, 2, tzinfo=dt.UTC)
HEAD = "h1"


def by(attempt: str) -> Author:
    return Author(attempt=attempt, stage="bank/publish", run_id=f"run-{attempt}")


def scores(spark: SparkSession, clients: int, night: dt.datetime, shift: float = 0.0) -> DataFrame:
    p = F.least(F.col("id") / clients + shift, F.lit(1.0))
    return spark.range(clients).select(
        F.concat(F.lit("c"), F.col("id")).alias("client_id"),
        F.lit("churn").alias("task"),
        F.lit(night.isoformat(sep=" ")).cast("timestamp").alias("as_of"),
        F.lit(HEAD).alias("head_id"),
        F.array(1 - p, p).alias("probabilities"),
        F.lit(1.0).alias("prediction"),
        F.lit(3).alias("decile"),
        F.array(F.struct(F.lit("since_last_days").alias("feature"), F.lit(0.5).alias("contribution"))).alias("reasons"),
    )


class Bank:
    """A lake with clients and scores, and its nights."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark, self.lake = spark, Lake(str(root), spark)
        ids = spark.range(100).select(
            F.concat(F.lit("c"), F.col("id")).alias("client_id"), F.lit("train").alias("split")
        )
        self.lake.write("clients", ids, by=by("clients"))

    def night(self, day: int, clients: int = 100, shift: float = 0.0, **limits: float | None) -> Judged:
        time = NIGHT + dt.timedelta(days=day)
        self.lake.write("scores", scores(self.spark, clients, time, shift), by=by(f"scores-{day}"))
        conf = PublishConf.model_validate(limits)
        judged = publication(
            self.lake, versions(self.lake), conf, pipeline="bank", as_of=time, heads=[HEAD], keep=DataFrame.cache
        )
        self.lake.apply(PUBLICATIONS, judged.made.tables[PUBLICATIONS].frame, by=by(f"night-{day}"))
        return judged


@pytest.fixture
def bank(spark: SparkSession, tmp_path: Path) -> Bank:
    return Bank(spark, tmp_path)


def test_readers_see_a_night_whole_and_not_the_one_that_is_being_written(bank: Bank) -> None:
    with pytest.raises(DataError, match=r"no publication at .*rescore"):
        published(bank.lake)
    assert bank.night(0).refusal is None
    bank.lake.write("scores", scores(bank.spark, 7, NIGHT + dt.timedelta(days=1)), by=by("half a night"))
    seen = published(bank.lake)
    assert (seen.number, seen.as_of, seen.heads) == (1, NIGHT, (HEAD,))
    assert seen.read(bank.lake, "scores").count() == 100
    with pytest.raises(DataError, match="has no table windows; it has"):
        seen.read(bank.lake, "windows")


@pytest.mark.parametrize(
    ("clients", "shift", "gate"),
    [(80, 0.0, "most_unscored/h1 is 0.2"), (100, 0.6, "most_shift/h1"), (89, 0.0, "least_clients/h1 is 0.89")],
)
def test_a_gate_refuses_and_readers_stay(bank: Bank, clients: int, shift: float, gate: str) -> None:
    bank.night(0)
    judged = bank.night(1, clients, shift)
    assert judged.refusal is not None and gate in judged.refusal
    assert "readers stay with publication 1" in judged.refusal
    assert [one.status for one in publications(bank.lake)] == ["refused", "published"]
    assert published(bank.lake).number == 1
    assert bank.night(2, clients, shift, most_unscored=None, most_shift=None, least_clients=None).refusal is None
    assert published(bank.lake).number == 3


def test_going_back_publishes_the_night_before_again(bank: Bank) -> None:
    for day in range(3):
        bank.night(day)
    assert shown_before(bank.lake, 3) == 2
    again = published(bank.lake, 2).again(4, dt.datetime.now(dt.UTC))
    bank.lake.apply(PUBLICATIONS, again.row(bank.spark).withColumn("_change", F.lit("insert")), by=by("back"))
    seen = published(bank.lake)
    assert (seen.number, seen.status, seen.as_of) == (4, "rolled_back", NIGHT + dt.timedelta(days=1))
    assert dict(seen.tables) == dict(published(bank.lake, 2).tables)
    assert shown_before(bank.lake, 4) == 1, "one further back, and not forward to what was withdrawn"
    with pytest.raises(DataError, match="publication 1 is the first"):
        shown_before(bank.lake, 1)
    refuse_past(bank.lake, seen.as_of)
    with pytest.raises(ConfigError, match=r"--as-of 2025-01-02 .* lies before 2025-01-03 .* publication 4"):
        refuse_past(bank.lake, NIGHT)
    with pytest.raises(DataError, match=r"no publication 9 .*there is 4, 3, 2, 1"):
        published(bank.lake, 9)


def test_what_is_kept_decides_how_much_history_stays(bank: Bank) -> None:
    bank.night(0)
    bank.night(1)
    assert [one.number for one in kept(bank.lake, 1, 0)] == [2]
    assert [one.number for one in kept(bank.lake, 1, 30)] == [2, 1]
    assert hours_kept(kept(bank.lake, 2, 0)) == 168, "never less than Delta's own week"
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=40)
    assert hours_kept(kept(bank.lake, 2, 0), later) in range(40 * 24, 40 * 24 + 3)


def test_an_explanation_tells_the_score_and_what_it_was_made_of(bank: Bank) -> None:
    bank.night(0)
    found = explained(bank.lake, published(bank.lake), "c7")
    assert found["scores"][0]["probabilities"] == [0.93, 0.07]
    assert found["scores"][0]["reasons"] == [{"feature": "since_last_days", "contribution": 0.5}]
    assert found["tables"] == {"clients": 0, "scores": 0}
    text, html = "\n".join(as_text(found)), as_page(found)
    for part in ("c7", "since_last_days", HEAD):
        assert part in text and part in html
    with pytest.raises(DataError, match="has no client 'nobody'"):
        explained(bank.lake, published(bank.lake), "nobody")


def test_a_vector_serves_every_night_until_a_newer_one(spark: SparkSession) -> None:
    made = [("a", "2025-01-01", 1.0), ("a", "2025-01-05", 2.0), ("a", "2025-01-09", 3.0), ("b", "2025-01-02", 4.0)]
    table = spark.createDataFrame(made, "client_id string, day string, x double").select(
        "client_id",
        F.col("day").cast("timestamp").alias("as_of"),
        F.lit("agg").alias("feature_set"),
        F.create_map(F.lit("x"), F.col("x").cast("float")).alias("features"),
    )
    night = dt.datetime(2025, 1, 6, tzinfo=dt.UTC)
    found = {
        row["client_id"]: (row["features"]["x"], row["as_of"])
        for row in newest_vectors(table, "features", night).collect()
    }
    assert found == {"a": (2.0, dt.datetime(2025, 1, 6)), "b": (4.0, dt.datetime(2025, 1, 6))}
