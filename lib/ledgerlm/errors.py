"""Every error that ledgerlm raises on purpose. A message says what was wrong, the value, where, and what to do.

Each kind has the exit code that the command line ends with, by which a scheduler tells what may go well if it is tried
again (1, 75) from what somebody has to look at first (2, 3).
"""


class LedgerError(Exception):
    """Root of all errors a user can act on; the command line prints its text without a stack trace."""

    exit_code = 1


class ConfigError(LedgerError):
    """Raised when a pipeline, engine or job configuration cannot be used."""

    exit_code = 2


class InUseError(ConfigError):
    """Raised when another run is at work in the same folder or lake; `EX_TEMPFAIL` of sysexits.h."""

    exit_code = 75


class SpecError(ConfigError):
    """Raised when a data set spec cannot be used, or does not fit the files it describes."""


class DataError(LedgerError):
    """Raised when rows break a rule that no quarantine can heal (rows lost, keys doubled, a leak),
    or a gate; nothing of it is published."""

    exit_code = 3


class ArtefactError(LedgerError):
    """Raised when a tokenizer, backbone or head is missing, unsafe or not what its hash says."""

    exit_code = 2


class EngineError(LedgerError):
    """Raised when Spark, Ray or a model engine cannot be started or used on this machine."""
