"""Every error that ledgerlm raises on purpose. A message says what was wrong, the value, where, and what to do."""


class LedgerError(Exception):
    """Root of all errors a user can act on; the command line prints its text without a stack trace."""


class ConfigError(LedgerError):
    """Raised when a pipeline, engine or job configuration cannot be used."""


class SpecError(ConfigError):
    """Raised when a data set spec cannot be used, or does not fit the files it describes."""


class DataError(LedgerError):
    """Raised when rows break a rule that no quarantine can heal (rows lost, keys doubled, a leak)."""


class ArtefactError(LedgerError):
    """Raised when a tokenizer, backbone or head is missing, unsafe or not what its hash says."""


class EngineError(LedgerError):
    """Raised when Spark, Ray or a model engine cannot be started or used on this machine."""
