"""`make scale EVENTS=3_000_000`: a simulated bank of a size, from files to published scores, and a night on top of it.

Each part is a process of its own, as a user would start it: the simulator writes files; `ledgerlm run` takes them in,
tells windows, aggregates, fits a head on a sample of the clients and scores everybody; a share of the clients is
embedded by a small Llama; then files with about one per cent of new events come, and `ledgerlm rescore` follows.
What grows with the events is told per event, so that sizes can be held against each other: build/scale/*.json.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ledgerlm.config import load_yaml, shipped
from ledgerlm.runs.record import Records, now, versions, write_json
from tests.cpu_meter import CpuMeter

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

OUT = Path("build/scale").absolute()
MONTHS, PURCHASES = 12, 192  # of a client; with payments and contacts 300 events
EVENTS_OF_ONE = 300
LABELLED = 2_000  # clients from whom the head learns, whatever the size
NIGHT_DAYS = 4  # in which about one per cent of a year's events happen
FIRST = dt.date(2025, 1, 1)  # the simulated bank's as_of
PER_EVENT = ("ingest", "serialize", "aggregate", "score", "publish")
_STAGE, _ENDED = re.compile(r"^\d+/\d+ (\w+)  (.*)"), re.compile(r" in, .* out")
_SHARES = 10_000


@dataclass
class Use:
    """What a part of the work used.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of all its processes.
        memory: most bytes that these held at a time.
        scratch: most bytes that lay in Spark's local folders at a time: shuffles, spill, frames that are kept.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: int = 0
    scratch: int = 0


class Watch:
    """Looks at the processes of a command while it works, and tells its stages apart by what it says.

    Args:
        local: Spark's local folder.
    """

    def __init__(self, local: Path) -> None:
        self._local, self._meter, self._ended = local, CpuMeter(every=0.5), threading.Event()
        self._use, self.stages = Use(), dict[str, Use]()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def run(self, command: list[str], log: Path) -> tuple[Use, list[str]]:
        """Runs a command; what it used, and the lines that it said.

        Raises:
            RuntimeError: it failed.
        """
        whole, said = self._use, list[str]()
        self._meter.start()
        self._thread.start()
        began, at_start = time.monotonic(), time.process_time()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            self._heard(line)
        code = process.wait()
        self._ended.set()
        self._thread.join()
        whole.seconds, whole.cpu_seconds = time.monotonic() - began, self._meter.stop() - at_start
        for one in self.stages.values():
            whole.memory, whole.scratch = max(whole.memory, one.memory), max(whole.scratch, one.scratch)
        log.write_text("".join(said), encoding="utf-8")
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}; see {log}\n{''.join(said[-20:])}")
        return whole, said

    def _heard(self, line: str) -> None:
        found = _STAGE.match(line)
        if found and found[2].rstrip().endswith("..."):
            self._use = self.stages[found[1]] = Use(seconds=time.monotonic(), cpu_seconds=self._meter.so_far)
        elif found and _ENDED.search(found[2]) and found[1] in self.stages:
            one = self.stages[found[1]]
            one.seconds = time.monotonic() - one.seconds
            one.cpu_seconds = self._meter.so_far - one.cpu_seconds

    def _look_on(self) -> None:
        while not self._ended.wait(0.5):
            self._use.memory = max(self._use.memory, self._meter.memory)
            self._use.scratch = max(self._use.scratch, size(self._local))


@dataclass(kw_only=True)
class Work:
    """One size.

    Attributes:
        events: about how many.
        share: of the clients that are embedded.
    """

    events: int
    share: float
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = OUT / f"work-{self.events}"

    @property
    def clients(self) -> int:
        """How many."""
        return max(50, round(self.events / EVENTS_OF_ONE))

    def place(self, name: str) -> Path:
        """A folder of the work."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def spark(self) -> dict[str, str | bool]:
        """Settings by which is seen what Spark does."""
        return {
            "spark.local.dir": str(self.place("local")),
            "spark.eventLog.enabled": True,
            "spark.eventLog.dir": self.place("log").as_uri(),
            "spark.eventLog.compress": False,
            "spark.eventLog.rolling.enabled": False,
        }

    def pipeline(self) -> Path:
        """The nightly pipeline without a backbone, whose head reads aggregates."""
        bank = self.place("bank")
        content = load_yaml(shipped("nightly.yaml"), [f"source.path={bank}", f"out={self.place('out')}"])
        for stage in ("finetune", "embed"):
            del content["stages"][stage]
        content["stages"]["fit"] |= {"representation": "agg", "sources": [{"table": "features"}], "tasks": ["churn"]}
        # The simulated bank is taken as it is: most of its clients have no label.
        content["stages"]["publish"] = {"most_unscored": None, "most_shift": None}
        content["spark"] = self.spark
        file = self.folder / "nightly.yaml"
        file.write_text(json.dumps(content))
        return file

    def deliver(self, name: str) -> int:
        """Moves what was written to where it is taken in; bytes."""
        to, moved = self.place("bank") / "deliveries", 0
        to.mkdir(exist_ok=True)
        for place, file in enumerate(sorted((self.folder / name).glob("part-*.csv"))):
            moved += file.stat().st_size
            file.rename(to / f"{name}-{place:05d}.csv")
        return moved


def main(arguments: list[str]) -> int:
    """Runs one size, tells it, and holds all sizes that were run against each other."""
    parser = argparse.ArgumentParser(description="From files to scores at a size, and a night on top.")
    parser.add_argument("--events", type=lambda text: int(text.replace("_", "")), default=300_000)
    parser.add_argument("--share", type=float, default=0.02, help="of the clients that are embedded")
    parser.add_argument("--keep", action="store_true", help="leave files and lake where they are")
    parser.add_argument("--part", choices=["files", "embed"], help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    work = Work(events=given.events, share=given.share)
    if given.part == "files":
        return write_files(work)
    if given.part == "embed":
        return embed_share(work, given.name)
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    found = measured(work)
    write_json(OUT / f"scale-{work.events}.json", found)
    if not given.keep:
        shutil.rmtree(work.folder)
    console = Console(highlight=False)
    console.print(_table(found))
    for line in _lines(found):
        console.print(line)
    console.print(_sizes())
    console.print(str(OUT / f"scale-{work.events}.json"))
    return 0


def measured(work: Work) -> dict[str, Any]:
    """All parts, one after the other.

    Returns:
        JSON values: `events`, `clients`, `rows` (part, stage, `Use`), `spilled` and `shuffled` bytes of each command,
        `disk` bytes, `embedded`, `per_event` microseconds of the stages that grow with the events.
    """
    began, load = now(), os.getloadavg()[0]
    own = [sys.executable, "-u", "-m", "tests.benchmarks.scale", "--events", str(work.events)]
    ledgerlm = [sys.executable, "-u", "-m", "ledgerlm.jobs.cli"]
    night = (FIRST + dt.timedelta(days=NIGHT_DAYS)).isoformat()
    rows, spilled, told = list[dict[str, Any]](), dict[str, Any](), dict[str, Any]()

    def part(name: str, command: list[str]) -> list[str]:
        watch = Watch(work.place("local"))
        use, said = watch.run(command, work.folder / f"{name}.log")
        seen = {"all": use} | watch.stages
        rows.extend({"part": name, "stage": stage, **vars(one)} for stage, one in seen.items())
        spilled[name] = spills(work.place("log"))
        return said

    part("files", [*own, "--part", "files"])
    disk = {"files": work.deliver("history")}
    pipeline = work.pipeline()
    part("study", [*ledgerlm, "run", str(pipeline)])
    records = Records(work.place("out"))
    taken = records.load("ingest")
    assert taken is not None
    told["study"] = _last_json(part("embed", [*own, "--share", str(work.share), "--part", "embed", "--name", "study"]))
    disk |= {"lake": size(work.place("out") / "lake")}
    work.deliver("night")
    part("night", [*ledgerlm, "rescore", str(pipeline), "--as-of", night])
    new = records.load("ingest")
    assert new is not None
    command = [*own, "--share", str(work.share), "--part", "embed", "--name", "night"]
    told["night"] = _last_json(part("embed night", command))
    disk |= {"lake after the night": size(work.place("out") / "lake")}
    seconds = {row["stage"]: row["seconds"] for row in rows if row["part"] == "study"}
    return {
        "at": began,
        "load": load,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "events": taken.rows_out,
        "clients": work.clients,
        "new_events": new.rows_out,
        "share": work.share,
        "rows": rows,
        "commands": spilled,
        "disk": disk,
        "embedded": told,
        "per_event": {stage: seconds[stage] / taken.rows_out * 1e6 for stage in PER_EVENT},
    }


def size(folder: Path) -> int:
    """Bytes of the files below a folder, some of which may go meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.stat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH116, PTH118 (millions of files)
            except OSError:
                continue
    return found


def spills(log: Path) -> dict[str, int]:
    """What the tasks of a session spilled and shuffled, in bytes, from its event log, which goes."""
    found = {"tasks": 0, "spilled to disk": 0, "shuffled": 0}
    for file in [one for one in log.rglob("*") if one.is_file()]:
        for metrics in _task_metrics(file):
            found["tasks"] += 1
            found["spilled to disk"] += metrics["Disk Bytes Spilled"]
            found["shuffled"] += metrics["Shuffle Write Metrics"]["Shuffle Bytes Written"]
        file.unlink()
    return found


def _task_metrics(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if '"Event":"SparkListenerTaskEnd"' in line:
                metrics = json.loads(line).get("Task Metrics")
                if metrics:
                    yield metrics


def _last_json(said: list[str]) -> Any:
    return json.loads(next(line for line in reversed(said) if line.startswith("{")))


# The parts that are no command of ledgerlm, each in a process of its own.


def _session(work: Work) -> SparkSession:
    from ledgerlm.engines.settings import SparkConf
    from ledgerlm.engines.spark import start

    profile = load_yaml(shipped("engines/laptop.yaml"))["spark"]
    profile["conf"] |= work.spark
    return start(SparkConf(**profile), log=work.folder / "spark.log")


def write_files(work: Work) -> int:
    """A year of history, the first days after it, and labels of some clients."""
    from pyspark.sql import functions as F

    from ledgerlm.events.simulator.bank import SimulateConf, simulate_banks
    from ledgerlm.events.simulator.clients import SimulatorConf
    from ledgerlm.events.spec import load_spec

    spark = _session(work)
    bank = SimulatorConf(clients=work.clients, purchases=PURCHASES, months=MONTHS, future_months=1)
    spec = load_spec("datasets/simulated_bank.yaml")
    made = simulate_banks(spark, spec, SimulateConf(banks=(bank,)), seed=42)
    events = made.tables["events"].frame.drop("source_file").withColumn("op", F.lit(""))
    first, last = (F.lit((FIRST + dt.timedelta(days=days)).isoformat()).cast("timestamp") for days in (0, NIGHT_DAYS))
    time = F.col("event_time")
    _csv(events.where(time < first), work.folder / "history")
    _csv(events.where((time >= first) & (time < last)), work.folder / "night")
    drawn = F.pmod(F.xxhash64("client_id", F.lit(5)), F.lit(work.clients)) < LABELLED
    labels = made.tables["labels"].frame.where(drawn).where("task IN ('churn', 'default')")
    wide = labels.groupBy("client_id").pivot("task", ["churn", "default"]).agg(F.first(F.col("label").cast("int")))
    _csv(wide.coalesce(1), work.folder / "labels")
    next((work.folder / "labels").glob("part-*.csv")).rename(work.place("bank") / "labels.csv")
    spark.stop()
    return 0


def _csv(rows: DataFrame, folder: Path) -> None:
    rows.write.mode("overwrite").csv(str(folder), header=True, nullValue="")


def embed_share(work: Work, name: str) -> int:
    """States and vectors of a share of the clients; after the night of those to whom events came."""
    from pyspark.sql import functions as F

    from ledgerlm.backbone.definition import EmbeddingDefinition
    from ledgerlm.backbone.model import backbone_id
    from ledgerlm.backbone.states import fold, state_rows
    from ledgerlm.engines.frames import tasks_for
    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.publications import published
    from tests.benchmarks.bench_backtests import backbone

    spark = _session(work)
    lake = Lake(str(work.place("out") / "lake"), spark)
    seen, key = published(lake), ["client_id", "text_hash"]
    drawn = F.pmod(F.xxhash64("client_id", F.lit(7)), F.lit(_SHARES)) < round(work.share * _SHARES)
    told = seen.read(lake, "windows").where("cut_at IS NULL").where(drawn)
    if name == "night":
        changes = seen.read(lake, "changes")
        newest = changes.groupBy().agg(F.max("batch").alias("batch"))
        told = told.join(changes.join(newest, "batch").select("client_id"), "client_id", how="left_semi")
    definition_file = work.folder / "definition.json"
    if not definition_file.exists():
        _, definition = backbone(told, work.folder / "backbone")
        definition_file.write_text(definition.model_dump_json())
    definition = EmbeddingDefinition.model_validate_json(definition_file.read_text())
    folder, states = work.folder / "backbone", work.folder / "states"
    identity = backbone_id(folder)
    texts = told.select("client_id", "bucket", "text_hash", "text").dropDuplicates(key)
    if states.exists():
        texts = texts.join(spark.read.parquet(str(states)).select(*key), key, how="left_anti")
    texts = texts.persist()
    count, began = texts.count(), time.perf_counter()
    made = state_rows(
        texts.repartition(tasks_for(count, 256), *key), folder=str(folder), backbone_id=identity, definition=definition
    )
    made.write.parquet(str(work.folder / f"states-{name}"))
    read = spark.read.parquet(str(work.folder / f"states-{name}"))
    reading = time.perf_counter() - began
    (tokens,) = read.agg(F.coalesce(F.sum("token_count"), F.lit(0)).alias("tokens")).collect()
    read.write.mode("append").parquet(str(states))
    asked = told.select("client_id").distinct().withColumn("as_of", F.lit(seen.as_of.isoformat()).cast("timestamp"))
    began = time.perf_counter()
    vectors = fold(told, spark.read.parquet(str(states)), asked, definition=definition, backbone_id=identity)
    vectors.write.mode("overwrite").format("noop").save()
    result = {
        "clients": asked.count(),
        "texts": count,
        "tokens": tokens["tokens"],
        "model_seconds": reading,
        "fold_seconds": time.perf_counter() - began,
    }
    spark.stop()
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


# For people


def _table(found: dict[str, Any]) -> Table:
    table = Table(
        box=None,
        title=f"{found['events']:,} events of {found['clients']:,} clients, then {found['new_events']:,} new ones",
    )
    for heading in ("part", "stage", "wall s", "CPU s", "µs an event", "memory GB", "scratch GB"):
        table.add_column(heading, justify="left" if heading in ("part", "stage") else "right")
    for row in found["rows"]:
        events = found["new_events"] if "night" in row["part"] else found["events"]
        table.add_row(
            row["part"],
            row["stage"],
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['seconds'] / events * 1e6:.1f}",
            f"{row['memory'] / 1e9:.2f}",
            f"{row['scratch'] / 1e9:.3f}",
        )
    return table


def _lines(found: dict[str, Any]) -> list[str]:
    """What is not of a stage alone."""
    lines = [
        f"{name}: {one['tasks']:,} tasks, {one['spilled to disk'] / 1e6:,.1f} MB spilled, "
        f"{one['shuffled'] / 1e6:,.1f} MB shuffled"
        for name, one in found["commands"].items()
    ]
    lines.append("disk: " + ", ".join(f"{what} {value / 1e6:,.0f} MB" for what, value in found["disk"].items()))
    for name, one in found["embedded"].items():
        lines.append(f"embedded, {name}: " + ", ".join(f"{what} {value:,.0f}" for what, value in one.items()))
    return lines


def _sizes() -> Table:
    """Microseconds an event at all sizes that were run."""
    table = Table(box=None, title="µs an event, by the clock, and most memory of the study")
    for heading in ("events", *PER_EVENT, "together", "memory GB"):
        table.add_column(heading, justify="right")
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in OUT.glob("scale-*.json")]
    for one in sorted(runs, key=lambda run: run["events"]):
        took = [one["per_event"][stage] for stage in PER_EVENT]
        (memory,) = [row["memory"] for row in one["rows"] if (row["part"], row["stage"]) == ("study", "all")]
        told = (f"{value:.1f}" for value in (*took, sum(took)))
        table.add_row(f"{one['events']:,}", *told, f"{memory / 1e9:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
