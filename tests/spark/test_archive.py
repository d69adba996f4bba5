"""The work that the class archive is made from."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import SparkSession

from ledgerlm.engines.archive import exercise


def test_the_exercise_goes_from_text_to_commits(spark: SparkSession, tmp_path: Path) -> None:
    exercise(spark, tmp_path)
    log = sorted((tmp_path / "table" / "_delta_log").glob("*.json"))
    assert len(log) == 4, "made once, replaced in part three times"
    assert spark.read.format("delta").load(str(tmp_path / "table")).count() == 12
