"""Fixtures that several trees share: one Spark session and one Ray for a whole test run."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.cpu_meter import CpuMeter

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from xdist.scheduler import LoadScopeScheduling


# Before any engine or numeric library starts its threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Ray's and Spark's workers are other machines to a test that sets LEDGERLM_CACHE for its own process. `local://` is for
# fsspec a file system like any other; here it makes folders by itself, as object stores do.
if "LEDGERLM_CACHE" not in os.environ:
    os.environ["LEDGERLM_CACHE"] = tempfile.mkdtemp(prefix="ledgerlm-cache-")
    atexit.register(shutil.rmtree, os.environ["LEDGERLM_CACHE"], ignore_errors=True)
os.environ.setdefault("FSSPEC_LOCAL_AUTO_MKDIR", "true")

REPOSITORY = Path(__file__).parent.parent


_meter = pytest.StashKey[CpuMeter]()


def pytest_configure(config: pytest.Config) -> None:
    """Begins to count CPU seconds, in the process that the others report to."""
    if not hasattr(config, "workerinput"):
        config.stash[_meter] = CpuMeter()
        config.stash[_meter].start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tells the CPU seconds of the session."""
    if (meter := config.stash.get(_meter, None)) is not None:
        terminalreporter.write_line(f"{meter.stop():,.0f} CPU seconds, with all processes that the tests started")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working copy of the URL `local://TMP/bucket/out`, which Ray's and Spark's workers do not see."""
    from ledgerlm.files import working_copy

    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "driver"))
    return working_copy(f"local://{tmp_path}/bucket/out").folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """A file goes to one process; those of tests/e2e, which share a run of the whole pipeline, to the same one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "tests/e2e" if file.startswith("tests/e2e/") else file

    return ByRun(config, log)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The laptop profile's session, on two cores; with LEDGERLM_TEST_CONNECT=1 a Spark Connect server's.

    Spark interprets expressions here and compiles none: a handful of rows never pays for the compiler, which took a
    third of the CPU seconds. Commands that tests start (tests/e2e) compile as a user's do, and with
    LEDGERLM_TEST_CODEGEN=1 this session does.
    """
    from ledgerlm.config import load_yaml, shipped
    from ledgerlm.engines.settings import SparkConf
    from ledgerlm.engines.spark import start

    connect = os.environ.get("LEDGERLM_TEST_CONNECT") == "1"
    profile = load_yaml(shipped("engines/connect.yaml" if connect else "engines/laptop.yaml"))["spark"]
    conf = profile["conf"] | {
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        # Hundreds of tests in one session leave more plans behind than a run does.
        "spark.driver.memory": "4g",
        # Every plan is written out for a page that nobody opens here; long conditions of columns are a tenth of that.
        "spark.sql.debug.maxToStringFields": "0",
    }
    if os.environ.get("LEDGERLM_TEST_CODEGEN") != "1":
        conf |= {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    where = {"remote": "local[2]"} if connect else {"master": "local[2]"}
    session = start(SparkConf(conf=conf, **where), log=tmp_path_factory.mktemp("logs") / "spark.log")
    yield session
    session.stop()


# What Databricks names as the settings that its serverless compute takes.
_SERVERLESS = {
    "spark.databricks.execution.timeout",
    "spark.sql.ansi.enabled",
    "spark.sql.legacy.timeParserPolicy",
    "spark.sql.session.timeZone",
    "spark.sql.shuffle.partitions",
}


@pytest.fixture
def serverless(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> SparkSession:
    """The session, as strict as serverless compute: it tells and takes few settings, in spite of a default, and keeps
    no frame."""
    from pyspark.errors import AnalysisException

    def strict(asked: Callable[..., Any]) -> Callable[..., Any]:
        def refused(conf: object, key: str, *rest: Any) -> Any:
            asks = str(sys._getframe(1).f_globals["__name__"])  # PySpark asks for settings of its own
            if key not in _SERVERLESS and not asks.startswith("pyspark."):
                raise AnalysisException(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available.")
            return asked(conf, key, *rest)

        return refused

    def unkept(*_: object) -> NoReturn:
        raise AnalysisException("[NOT_SUPPORTED_WITH_SERVERLESS] PERSIST TABLE is not supported on serverless compute.")

    settings = type(spark.conf)
    for name in ("get", "set", "unset"):
        monkeypatch.setattr(settings, name, strict(getattr(settings, name)))
    for name in ("persist", "cache"):
        monkeypatch.setattr(type(spark.range(1)), name, unkept)
    return spark


@pytest.fixture(scope="module", autouse=True)
def nothing_is_kept_beyond_a_module() -> Iterator[None]:
    """What a module's tests let Spark cache goes with it.

    Each new plan is held against all that are cached, and those of a whole run would fill the heap of the one JVM.
    """
    yield
    if "pyspark.sql" not in sys.modules:
        return
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        gc.collect()  # frames that only a cycle holds
        session.catalog.clearCache()
