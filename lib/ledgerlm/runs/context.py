"""What a stage is given to work with: tables at pinned versions, what earlier stages left, engines, places to write."""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ledgerlm.config import HeadRef, ModelRef
from ledgerlm.engines.frames import settled
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.clock import aware, instant
from ledgerlm.events.ends import end_of_data
from ledgerlm.files import push, restore
from ledgerlm.heads.scoring import heads_of
from ledgerlm.heads.tasks import Task, declared_tasks, find_tasks
from ledgerlm.lake.differences import CHANGE, INSERT
from ledgerlm.lake.erasures import erased
from ledgerlm.lake.made import Made
from ledgerlm.lake.slices import WHOLE, Slice, predicate
from ledgerlm.progress import Progress
from ledgerlm.runs.job import StageResult
from ledgerlm.runs.record import StageRecord

if TYPE_CHECKING:
    import datetime as dt

    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.engines.ray import RayEngine
    from ledgerlm.events.files import Found
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.lake.lake import Lake, Written
    from ledgerlm.runs.engines import Engines
    from ledgerlm.runs.given import Given
    from ledgerlm.runs.hashes import Hashes
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.plan import StagePlan
    from ledgerlm.runs.tables import Tables


Asking = TypeVar("Asking", bound=AsOfConf)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to `run` of a job.

    Attributes:
        pipeline: the checked pipeline.
        plan: what this stage declared.
        run_id: this run.
        record: the record of this stage as it starts.
        tables: what the stages before it wrote, and its own writes.
        given: facts and folders of the stages before it.
        engines: Spark and Ray.
        hashes: content of files of this machine.
        night: the time as of which everybody is scored, on a night of rescoring; None in a study.
        progress: what the user sees.
    """

    pipeline: Pipeline
    plan: StagePlan
    run_id: str
    record: StageRecord
    tables: Tables
    given: Given
    engines: Engines
    hashes: Hashes
    night: dt.datetime | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def spec(self) -> DataSetSpec:
        """The data set spec."""
        return self.pipeline.spec

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
    def ray(self) -> RayEngine:
        """Ray; call `ctx.ray.start()` before `ray.*`."""
        return self.engines.ray

    # Tables

    def read(self, table: str) -> DataFrame:
        """A table as the stages before left it, at one version for the whole stage."""
        return self.tables.read(table)

    def maybe(self, table: str) -> DataFrame | None:
        """The same, or None when the table is not there."""
        return self.tables.maybe(table)

    @property
    def since(self) -> int | None:
        """The newest batch that this stage's standing rows reflect; None: it starts from nothing."""
        return self.record.since

    @cached_property
    def batch(self) -> int | None:
        """The newest batch that there is for a stage that follows batches; None where there are none."""
        from pyspark.sql import functions as F

        changes = self.maybe("changes") if self.follows_batches else None
        row = None if changes is None else changes.agg(F.max("batch").alias("batch")).first()
        return None if row is None else row["batch"]

    @property
    def follows_batches(self) -> bool:
        """Whether the stage reads which clients changed."""
        return any(one.table == "changes" for one in self.plan.reads)

    def dirty(self) -> DataFrame | None:
        """The clients whose events changed since this stage's standing rows were made.

        Returns:
            client_id, earliest: the earliest time that was touched; None where all rows are to be made.
        """
        from pyspark.sql import functions as F

        changes = None if self.since is None else self.maybe("changes")
        if changes is None or self.since is None:
            return None
        newer = changes.where(F.col("batch") > self.since)
        return newer.groupBy("client_id").agg(F.min("earliest").alias("earliest"))

    def content(self, file: Found) -> str | None:
        """Hash of a file of this machine; None of one elsewhere."""
        return self.hashes.found(file)

    def pin(self, table: str) -> int | None:
        """The version of a table that this stage sees; None when the table is not there."""
        return self.tables.pin(table)

    @property
    def lake(self) -> Lake:
        """The lake, for verbs that work on versions of tables; what they read is to be pinned first."""
        return self.tables.lake

    @property
    def erased(self) -> DataFrame | None:
        """Digests of clients who were erased; no input of a stage, since their rows are gone from what it wrote."""
        return erased(self.lake)

    def own(self, table: str) -> DataFrame:
        """The rows that this attempt has written of a table."""
        return self.tables.own(table)

    def standing(self, table: str, part: Slice) -> DataFrame | None:
        """Rows of a slice that this stage is about to replace, as earlier attempts left them; no input of the stage."""
        return self.tables.standing(table, part)

    def before(self, table: str) -> DataFrame | None:
        """A table as it was before this attempt wrote of it, even where the attempt goes on after a kill."""
        return self.tables.before(table)

    def before_slice(self, table: str, part: Slice) -> DataFrame:
        """A slice of a table as it was before this attempt wrote of it.

        Raises:
            DataError: there was no such table.
        """
        found = self.before(table)
        if found is None:
            raise DataError(f"stage {self.stage}: there was no table {table} before; run it again with --fresh")
        return found.where(predicate(part))

    def write(self, table: str, frame: DataFrame, part: Slice = WHOLE) -> Written:
        """Replaces a table, or a slice of it, in one commit that this attempt does not repeat."""
        return self.tables.write(table, frame, part)

    def quarantine(self, frame: DataFrame) -> Written:
        """Sets rows aside: `reason`, `detail`, `source_file`, `payload`; replaces this stage's earlier ones."""
        return self.write("quarantine", self._quarantined(frame), {"stage": (self.stage,)})

    def _quarantined(self, frame: DataFrame) -> DataFrame:
        from pyspark.sql import functions as F

        return frame.withColumn("stage", F.lit(self.stage)).withColumn("quarantined_at", F.current_timestamp())

    def set_aside(self, made: Made) -> int:
        """Rows that were set aside of what a verb made; what an earlier attempt set aside goes, unless it stays too."""
        from pyspark.sql import functions as F

        if made.aside_too:
            if made.aside is None:
                return 0
            rows = self._quarantined(made.aside).withColumn(CHANGE, F.lit(INSERT))
            return self.tables.apply("quarantine", settled(rows, self.keep), {"stage": (self.stage,)}).rows
        if made.aside is None:
            self._clear("quarantine", {"stage": (self.stage,)})
            return 0
        return self.quarantine(made.aside).rows

    def publish(self, made: Made) -> StageResult:
        """Writes what a verb made, checks that no row vanished, and tells what was done.

        Raises:
            DataError: when other numbers of rows were written than the verb counted, or rows vanished.
        """
        # What is set aside comes first: whoever sees a table of this stage finds what it left out.
        aside = self.set_aside(made)
        for table, part in made.none.items():
            self._clear(table, part)
        for table, rows in made.tables.items():
            write = self.tables.apply if rows.differences else self.tables.write
            write(table, rows.frame, rows.slice)
        main = made.main or next(iter(made.tables), None)
        written = self.tables.written[main].rows if main is not None else made.rows_out
        rows_out = made.rows_out if made.rows_out is not None else written or 0
        if main is not None and made.tables[main].differences:
            written = rows_out  # a row that comes may move others, which are differences as well
        rows_in = rows_out if made.rows_in is None else made.rows_in
        wanted = aside if made.quarantined is None else made.quarantined
        if (written if main is not None else rows_out) != rows_out or aside < wanted:
            raise DataError(
                f"stage {self.stage}: {rows_out:,} rows and {wanted:,} to set aside were made, but {written:,} were "
                f"written to {main} and {aside:,} set aside; were its inputs changed meanwhile? Run it again"
            )
        if self.plan.stage.job.rows == "balance" and rows_in != (rows_out + wanted + made.duplicates + made.withdrawn):
            raise DataError(
                f"stage {self.stage}: {rows_in:,} rows in, but {rows_out:,} out, {wanted:,} quarantined, "
                f"{made.duplicates:,} duplicates and {made.withdrawn:,} withdrawn; run it again"
            )
        told = {} if made.tell is None else made.tell({table: self.own(table) for table in made.tables})
        report = {"report": list(made.report)} if made.report else {}
        return StageResult(
            rows_in=rows_in,
            rows_out=rows_out,
            quarantined=wanted,
            duplicates=made.duplicates,
            withdrawn=made.withdrawn,
            artefacts=[str(one) for one in made.artefacts],
            facts={**made.facts, **told, **report},
        )

    def _clear(self, table: str, part: Slice) -> None:
        """Takes away what an earlier attempt wrote; where nothing is, nothing is written."""
        there = self.tables.standing(table, part) if self.tables.holds_own_rows(table, part) else None
        if there is not None:
            self.write(table, there.drop("run_id").limit(0), part)

    # What was asked, and what earlier stages left

    def tasks(
        self, names: Sequence[str] | None = None, *, kinds: Sequence[str] = ("binary", "multiclass", "regression")
    ) -> list[Task]:
        """Tasks of `labels`, by name; all of them when none is named.

        Raises:
            DataError: for a task without labels.
            ConfigError: for one of another kind than `kinds`.
        """
        found = find_tasks(self.read("labels"), names, declared_tasks(self.spec))
        wrong = [task for task in found if task.kind not in kinds]
        if wrong:
            listed = ", ".join(f"{task.name} is {task.kind}" for task in wrong)
            raise ConfigError(
                f"stage {self.stage}: task {listed}, but job {self.plan.stage.job.name} takes {' or '.join(kinds)}"
            )
        return found

    def task(self, name: str, *, kinds: Sequence[str] = ("binary", "multiclass")) -> Task:
        """One task of `labels`."""
        return self.tasks([name], kinds=kinds)[0]

    def end(self, as_of: dt.datetime | None) -> dt.datetime:
        """End of the histories of clients without a label: as given, the data set's, or the end of its data.

        On a night of rescoring it is that night's. A time without a zone is in the data set's. Where a split by time
        stands, the end is the instant from which it tests: tokenizers, backbones, encoders and scales learn from these
        histories.

        Raises:
            ConfigError: an `as_of` after that instant.
        """
        if self.night is not None:
            return self.night
        time, until = self.spec.time, self._tested_from()
        if as_of is not None and until is not None and instant(as_of, time.zone) > until:
            raise ConfigError(
                f"stage {self.stage}: as_of {as_of} lies after {until:%Y-%m-%d %H:%M}, from which the split by time "
                "tests, so what learns from histories would look ahead; leave as_of out, give one before, or split by "
                "hash"
            )
        end = as_of or self.spec.as_of or time.end or end_of_data(self.read("events"), time).time
        end = aware(end, time.zone)
        return end if until is None or instant(end, time.zone) <= until else until

    def _tested_from(self) -> dt.datetime | None:
        """The instant from which the latest split stage before this one tests, if it is one by time."""
        splits = self.given.planned("split")
        found = self.facts(splits[-1].stage.name).get("until") if splits else None
        return None if found is None else datetime.datetime.fromisoformat(found)

    def tonight(self, conf: Asking) -> Asking:
        """The settings, with everybody asked as of tonight on a night of rescoring."""
        return conf if self.night is None else conf.model_copy(update={"everyone": True})

    def asked(self, conf: AsOfConf) -> DataFrame:
        """Whose history is told as of when: `client_id`, `as_of`; the one rule of all jobs, see `events.asked`."""
        return asked(self.read("clients"), self.maybe("labels"), self.end(conf.as_of), self.tonight(conf))

    def facts(self, name: str) -> Mapping[str, Any]:
        """Facts of the latest finished stage before this one with that stage name, or else of that job."""
        return self.given.facts(name)

    def stages_of(self, job: str) -> list[str]:
        """Names of the stages of a job before this one."""
        return [one.stage.name for one in self.given.planned(job)]

    def heads(self, ref: HeadRef | str) -> list[str]:
        """Ids of the heads of a stage, or of the one that is named."""
        chosen = HeadRef(ref)
        return heads_of(self.facts(chosen.stage), chosen.stage, chosen.name or "")

    def head(self, ref: HeadRef | str) -> str:
        """Id of one head.

        Raises:
            ConfigError: when the stage has several and none is named.
        """
        found = self.heads(ref)
        if len(found) > 1:
            raise ConfigError(f"stage {self.stage}: '{ref}' has {len(found)} heads; name one of them: {ref}:NAME")
        return found[0]

    def backbone(self, ref: ModelRef | str | None) -> Path:
        """Folder of a backbone: of a stage before this one, or as given; None for the latest finetune stage."""
        return self.given.backbone(ref)

    def file(self, name: str) -> Path:
        """A file that the configuration names (`FileName`)."""
        return self.plan.files[name]

    # Places to write

    @property
    def artefacts(self) -> Path:
        """Folder of tokenizers, backbones, heads and vocabularies."""
        return _made(self.pipeline.out / "artefacts")

    @cached_property
    def staging(self) -> Path:
        """Working folder of this attempt; what is in it survives a kill, and goes when the stage ends."""
        return restore(_made(self.pipeline.out / "staging" / self.stage / self.record.attempt[:16]))

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """A folder of the staging that is made once, however often the attempt is killed and goes on.

        Args:
            name: its name.
            make: fills the (new and empty) folder.
        """
        folder = self.staging / name
        if not (folder / "_SUCCESS").exists():
            _emptied(folder)
            make(folder)
            (folder / "_SUCCESS").touch()
            push(folder)
        return folder

    def note(self, name: str, text: str) -> None:
        """Notes what this attempt decided, before it acts on it."""
        self.once(name, lambda folder: (folder / "note").write_text(text, encoding="utf-8"))

    def noted(self, name: str) -> str | None:
        """What this attempt noted before it was killed; None where it had not come so far."""
        folder = self.staging / name
        return (folder / "note").read_text(encoding="utf-8") if (folder / "_SUCCESS").exists() else None

    def keep(self, frame: DataFrame) -> DataFrame:
        """The same rows, computed once and kept on disk until the stage ends."""
        return self.engines.keeper.keep(frame)

    def failpoint(self, name: str) -> None:
        """Dies here as from `kill -9` when LEDGERLM_FAILPOINT names `STAGE:name`; the chaos tests' way in."""
        if os.environ.get("LEDGERLM_FAILPOINT") == f"{self.stage}:{name}":
            os.kill(os.getpid(), signal.SIGKILL)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _emptied(folder: Path) -> Path:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)
    return _made(folder)
