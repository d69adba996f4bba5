"""The Delta jars: placed once beside Spark's own, so that sessions, executors and `spark-submit` find them offline."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from ledgerlm.errors import EngineError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Line of Spark -> the release of Delta that ledgerlm was run with on it.
_DELTA = {"4.0": "4.0.1", "4.1": "4.3.1", "4.2": "4.4.0"}
# For S3, of Amazon's SDK the four parts that the connector uses (17 MB with what they need); the connector itself asks
# for a bundle of all services, 600 MB.
_SDK = "2.35.4"
_SDK_PARTS = ("s3", "s3-transfer-manager", "sts", "apache-client")
# Beside the bundle what Spark brings itself, some of it newer.
_NETTY = "buffer codec codec-http codec-http2 common handler resolver transport transport-classes-epoll"
_S3_EXCLUDES = (
    "software.amazon.awssdk:bundle",
    "commons-codec:commons-codec",
    "commons-logging:commons-logging",
    "org.slf4j:slf4j-api",
    *(f"io.netty:netty-{part}" for part in (*_NETTY.split(), "transport-native-unix-common")),
)


def jars_folder() -> Path:
    """Folder of the jars of the pip-installed Spark."""
    import pyspark

    return Path(pyspark.__file__).parent / "jars"


def delta_package() -> str:
    """Coordinate of the Delta jar for the Spark that is here: of the release of `delta-spark` that is installed.

    Where none is, of the one that ledgerlm was run with on this line of Spark.

    Raises:
        EngineError: no release is installed, and none is known for this Spark.
    """
    import pyspark

    line = ".".join(pyspark.__version__.split(".")[:2])
    try:
        version: str | None = importlib.metadata.version("delta-spark")
    except importlib.metadata.PackageNotFoundError:
        version = _DELTA.get(line)
    if version is None:
        raise EngineError(
            f"no Delta is known for Spark {pyspark.__version__}: ledgerlm runs on Spark {', '.join(_DELTA)}; "
            "install one of these, or the release of delta-spark that goes with this Spark"
        )
    # From its release 4.1 on Delta is built for each line of Spark, and says so in the name.
    of_line = "" if version.startswith("4.0.") else f"_{line}"
    return f"io.delta:delta-spark{of_line}_2.13:{version}"


def delta_installed() -> bool:
    """Whether the Delta jar lies beside Spark's own jars."""
    _, artifact, version = delta_package().split(":")
    return any(jars_folder().glob(f"*{artifact}-{version}.jar"))


def packages(conf: Mapping[str, str], schemes: Collection[str] = ()) -> dict[str, str]:
    """Settings by which a session of this machine's own Spark fetches what it lacks.

    Args:
        conf: the session's other settings; packages that they name are kept.
        schemes: of the file systems that it is to read and write; `s3a` and `s3` need jars that Spark does not bring.
    """
    wanted = [] if delta_installed() else [delta_package()]
    asked, excluded = conf.get("spark.jars.packages", ""), conf.get("spark.jars.excludes", "")
    on_s3 = bool({"s3", "s3a"} & set(schemes)) and "hadoop-aws" not in asked
    if on_s3 and not any(jars_folder().glob("hadoop-aws-*.jar")):
        wanted += _s3_packages()
    if not wanted:
        return {}
    without = [excluded, *_S3_EXCLUDES] if on_s3 else [excluded]
    named = {"packages": [asked, *wanted], "excludes": without}
    found = {f"spark.jars.{key}": ",".join(filter(None, values)) for key, values in named.items() if any(values)}
    return found | ({"spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem"} if on_s3 else {})


def _s3_packages() -> list[str]:
    """The connector of the very Hadoop that Spark brings, another would fail at its first call; and the SDK."""
    hadoop = next(jars_folder().glob("hadoop-client-api-*.jar")).stem.rpartition("-")[2]
    return [f"org.apache.hadoop:hadoop-aws:{hadoop}", *(f"software.amazon.awssdk:{one}:{_SDK}" for one in _SDK_PARTS)]


def install_delta() -> list[str]:
    """Resolves Delta through Spark's package resolver and copies what Spark does not have already.

    A second copy of, say, Jackson in another version on the same class path would break Spark, so an artifact that
    Spark ships is left out whatever its version.

    Returns:
        Names of the jars copied; empty when Delta was there.

    Raises:
        EngineError: when the package cannot be resolved (no network and an empty cache), or not to itself.
    """
    if delta_installed():
        return []
    spark = _resolving_session()
    try:
        # Where the resolver put them; Java's home is not always that of the environment.
        uris = str(spark.sparkContext.getConf().get("spark.jars", "")).split(",")
    finally:
        spark.stop()
    present = {_artifact(path.name) for path in jars_folder().glob("*.jar")}
    jars = [Path(urlparse(uri).path) for uri in uris if uri]
    missing = [jar for jar in jars if _artifact(jar.name) not in present]
    for jar in missing:
        shutil.copy2(jar, jars_folder() / jar.name)
    if not delta_installed():
        raise EngineError(f"{delta_package()} resolved to {uris}, without its own jar; copy it into {jars_folder()}")
    return sorted(jar.name for jar in missing)


def _resolving_session() -> SparkSession:
    from pyspark.sql import SparkSession

    package = delta_package()
    builder = SparkSession.builder.master("local[1]").appName("ledgerlm-jars")
    options = {"spark.jars.packages": package, "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    for key, value in options.items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # the JVM's exit reaches Python as many different types
        raise EngineError(
            f"cannot resolve {package}: {error}; connect to a package repository once, or copy the Delta jars "
            f"into {jars_folder()}"
        ) from error


def _artifact(name: str) -> str:
    """`io.delta_delta-storage-4.4.0.jar` and `delta-storage-4.4.0.jar` both give `delta-storage`."""
    stem = re.sub(r"-\d[\w.\-]*\.jar$", "", name)
    return stem.split("_", 1)[1] if re.match(r"^[a-z]+(\.[a-z0-9-]+)+_", stem) else stem
