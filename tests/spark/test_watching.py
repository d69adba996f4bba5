"""Spark's jobs are named as the pipeline names its stages, and tell how far they are while they run."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from rich.console import Console

from ledgerlm import progress as module
from ledgerlm.engines.watching import described, watched
from ledgerlm.progress import Progress
from ledgerlm.runs import runner
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from tests.small_lake import write_bank


def titles(spark: SparkSession) -> list[str]:
    """Descriptions of the queries that Spark remembers, as its own page shows them; oldest first."""
    store = spark._jsparkSession.sharedState().statusStore()  # type: ignore[attr-defined]
    found = store.executionsList()
    return [found.apply(place).description() for place in range(found.size())]


def test_a_description_is_within_the_one_around_it_and_is_put_back(spark: SparkSession) -> None:
    spark.sparkContext.setJobDescription("a cell of a notebook")
    try:
        with described(spark, "bank 1/3 ingest"), described(spark, "write events"), described(spark, "write events"):
            spark.range(3).collect()
        assert titles(spark)[-1] == "a cell of a notebook: bank 1/3 ingest: write events"
        assert spark.sparkContext.getLocalProperty("spark.job.description") == "a cell of a notebook"
    finally:
        spark.sparkContext.setLocalProperty("spark.job.description", None)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), described(spark, "what fails"):
        raise ZeroDivisionError
    assert spark.sparkContext.getLocalProperty("spark.job.description") is None


def test_what_runs_tells_how_many_of_its_tasks_are_done(spark: SparkSession) -> None:
    def slowly(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            time.sleep(1.2)
            yield batch

    told: list[tuple[int, int]] = []
    with watched(spark, lambda done, total: told.append((done, total))):
        spark.range(0, 6, 1, 6).mapInPandas(slowly, "id long").collect()
    assert told and {total for _, total in told} == {6}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 0 < told[-1][0] < 6
    seen = len(told)
    time.sleep(1.5)
    assert len(told) == seen, "nobody looks any more"


def test_stages_of_a_pipeline_are_named_and_told_of(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_EVERY", 0.5)
    monkeypatch.setattr(runner, "_LONG", 0.0)  # a warm JVM has done in two seconds
    write_bank(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(f"pipeline: bank\nout: {tmp_path}/out\ndata: {tmp_path}/bank.yaml\nstages: {{ingest: {{}}}}\n")
    progress = Progress(Console(file=io.StringIO(), width=200))
    Runner(load_pipeline(str(file)), progress).run()
    written = {title for title in titles(spark) if title.startswith("bank 1/1 ingest: write ")}
    assert len(written) > 1, "Spark remembers the newest twenty queries"
    Runner(load_pipeline(str(file)), progress).run(fresh=True)
    shown = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/1 ingest  spark, " in shown and " s last time ..." in shown
    assert "    ingest, " in shown
