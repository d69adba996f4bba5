"""An archive of the Java classes that a session loads, read at its start in place of hundreds of jars.

It is made once, in set-up, for the Java and the jars that are there. A session uses it where it fits and starts without
it where it does not: Java compares the archive with itself and with the class path, and what it has to say is turned
off.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ledgerlm.engines.jars import jars_folder

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_QUIET = ("-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off")
_TIMEOUT = 1200  # seconds; two busy cores need some minutes


def place(home: Path | None) -> Path | None:
    """Where the archive for a Java and the jars beside Spark lies, or would lie; None without a Java.

    Args:
        home: home of the Java.
    """
    if home is None:
        return None
    release = home / "release"
    known = release.read_text(encoding="utf-8", errors="replace") if release.exists() else str(home)
    jars = (f"{jar.name} {jar.stat().st_size} {jar.stat().st_mtime_ns}" for jar in jars_folder().glob("*.jar"))
    digest = hashlib.sha256("\n".join([known, *sorted(jars)]).encode()).hexdigest()
    return jars_folder().parent / "archive" / f"{digest[:16]}.jsa"


def options(home: Path | None) -> list[str]:
    """What a JVM is started with to use the archive; nothing where there is none."""
    found = place(home)
    return [f'"-XX:SharedArchiveFile={found}"', *_QUIET] if found is not None and found.exists() else []


def make(home: Path | None) -> Path | None:
    """Makes the archive, in some fifty CPU seconds, and takes away what other Javas, jars or attempts left.

    Returns:
        Where it lies; None when it was there, or cannot be made: then sessions start without it.
    """
    wanted = place(home)
    if wanted is None or wanted.exists():
        return None
    command = [sys.executable, "-m", "ledgerlm.engines.archive"]
    with tempfile.TemporaryDirectory() as work:
        try:
            wanted.parent.mkdir(exist_ok=True)
            for other in wanted.parent.iterdir():
                other.unlink()
            made = wanted.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, str(made), work], cwd=work, capture_output=True, check=True, timeout=_TIMEOUT)
            made.rename(wanted)
        except (OSError, subprocess.SubprocessError):  # nothing may be written there, or this Java makes no archives
            return None
    return wanted


def _record(archive: str, work: str) -> None:
    """Runs a session that does a little of everything, and has its JVM write at its end the classes that it loaded."""
    from pyspark import SparkContext

    from ledgerlm.config import load_yaml, shipped
    from ledgerlm.engines.settings import SparkConf
    from ledgerlm.engines.spark import start

    profile = load_yaml(shipped("engines/laptop.yaml"))["spark"]
    asked = {"spark.driver.extraJavaOptions": f'"-XX:ArchiveClassesAtExit={archive}"', "spark.sql.warehouse.dir": work}
    spark = start(SparkConf(**{**profile, "conf": profile["conf"] | asked}))
    exercise(spark, Path(work))
    spark.stop()
    # The JVM outlives its session and this process, unless it is told that nobody will speak to it again.
    gateway = SparkContext._gateway
    assert gateway is not None
    gateway.proc.stdin.close()
    gateway.proc.wait(_TIMEOUT)


def exercise(spark: SparkSession, work: Path) -> None:
    """What the archive knows: text read, judged, ranked, joined, kept; a Delta table made, replaced and read."""
    from pyspark.sql import functions as F

    (work / "events.csv").write_text("".join(f"{n},c{n % 3},2024-01-{n + 1:02d},shop {n}\n" for n in range(12)))
    rows = _judged(spark, work / "events.csv").persist()
    rows.count()
    table = (work / "table").as_uri()
    checks = {"delta.constraints.client_not_null": "`client` IS NOT NULL", "delta.enableDeletionVectors": "false"}
    writer = rows.write.format("delta").mode("overwrite").option("userMetadata", "{}")
    writer.options(**checks).save(table)
    known = spark.createDataFrame([("c0", "first"), ("c1", "second")], "client string, name string")
    for turn in range(3):
        there = spark.read.format("delta").option("versionAsOf", turn).load(table)
        there.join(F.broadcast(known), "client", "left").groupBy("client").agg(*_sums()).collect()
        there.where("client = 'c1'").orderBy("time").first()
        there.union(there).groupBy("client").count().join(known.hint("shuffle_hash"), "client").count()
        writer.option("replaceWhere", "client IN ('c0', 'c1', 'c2')").save(table)
    spark.read.format("delta").load(table).count()
    rows.unpersist()


def _judged(spark: SparkSession, file: Path) -> DataFrame:
    from pyspark.sql import Observation, Window
    from pyspark.sql import functions as F

    lines = spark.read.text(str(file)).where(F.trim("value") != "").withColumn("file", F.col("_metadata.file_path"))
    parsed = lines.withColumn("row", F.from_csv("value", F.lit("id string, client string, day string, text string")))
    typed = parsed.select(
        "row.id",
        "row.client",
        F.try_to_timestamp("row.day", F.lit("yyyy-MM-dd")).alias("time"),
        F.lower(F.regexp_replace("row.text", r"\s+", " ")).alias("text"),
        F.col("row.id").try_cast("decimal(18,4)").alias("amount"),
        F.sha2("value", 256).alias("hash"),
        "file",
    )
    seen = typed.observe(
        Observation(), F.count(F.lit(1)).alias("rows"), F.count_if(F.col("time").isNull()).alias("bad")
    )
    order = Window.partitionBy("client").orderBy("time", "id")
    return seen.repartition("client").withColumn("place", F.row_number().over(order))


def _sums() -> list[Column]:
    from pyspark.sql import functions as F

    return [
        F.sum("amount").alias("sum"),
        F.percentile_approx("place", 0.5).alias("middle"),
        F.array_join(F.sort_array(F.collect_list(F.struct("place", "text")).getField("text")), "\n").alias("texts"),
        F.max("time").alias("last"),
        F.count_distinct("hash").alias("hashes"),
    ]


if __name__ == "__main__":
    _record(*sys.argv[1:])
