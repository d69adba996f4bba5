"""What a session of this machine fetches: Delta where it is missing, and S3's connector where a place asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledgerlm.engines import jars


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Spark's jars, with Delta among them."""
    monkeypatch.setattr(jars, "jars_folder", lambda: tmp_path)
    _, artifact, version = jars.DELTA_PACKAGE.split(":")
    (tmp_path / f"{artifact}-{version}.jar").touch()
    return tmp_path


def test_nothing_is_fetched_for_folders_and_what_spark_knows(folder: Path) -> None:
    assert jars.packages({"spark.jars.packages": "a:b:1"}) == {}
    assert jars.packages({}, {"hdfs", "file"}) == {}


def test_delta_is_fetched_where_it_is_missing(folder: Path) -> None:
    next(folder.iterdir()).unlink()
    found = jars.packages({"spark.jars.packages": "a:b:1"})
    assert found["spark.jars.packages"] == f"a:b:1,{jars.DELTA_PACKAGE}"


def test_s3_needs_its_connector_without_the_bundle_of_all_services(folder: Path) -> None:
    found = jars.packages({"spark.jars.excludes": "c:d"}, {"s3a"})
    assert "org.apache.hadoop:hadoop-aws:" in found["spark.jars.packages"]
    assert {"c:d", "software.amazon.awssdk:bundle"} <= set(found["spark.jars.excludes"].split(","))


def test_a_connector_that_is_there_or_named_is_not_fetched(folder: Path) -> None:
    assert jars.packages({"spark.jars.packages": "org.apache.hadoop:hadoop-aws:3.5.1"}, {"s3a"}) == {}
    (folder / "hadoop-aws-3.5.0.jar").touch()
    assert jars.packages({}, {"s3a"}) == {}


def test_the_connector_is_that_of_sparks_own_hadoop() -> None:
    """Another version of it fails at the first call, far from its cause."""
    (client,) = jars.jars_folder().glob("hadoop-client-api-*.jar")
    version = client.stem.rpartition("-")[2]
    assert f"org.apache.hadoop:hadoop-aws:{version}" in jars._S3_PACKAGES
