"""What a verb of the library made, before it is written: the one form in which results reach the lake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.lake.slices import Slice

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows for a table.

    Attributes:
        frame: columns of the table's schema; `run_id` is added as they are written.
        slice: the part of the table that they replace; none: all of it.
        differences: the rows do not replace the part but are applied to it, as `lake.differences` says; kept, since
            they are read twice.
    """

    frame: DataFrame
    slice: Slice = field(default_factory=dict)
    differences: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a verb made.

    Attributes:
        rows_in: rows read from its main input; left out, as many as came out, for a verb that reads nothing.
        tables: table -> rows, in the order in which they are written, after what is set aside.
        none: table -> slice, of which there are no rows now: what an earlier attempt left there is taken away, and
            where nothing is, nothing is written.
        main: the table whose rows are counted; left out, the first.
        rows_out: rows of the main table as the verb counted them; left out, those that were written. Another number
            written is an error.
        aside: rows for `quarantine` (`reason`, `detail`, `source_file`, `payload`); None where nothing can be bad.
        aside_too: what the stage set aside before stays there as well: it read rows that are new alone.
        quarantined: rows set aside as the verb counted them; left out, those that were written.
        duplicates: rows dropped because their key was there already.
        withdrawn: rows that take others away, and those that they take away.
        artefacts: folders written outside the lake.
        facts: JSON values for the report and for later stages (ids, hashes, curves).
        tell: further facts, read back from the rows written (table -> its slice).
        report: sections of the report (`title`, `note`, `blocks`).
    """

    rows_in: int | None = None
    tables: Mapping[str, Rows] = field(default_factory=dict)
    none: Mapping[str, Slice] = field(default_factory=dict)
    main: str | None = None
    rows_out: int | None = None
    aside: DataFrame | None = None
    aside_too: bool = False
    quarantined: int | None = None
    duplicates: int = 0
    withdrawn: int = 0
    artefacts: Sequence[Path] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[Mapping[str, DataFrame]], Mapping[str, Any]] | None = None
    report: Sequence[Mapping[str, Any]] = ()
