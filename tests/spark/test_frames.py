"""Small frames that a plan carries itself, and frames that are computed once."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.engines import frames
from ledgerlm.engines.frames import Keeper, settled, small_frame

ROWS = [('5411, "Grocery"', 1, 0.5, True), ("Żabka \U0001f438\n", None, None, False), (None, -(2**31), 1e-9, None)]
SCHEMA = "text string, place int, share double, known boolean"


@pytest.mark.parametrize("in_the_plan", [0, 10_000])
def test_values_come_back_as_they_were_given(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, in_the_plan: int
) -> None:
    monkeypatch.setattr(frames, "_IN_THE_PLAN", in_the_plan)
    for rows in (ROWS, []):
        found = small_frame(spark, rows, SCHEMA)
        assert [tuple(row) for row in found.collect()] == rows
        assert found.schema.simpleString() == "struct<text:string,place:int,share:double,known:boolean>"


def test_a_settled_frame_is_computed_once_and_its_plan_ends_there(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper = Keeper()
    drawn = spark.range(8).select("id", F.rand().alias("drawn"))
    found = settled(drawn.join(drawn.groupBy("id").count(), "id"), keeper.keep)
    assert found.collect() == found.collect()
    found.join(found, "id").explain()
    assert "rand" not in capsys.readouterr().out
    keeper.release()


def test_on_a_cluster_a_settled_frame_knows_how_it_was_made(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, rows = list[DataFrame](), spark.range(1)

    def keep(frame: DataFrame) -> DataFrame:
        asked.append(frame)
        return frame

    monkeypatch.setattr(type(spark.conf), "get", lambda *_: "spark://master:7077")
    assert settled(rows, keep) is rows
    assert asked == [rows]
