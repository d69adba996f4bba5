"""What a session of this machine fetches: Delta where it is missing, and S3's connector where a place asks for it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from ledgerlm.engines import jars
from ledgerlm.errors import EngineError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Spark's jars, with Delta among them."""
    monkeypatch.setattr(jars, "jars_folder", lambda: tmp_path)
    _, artifact, version = jars.delta_package().split(":")
    (tmp_path / f"{artifact}-{version}.jar").touch()
    (tmp_path / "hadoop-client-api-3.4.1.jar").touch()
    return tmp_path


def test_nothing_is_fetched_for_folders_and_what_spark_knows(folder: Path) -> None:
    assert jars.packages({"spark.jars.packages": "a:b:1"}) == {}
    assert jars.packages({}, {"hdfs", "file"}) == {}


def test_delta_is_fetched_where_it_is_missing(folder: Path) -> None:
    next(folder.glob("delta-spark*")).unlink()
    found = jars.packages({"spark.jars.packages": "a:b:1"})
    assert found["spark.jars.packages"] == f"a:b:1,{jars.delta_package()}"


def test_s3_needs_its_connector_without_the_bundle_of_all_services(folder: Path) -> None:
    found = jars.packages({"spark.jars.excludes": "c:d"}, {"s3a"})
    # The very Hadoop that Spark brings: another fails at the first call, far from its cause.
    assert "org.apache.hadoop:hadoop-aws:3.4.1," in found["spark.jars.packages"]
    assert {"c:d", "software.amazon.awssdk:bundle"} <= set(found["spark.jars.excludes"].split(","))


def test_a_connector_that_is_there_or_named_is_not_fetched(folder: Path) -> None:
    assert jars.packages({"spark.jars.packages": "org.apache.hadoop:hadoop-aws:3.5.1"}, {"s3a"}) == {}
    (folder / "hadoop-aws-3.5.0.jar").touch()
    assert jars.packages({}, {"s3a"}) == {}


@pytest.mark.parametrize(
    ("spark", "delta", "package"),
    [
        ("4.0.1", "4.0.1", "io.delta:delta-spark_2.13:4.0.1"),
        ("4.0.1", "4.4.0", "io.delta:delta-spark_4.0_2.13:4.4.0"),
        ("4.1.1", "4.3.1", "io.delta:delta-spark_4.1_2.13:4.3.1"),
        ("4.2.0", "4.4.0", "io.delta:delta-spark_4.2_2.13:4.4.0"),
        # Without the package, as on a cluster: the release that ledgerlm was run with.
        ("4.0.0", None, "io.delta:delta-spark_2.13:4.0.1"),
        ("4.2.0", None, "io.delta:delta-spark_4.2_2.13:4.4.0"),
    ],
)
def test_the_jar_is_named_after_spark_and_delta(
    spark: str, delta: str | None, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(spark, delta, monkeypatch)
    assert jars.delta_package() == package


def test_an_unknown_spark_without_delta_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed("5.0.0", None, monkeypatch)
    with pytest.raises(EngineError, match=r"no Delta is known for Spark 5\.0\.0"):
        jars.delta_package()


def installed(spark: str, delta: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets versions of Spark and Delta be installed; of Delta None."""

    def version(_: str) -> str:
        if delta is None:
            raise importlib.metadata.PackageNotFoundError
        return delta

    monkeypatch.setattr("pyspark.__version__", spark)
    monkeypatch.setattr(importlib.metadata, "version", version)
