"""Spark and Ray of a run, each started on first need and kept until the run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from ledgerlm.config import SCHEME
from ledgerlm.engines import ray as ray_engine
from ledgerlm.engines.frames import Keeper
from ledgerlm.files import url_of
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from ledgerlm.engines.spark import Session
    from ledgerlm.lake.lake import Lake
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.record import Records


class Engines:
    """The engines of one run.

    Args:
        pipeline: whose engine profile is taken.
        progress: told how far Spark is.
    """

    def __init__(self, pipeline: Pipeline, progress: Progress | None = None) -> None:
        self._pipeline = pipeline
        self._progress = progress or Progress()
        self._session: Session | None = None
        self._title: str | None = None
        self._shown = ExitStack()
        self.ray = ray_engine.RayEngine(pipeline.engine.ray)
        self.keeper = Keeper(url_of(pipeline.out / "staging" / "kept"))

    @property
    def spark(self) -> SparkSession:
        """The session of this run: one that is there already, or its own."""
        if self._session is None:
            from ledgerlm.engines.spark import open_session

            places = (self._pipeline.place, self._pipeline.home.root)
            self._session = open_session(
                self._pipeline.engine.spark,
                log=self._pipeline.out / "logs" / "spark.log",
                schemes={found[0][:-1] for one in places if (found := SCHEME.match(one))},
            )
            self._show()
        return self._session.spark

    @contextmanager
    def titled(self, text: str, title: str) -> Iterator[None]:
        """Shows a stage at work: a bar that says how far Spark is, and in the Spark UI the title of its jobs.

        Args:
            text: of the bar.
            title: of the jobs, from when Spark is there.
        """
        self._title = title
        try:
            with self._progress.task(text), ExitStack() as self._shown:
                self._show()
                yield
        finally:
            self._title = None

    def _show(self) -> None:
        """Titles what Spark does from now on, and looks on, until the stage has ended."""
        from ledgerlm.engines.watching import described, watched

        if self._session is not None and self._title is not None:
            self._shown.enter_context(described(self._session.spark, self._title))
            self._shown.enter_context(watched(self._session.spark, self._progress.tell))

    def release(self) -> None:
        """Gives back what a stage kept; a JVM that has ended keeps nothing."""
        from py4j.protocol import Py4JError

        with suppress(ConnectionError, EOFError, Py4JError):
            self.keeper.release()

    def stop(self) -> None:
        """Ends what this run started; a session that was there before gets its settings back and stays."""
        self.ray.stop()
        if self._session is not None:
            from py4j.protocol import Py4JError

            with suppress(ConnectionError, EOFError, Py4JError):  # of a JVM that has ended before
                self._session.close()
            self._session = None


@contextmanager
def at_lake(pipeline: Pipeline) -> Iterator[tuple[Engines, Records, Lake]]:
    """A pipeline's lake with its newest records, for a command that is no run; what was started ends with the block."""
    from ledgerlm.lake.lake import Lake
    from ledgerlm.runs.record import Records

    engines, records = Engines(pipeline), Records(pipeline.out)
    try:
        records.fetch()
        yield engines, records, Lake(pipeline.home.root, engines.spark)
    finally:
        engines.release()
        engines.stop()
