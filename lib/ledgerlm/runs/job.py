"""What a job is: a name, a strict configuration, and `run(ctx, conf) -> StageResult`.

A job module reads top to bottom as the run and ends with::

    JOB = Job(name="serialize", engine="spark", conf=SerializeConf, run=run, reads=("events",), writes=("documents",))
    main = JOB.main

    if __name__ == "__main__":
        sys.exit(main())
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ledgerlm.config import Conf

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.runs.context import Context


class JobConf(Conf):
    """Base of the jobs' configurations: what stands under `stages.NAME` of a pipeline, without `job`.

    Attributes:
        HOW: settings that say how the work is done, not what comes of it (how many workers, say); they may change
            between two attempts of a stage and are not part of its fingerprint.
    """

    HOW: ClassVar[frozenset[str]] = frozenset()

    def stages_named(self) -> Sequence[str]:
        """Stages whose facts are used because this configuration names them."""
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """What a stage did; written into its completion record and the report.

    Attributes:
        rows_in: rows read from its inputs.
        rows_out: rows written to its main output.
        quarantined: rows set aside with a reason.
        duplicates: rows dropped because their key was there already.
        tables: table name to the Delta version this stage wrote or found.
        artefacts: folders this stage wrote outside the lake; when one is gone the stage is done again.
        facts: JSON values for the report and for later stages (ids, hashes, curves).
    """

    rows_in: int
    rows_out: int
    quarantined: int = 0
    duplicates: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)
    artefacts: Sequence[str] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One verb of the command line.

    Attributes:
        name: the verb; also the module's name in `jobs/`.
        engine: what does the work, for the report (`spark`, `ray`, `ray train + deepspeed`, `local`).
        conf: class of its configuration; its docstring and field descriptions are the job's help.
        run: does the work of one stage.
        reads: tables it reads; a stage is done again when a stage that writes one of them was.
        writes: tables it writes.
        needs: jobs whose facts or artefacts it uses; they count like tables it reads.
            Where its configuration names the stages instead (`JobConf.stages_named`), only those count.
        sources: identity of what it reads from outside the lake (paths, sizes, times), as JSON values.
        finds: its sections of the report say what the run found, and so come first.
        expect: lines for --dry-run on what the stage would take; it reads tables and changes nothing.
    """

    name: str
    engine: str
    conf: type[JobConf]
    run: Callable[[Context, Any], StageResult]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    sources: Callable[[DataSetSpec], Any] | None = None
    finds: bool = False
    expect: Callable[[Context, Any], Sequence[str]] | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs this job's stages of a pipeline; the same as `ledgerlm NAME ARGV`. Returns the exit code."""
        from ledgerlm.jobs.cli import main as cli  # the command line knows every job, so it is imported late

        return cli([self.name, *(sys.argv[1:] if argv is None else argv)])
