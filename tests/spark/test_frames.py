"""Small frames that a plan carries itself."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from ledgerlm.engines import frames
from ledgerlm.engines.frames import small_frame

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
