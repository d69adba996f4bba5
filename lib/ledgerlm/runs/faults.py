"""Errors of engines and of the machine, said in one line: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from ledgerlm.engines.extras import extra_of, install
from ledgerlm.errors import ConfigError, EngineError, LedgerError
from ledgerlm.events.condition import Condition

if TYPE_CHECKING:
    from ledgerlm.runs.plan import Stage

_CAUSE = re.compile(r"Caused by: [\w.$]*?(\w+)(?:Exception|Error): (.+)")
# The last line of a Python stack trace: all others are indented, or of the JVM.
_RAISED = re.compile(r"^([A-Za-z_][\w.]*): (.+)$", re.MULTILINE)
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '(\w+)")
# Spark's error classes whose cause is a text of the pipeline or the spec: a condition, a column, a cast.
_OF_A_SETTING = (
    "UNRESOLVED_",
    "PARSE_SYNTAX",
    "DATATYPE_MISMATCH",
    "UNRESOLVABLE",
    "INVALID_",
    "MISSING_",
    "AMBIGUOUS_",
)


def of_machine(error: OSError) -> LedgerError | None:
    """What an error of the file system means to the user; None for any other."""
    place = error.filename or "no file named"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(f"the disk is full ({place}); make room and run again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return EngineError(f"{place} cannot be written or read: {error.strerror}; change its rights")
    if error.filename and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return EngineError(
            f"{place}: {error.strerror}; was it taken away while the run went on? Put it back, or look where the "
            "pipeline names it"
        )
    return None


def not_installed(error: ModuleNotFoundError) -> LedgerError | None:
    """What a package that is not installed here means to the user; None for one that no extra brings."""
    package = (error.name or "").split(".")[0]
    extra = extra_of(package)
    if extra is None:
        return None
    own = " (a cluster brings its own: start the job with spark-submit there)" if extra == "spark" else ""
    return EngineError(f"{package} is not installed here: {install([extra])}{own}")


def as_ledger_error(error: Exception, stage: Stage) -> LedgerError | None:
    """What a stage's foreign error means to the user; None for one that only a developer can read."""
    from py4j.protocol import Py4JError, Py4JNetworkError
    from pyspark.errors import PySparkException

    if isinstance(error, ConnectionError | Py4JNetworkError):
        return _jvm_ended(stage)
    if isinstance(error, OSError):
        told = of_machine(error)
        return None if told is None else type(told)(f"stage {stage.name}: {told}")
    if isinstance(error, PySparkException):
        text = first_line(str(error))
        if module := _NO_MODULE.search(str(error)):
            return _executors_lack(module.group(1), stage)
        if any(f"[{name}" in text for name in _OF_A_SETTING):
            return ConfigError(
                f"stage {stage.name}: Spark cannot read a condition or column of its settings: {text}; look at "
                f"{_conditions(stage) or f'stages.{stage.name} of the pipeline'} and at the data set spec"
            )
    if not isinstance(error, PySparkException | Py4JError):
        return None
    said = of_worker(str(error)) or cause(str(error)) or first_line(str(error))
    return EngineError(f"stage {stage.name}: Spark failed: {said}")


def _executors_lack(package: str, stage: Stage) -> LedgerError:
    extra = extra_of(package)
    needed = install([extra]) if extra else "pip install ledgerlm"
    return EngineError(
        f"stage {stage.name}: the executors' Python has no package {package}; give them an environment with it "
        f"({needed}), as --archives of spark-submit or on each machine"
    )


def _jvm_ended(stage: Stage) -> LedgerError:
    return EngineError(
        f"stage {stage.name}: Spark's Java process has ended (killed, or out of memory: logs/spark.log below out); run "
        "the same command again, and it goes on from what was finished"
    )


def _conditions(stage: Stage) -> str:
    """The stage's SQL conditions as the pipeline has them: `stages.NAME.KEY: 'CONDITION'`."""
    found = ((key, getattr(stage.conf, key)) for key in type(stage.conf).model_fields)
    told = ((key, str(value)) for key, value in found if isinstance(value, Condition))
    return " and ".join(f"stages.{stage.name}.{key}: {value!r}" for key, value in told)


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def of_worker(text: str) -> str | None:
    """What a Python worker's stack trace ends with; of an error of ledgerlm's own its message alone."""
    _, found, trace = text.partition("Traceback (most recent call last):")
    raised = [*_RAISED.finditer(trace)] if found else []
    if not raised:
        return None
    name, message = raised[-1].groups()
    return message if name.startswith("ledgerlm.errors.") else f"{name}: {message}"


def cause(text: str) -> str | None:
    """The innermost cause that a JVM stack trace names."""
    found = _CAUSE.findall(text)
    return f"{found[-1][0]}: {found[-1][1].strip()}" if found else None
