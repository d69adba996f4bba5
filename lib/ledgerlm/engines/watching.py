"""What a run does in Spark, told to those who look: names of its jobs in Spark's own page, and how far they are."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DESCRIPTION = "spark.job.description"
# Spark's tags may hold no comma; the rest is for who reads them.
_UNTAGGED = re.compile(r"[^\w.:/-]+")
# Seconds between two looks; the first comes after as many, so that short work is not looked at.
_EVERY = 1.0

Tell = Callable[[int, int], None]


@contextmanager
def described(spark: SparkSession, text: str) -> Iterator[None]:
    """Names what the block lets Spark do, after the name of what is around it; both are put back.

    Args:
        spark: a classic session, whose jobs get the text as their description in the Spark UI; or one of Spark Connect,
            whose operations get it as a tag.
        text: what is done.
    """
    from pyspark.sql.utils import is_remote

    if is_remote():
        tag = _UNTAGGED.sub("_", text)
        spark.addTag(tag)
        try:
            yield
        finally:
            spark.removeTag(tag)
        return
    context = spark.sparkContext
    before = context.getLocalProperty(_DESCRIPTION)
    within = before and not before.endswith(text)  # a write that turns out to be another says so once
    context.setJobDescription(f"{before}: {text}" if within else before or text)
    try:
        yield
    finally:
        context.setLocalProperty(_DESCRIPTION, before)  # type: ignore[arg-type]  # None takes it away


@contextmanager
def watched(spark: SparkSession, tell: Tell) -> Iterator[None]:
    """Tells, while the block runs, how many tasks of the Spark stages at work are done, and how many they are.

    Args:
        spark: a session; other work in the same application is counted as well.
        tell: given both numbers, from another thread, and not before a second has gone.
    """
    from pyspark.sql.utils import is_remote

    if is_remote():
        with _asked_of_a_server(spark, tell):
            yield
        return
    over = threading.Event()
    looking = threading.Thread(target=_look, args=(spark, tell, over), daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _look(spark: SparkSession, tell: Tell, over: threading.Event) -> None:
    from py4j.protocol import Py4JError

    tracker = spark.sparkContext.statusTracker()
    while not over.wait(_EVERY):
        try:
            stages = [tracker.getStageInfo(one) for one in tracker.getActiveStageIds()]
        except (ConnectionError, Py4JError):  # the JVM has ended; the work itself says so
            return
        known = [one for one in stages if one is not None]
        if known:
            tell(sum(one.numCompletedTasks for one in known), sum(one.numTasks for one in known))


@contextmanager
def _asked_of_a_server(spark: SparkSession, tell: Tell) -> Iterator[None]:
    def handler(stages: object, **_: object) -> None:
        listed = list(stages or ())  # type: ignore[call-overload]
        tell(sum(one.num_completed_tasks for one in listed), sum(one.num_tasks for one in listed))

    spark.registerProgressHandler(handler)  # type: ignore[arg-type]  # any callable serves
    try:
        yield
    finally:
        spark.removeProgressHandler(handler)  # type: ignore[arg-type]
