"""Errors of engines and of the machine, said in one line: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import re

from ledgerlm.errors import DataError, EngineError, LedgerError

_CAUSE = re.compile(r"Caused by: [\w.$]*?(\w+)(?:Exception|Error): (.+)")
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


def as_ledger_error(error: Exception, stage: str) -> LedgerError | None:
    """What a stage's foreign error means to the user; None for one that only a developer can read."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(
            f"stage {stage}: the disk is full ({error.filename or 'no file named'}); make room and run again"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return EngineError(
            f"stage {stage}: {error.filename} cannot be written or read: {error.strerror}; change its rights"
        )
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    if isinstance(error, PySparkException):
        text = first_line(str(error))
        if any(f"[{name}" in text for name in _OF_A_SETTING):
            return DataError(
                f"stage {stage}: Spark cannot read a condition or column of its settings: {text}; look at "
                f"stages.{stage} of the pipeline and at the data set spec"
            )
        return EngineError(f"stage {stage}: Spark failed: {cause(str(error)) or text}")
    if isinstance(error, Py4JError):
        return EngineError(f"stage {stage}: Spark failed: {cause(str(error)) or first_line(str(error))}")
    return None


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def cause(text: str) -> str | None:
    """The innermost cause that a JVM stack trace names."""
    found = _CAUSE.findall(text)
    return f"{found[-1][0]}: {found[-1][1].strip()}" if found else None
