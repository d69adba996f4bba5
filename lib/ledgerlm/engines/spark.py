"""The one place that makes a Spark session, or joins one: Delta always, tuning by engine profile."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseServer

from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from ledgerlm.config import load_yaml, parse, shipped
from ledgerlm.engines.jars import delta_package, packages
from ledgerlm.engines.java import java_options, use_packaged_java
from ledgerlm.engines.session import change, put_back, setting
from ledgerlm.engines.settings import SparkConf
from ledgerlm.errors import EngineError

# What results depend on: set for a run in any session.
RUNTIME = {"spark.sql.session.timeZone": "UTC", "spark.sql.ansi.enabled": "true"}
# What a session must be started with.
DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_STARTED = {
    # The driver writes every plan out for its listeners; of a long one the beginning is enough.
    "spark.sql.maxPlanStringLength": "50000",
    # A kept frame has as many partitions as its size asks for, as other results have, and not all of the shuffle's.
    "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true",
    # Else every function of a column tells the JVM its line of Python, in calls that cost more than the function.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
}
# Those that a column is made with.
_CLASSES = ("functions", "org.apache.spark.sql.functions", "PythonUtils", "PythonSQLUtils")


@dataclass(kw_only=True)
class Session:
    """A session for one run.

    Attributes:
        spark: the session, classic or Connect.
        own: whether the run started it, and so ends it.
        before: settings that a joined session had and that were changed, to be put back; None for one that was not set.
    """

    spark: SparkSession
    own: bool
    before: dict[str, str | None] = field(default_factory=dict)

    def close(self) -> None:
        """Stops a session of one's own; leaves another's as it was found."""
        if self.own:
            self.spark.stop()
        else:
            put_back(self.spark, self.before)


def open_session(settings: SparkConf, *, log: Path | None = None, schemes: Collection[str] = ()) -> Session:
    """Joins the session that a notebook or a program has, or starts one.

    A session that is there is neither tuned nor stopped: what results depend on (UTC, ANSI mode) is set for the run
    and put back.

    Args:
        settings: of the engine profile, for a session of its own.
        log: as for `start`.
        schemes: as for `start`.

    Raises:
        EngineError: Java or the Delta jars are missing, the session that is there knows no Delta, or refuses a setting.
    """
    there = _there()
    if there is None:
        return Session(spark=start(settings, log=log, schemes=schemes), own=True)
    _quiet()
    try:
        session = Session(spark=there, own=False, before=change(there, RUNTIME))
    except PySparkException as error:
        wanted = ", ".join(f"{key}={value}" for key, value in RUNTIME.items())
        raise EngineError(
            f"the Spark session that is there does not take {wanted}, which results depend on: {error}"
        ) from error
    extensions = setting(there, "spark.sql.extensions", "")
    if "Delta" not in extensions and "DATABRICKS_RUNTIME_VERSION" not in os.environ and not _knows_delta(there):
        session.close()
        raise EngineError(
            "the Spark session that is there knows no Delta; build it with "
            + " ".join(f"--conf {key}={value}" for key, value in DELTA.items())
            + f" and {delta_package()}, or stop it and let ledgerlm start one"
        )
    return session


def _there() -> SparkSession | None:
    """The session that somebody else made; None where there is none.

    Spark tells the active one to the thread that made it alone, and Databricks makes one for a task before its code.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    made = os.environ.get("DATABRICKS_RUNTIME_VERSION") or SparkContext._active_spark_context is not None
    return SparkSession.builder.getOrCreate() if made else None


def open_here() -> Session:
    """Joins the session that there is, or starts one of this machine, whose JVM prints into a file.

    Raises:
        EngineError: as `open_session`.
    """
    profile = parse(SparkConf, load_yaml(shipped("engines/laptop.yaml"))["spark"], source="engines/laptop.yaml")
    return open_session(profile, log=Path(tempfile.gettempdir()) / "ledgerlm-spark.log")


def _knows_delta(spark: SparkSession) -> bool:
    try:
        spark.sql("DESCRIBE HISTORY delta.`/nowhere/ledgerlm`").schema  # noqa: B018 (analysis alone tells)
    except PySparkException as error:
        return "DELTA" in str(error)
    return True


def start(settings: SparkConf, *, log: Path | None = None, schemes: Collection[str] = ()) -> SparkSession:
    """Starts a session.

    Args:
        settings: master (or Connect server) and Spark settings of the engine profile.
        log: file that takes what the JVM prints; left out, it goes to stderr.
        schemes: of the file systems beside this machine's own; on one machine their jars are fetched, a cluster has
            its own.

    Returns:
        A session with Delta, ANSI mode and UTC.

    Raises:
        EngineError: when Java or the Delta jars are missing.
    """
    use_packaged_java()
    local = (settings.remote or settings.master or "").startswith("local")
    if local:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(settings.app_name)
    if settings.remote:
        builder = builder.remote(settings.remote)
    elif settings.master:
        builder = builder.master(settings.master)
    conf = _text(settings.conf)
    options = {**conf, **_java_options(conf, local=local), **_STARTED, **RUNTIME, **DELTA}
    if settings.remote and not local:
        options = RUNTIME  # a server that runs already has its own
    else:
        options |= packages(conf, schemes if local else ())
    for key, value in options.items():
        builder = builder.config(key, value)
    try:
        with _stderr_to(log):
            session = builder.getOrCreate()
    except Exception as error:  # a missing JVM, port or jar reaches Python as many different types
        raise EngineError(f"cannot start Spark: {error}; run 'ledgerlm doctor' to see what is missing") from error
    if not settings.remote:
        session.sparkContext.setLogLevel("ERROR")
        _remember_classes(session)
    _quiet()
    return session


def _remember_classes(session: SparkSession) -> None:
    """PySpark asks the JVM for a class anew for every column, and a simple name is then looked for in every jar."""
    jvm = session.sparkContext._jvm
    for name in _CLASSES:
        setattr(jvm, name, getattr(jvm, name))


def _quiet() -> None:
    """Python's side of Spark prints each error with two stack traces, before anybody could say what it means."""
    from pyspark import accumulators

    # Of a JVM that was killed, the server of its counters prints a third one; each line of Spark names it otherwise.
    for server in vars(accumulators).values():
        if isinstance(server, type) and issubclass(server, BaseServer):
            server.handle_error = lambda *_: None  # type: ignore[method-assign]
    for name in ("py4j", "SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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


def _java_options(conf: Mapping[str, str], *, local: bool) -> dict[str, str]:
    """What every JVM is started with, before the profile's own options, which win."""
    driver, executor = ("spark.driver.extraJavaOptions", "spark.executor.extraJavaOptions")
    quiet = f"-Dlog4j2.configurationFile=file:{shipped('engines/log4j2.properties')}"
    return {
        driver: f"{quiet} {java_options(conf.get(driver, ''), here=local)}",
        executor: java_options(conf.get(executor, ""), here=local),
    }
