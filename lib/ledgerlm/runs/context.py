"""What a stage is given to work with: the pipeline, the lake, the engines, the records of the stages before it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.engines import ray as ray_engine
from ledgerlm.engines import spark as spark_engine
from ledgerlm.errors import ConfigError
from ledgerlm.lake.lake import Lake, Transaction, Written
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import Pipeline
from ledgerlm.runs.record import Records, StageRecord

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.events.spec import DataSetSpec


class Engines:
    """Spark and Ray of a run, each started on first need and kept until the run ends."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._spark: SparkSession | None = None
        self.ray = ray_engine.RayEngine(pipeline.engine.ray)

    @property
    def spark(self) -> SparkSession:
        """The session of this run."""
        if self._spark is None:
            self._spark = spark_engine.start(self._pipeline.engine.spark, log=self._pipeline.out / "logs" / "spark.log")
        return self._spark

    def stop(self) -> None:
        """Ends what this run started."""
        self.ray.stop()
        if self._spark is not None:
            self._spark.stop()
            self._spark = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to `run` of a job.

    Attributes:
        pipeline: the checked pipeline.
        run_id: this run.
        spec: the data set spec.
        record: the record of this stage as it starts.
        records: all completion records.
        engines: Spark and Ray.
        progress: what the user sees.
    """

    pipeline: Pipeline
    run_id: str
    spec: DataSetSpec
    record: StageRecord
    records: Records
    engines: Engines
    progress: Progress = field(default_factory=Progress)

    @property
    def stage(self) -> str:
        """Name of the running stage."""
        return self.record.name

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        return self.pipeline.conf.seed

    @property
    def spark(self) -> SparkSession:
        """Spark session, started on first use."""
        return self.engines.spark

    @property
    def ray(self) -> ray_engine.RayEngine:
        """Ray; call `ctx.ray.start()` before `ray.*`."""
        return self.engines.ray

    @property
    def lake(self) -> Lake:
        """The tables of this pipeline."""
        return Lake(self.pipeline.lake_root, self.spark)

    @property
    def artefacts(self) -> Path:
        """Folder of tokenizers, backbones, heads and vocabularies."""
        return _made(self.pipeline.out / "artefacts")

    @property
    def staging(self) -> Path:
        """Working folder of this stage; what is in it survives a kill, and goes when the result would differ."""
        return _made(self.pipeline.out / "staging" / self.stage / self.record.fingerprint[:16])

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """A table, at a version or at its newest."""
        return self.lake.read(table, version)

    def exists(self, table: str) -> bool:
        """Whether the table has been written."""
        return self.lake.exists(table)

    def table_path(self, table: str) -> str:
        """Where the table lies."""
        return self.lake.path(table)

    def table_version(self, table: str) -> int:
        """Newest version of the table."""
        return self.lake.version(table)

    def write(self, table: str, frame: DataFrame, where: str | None = None) -> Written:
        """Replaces a table, or the slice `where`, in one commit that a rerun of this attempt does not repeat."""
        app_id = f"ledgerlm/{self.pipeline.name}/{self.stage}/{table}"
        transaction = Transaction(app_id=app_id, version=self.record.attempt)
        written = self.lake.write(table, frame, run_id=self.run_id, transaction=transaction, where=where)
        self.failpoint(f"after_{table}")
        return written

    def quarantine(self, frame: DataFrame) -> Written:
        """Sets rows aside: `reason`, `detail`, `source_file`, `payload`; replaces this stage's earlier ones."""
        from pyspark.sql import functions as F

        rows = frame.withColumn("stage", F.lit(self.stage)).withColumn("quarantined_at", F.current_timestamp())
        return self.write("quarantine", rows, where=f"stage = '{self.stage}'")

    def facts(self, name: str) -> Mapping[str, Any]:
        """Facts of the latest finished stage before this one with that stage name, or else that job.

        Raises:
            ConfigError: when no such stage has finished.
        """
        before = list(itertools.takewhile(lambda stage: stage.name != self.stage, self.pipeline.stages))
        named = [stage.name for stage in before if stage.name == name]
        stages = named or [stage.name for stage in before if stage.job.name == name]
        finished = [record for stage in stages if (record := self.records.load(stage)) is not None and record.done]
        if not finished:
            raise ConfigError(f"{self.pipeline.file}: stage {self.stage} needs a finished stage '{name}' before it")
        return finished[-1].facts

    def backbone(self, name: str | None) -> Path:
        """Folder of a backbone.

        Args:
            name: a finetune stage before this one, or a folder; None for the latest such stage.

        Raises:
            ConfigError: when no such stage has finished.
        """
        if name is None or name in (stage.name for stage in self.pipeline.stages):
            return Path(self.facts(name or "finetune")["backbone"]).resolve()
        return Path(name).expanduser().resolve()

    def failpoint(self, name: str) -> None:
        """Dies here as from `kill -9` when LEDGERLM_FAILPOINT names `STAGE:name`; the chaos tests' way in."""
        if os.environ.get("LEDGERLM_FAILPOINT") == f"{self.stage}:{name}":
            os.kill(os.getpid(), signal.SIGKILL)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
