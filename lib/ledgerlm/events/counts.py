"""What happened to the rows of a data set, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ledgerlm.errors import DataError
from ledgerlm.events.quality import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestCounts:
    """What happened to the rows.

    Attributes:
        rows_in: rows read (headers and blank lines are none).
        rows_out: events.
        duplicates: rows dropped because their client and event id were there already.
        withdrawn: rows that take an event away, and those that they take away.
        reasons: quarantined rows by reason.
        first: time of the earliest event; None without events.
        last: time of the latest event.
        unmatched: rows whose key a join file lacks, by key column.
        keyed: rows that have such a key, by key column.
        absent: events without a value, by field.
        beside: rows of Delta tables beside the one that made their event (equal, in conflict, taken away), by
            source_file.
        choices: what the settings of the spec decided, by name, such as amounts that were rounded.
        warnings: what the counts say is wrong with the spec; `check` raises the first.
    """

    rows_in: int
    rows_out: int
    duplicates: int
    reasons: Mapping[str, int]
    first: str | None
    last: str | None
    unmatched: Mapping[str, int]
    keyed: Mapping[str, int]
    absent: Mapping[str, int]
    beside: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    withdrawn: int = 0

    @property
    def quarantined(self) -> int:
        """Rows set aside."""
        return sum(self.reasons.values())

    def check(self, source: str) -> None:
        """Asserts that no row vanished and that every file was read as it was written.

        Raises:
            DataError: with the figures, and what to do.
        """
        found = self.rows_out + self.quarantined + self.duplicates + self.withdrawn
        if self.rows_in != found:
            raise DataError(
                f"{source}: {self.rows_in} rows in, but {self.rows_out} out + {self.quarantined} quarantined + "
                f"{self.duplicates} duplicates + {self.withdrawn} withdrawn = {found}; were the files changed while "
                "they were read? Run it again"
            )
        if not self.rows_in:
            raise DataError(f"{source}: no rows in its files; give others")
        if self.reasons.get(Reason.OTHER_HEADER):
            raise DataError(
                f"{source}: {self.reasons[Reason.OTHER_HEADER]} lines are the header in another order than that "
                "at the top of their file, so columns would be mixed up; cut such files in two"
            )
        for warning in self.warnings:
            raise DataError(f"{source}: {warning}")


def facts_of(counts: IngestCounts) -> dict[str, Any]:
    """The counts as JSON values."""
    return {
        "quarantined_by_reason": dict(counts.reasons),
        "first_event": counts.first,
        "last_event": counts.last,
        "unmatched": dict(counts.unmatched),
        "absent": dict(counts.absent),
        "choices": dict(counts.choices),
    }
