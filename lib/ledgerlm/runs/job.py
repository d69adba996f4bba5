"""What a job is: a name, a strict configuration, what it reads and writes, and `run(ctx, conf) -> StageResult`.

A job module reads top to bottom as the run and ends with::

    JOB = Job(
        name="serialize",
        engine="spark",
        conf=SerializeConf,
        run=run,
        reads=("events", "clients", "labels?"),
        writes=lambda stage: {"documents": {"format": (stage.conf.format,)}},
    )
    main = JOB.main

    if __name__ == "__main__":
        sys.exit(main())
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ledgerlm.config import Conf
from ledgerlm.lake.slices import Reads, Slice, Writes
from ledgerlm.runs.registry import SHIPPED

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.context import Context


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What is known of a stage before it runs.

    Attributes:
        name: the stage's name.
        conf: its configuration.
        spec: the data set spec.
    """

    name: str
    conf: Any
    spec: DataSetSpec


NamesOf = Callable[[Scope], Sequence[str]]
WritesOf = Callable[[Scope], Mapping[str, Slice]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """What a stage did; written into its completion record and the report.

    Attributes:
        rows_in: rows read from its inputs.
        rows_out: rows written to its main output.
        quarantined: rows set aside with a reason.
        duplicates: rows dropped because their key was there already.
        withdrawn: rows that take others away, and those that they take away.
        artefacts: what this stage wrote outside the lake; when one is gone the stage is done again.
        facts: JSON values for the report and for later stages (ids, hashes, curves).
    """

    rows_in: int
    rows_out: int
    quarantined: int = 0
    duplicates: int = 0
    withdrawn: int = 0
    artefacts: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One verb of the command line.

    Attributes:
        name: the verb; also the module's name in `jobs/`.
        engine: what does the work, for the report (`spark`, `ray`, `ray train + deepspeed`, `local`).
        conf: class of its configuration; its docstring and field descriptions are the job's help.
        run: does the work of one stage.
        reads: tables it may read, with `?` after those it can do without; or a function of the stage. A table that is
            not named cannot be read.
        writes: tables that it replaces whole; or a function of the stage that gives the slice of each. `quarantine`
            needs no mention: every stage has a slice of it.
        needs: jobs whose latest stage before this one it uses, unless its configuration names the stage.
        uses: packages whose versions decide the result, besides ledgerlm itself.
        extras: parts of ledgerlm's installation that its work imports (`engines.extras`); or a function of the stage.
            Without them a run says so before it starts anything.
        results: raised whenever the job's results change for the same inputs and settings.
        rows: `balance`: rows in = rows out + quarantined + duplicates, or the stage fails; `free`: they need not.
        follows: tables whose changes it follows client by client, from the batch that its rows reflect on, and
            `sources` for new files; where anything else that it consumed changes, it starts from nothing. None: it
            always does.
        fits: it learns something on the way, which a night takes as it stands.
        learns: what it makes is learnt from data and kept: a night of rescoring takes it as it stands.
        sources: paths, globs and URLs that it reads from outside the lake; a function of the stage.
        finds: its sections of the report say what the run found, and so come first.
        expect: lines for --dry-run on what the stage would take; it reads tables and changes nothing.
    """

    name: str
    engine: str
    conf: type[Conf]
    run: Callable[[Context, Any], StageResult]
    reads: Sequence[str] | NamesOf = ()
    writes: Sequence[str] | WritesOf = ()
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    extras: Sequence[str] | NamesOf = ()
    results: int = 1
    rows: Literal["balance", "free"] = "free"
    follows: tuple[str, ...] = ()
    fits: bool = False
    learns: bool = False
    sources: NamesOf | None = None
    finds: bool = False
    expect: Callable[[Context, Any], Sequence[str]] | None = None

    def reads_of(self, stage: Scope) -> tuple[Reads, ...]:
        """The tables that a stage may read."""
        named = self.reads(stage) if callable(self.reads) else self.reads
        return tuple(Reads(table=one.removesuffix("?"), optional=one.endswith("?")) for one in named)

    def writes_of(self, stage: Scope) -> tuple[Writes, ...]:
        """The slices that a stage replaces, as far as they are known before it runs."""
        if callable(self.writes):
            return tuple(Writes(table=table, slice=part) for table, part in self.writes(stage).items())
        return tuple(Writes(table=table) for table in self.writes)

    def extras_of(self, stage: Scope) -> tuple[str, ...]:
        """The extras that a stage needs."""
        return tuple(self.extras(stage) if callable(self.extras) else self.extras)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs this job's stages of a pipeline; the same as `ledgerlm NAME ARGV`. Returns the exit code."""
        return SHIPPED.main([self.name, *(sys.argv[1:] if argv is None else argv)])
