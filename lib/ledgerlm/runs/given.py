"""What the stages before a stage left for it: their facts, and the folders that these name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledgerlm.config import ModelRef
from ledgerlm.errors import ConfigError
from ledgerlm.runs.plan import StagePlan
from ledgerlm.runs.record import StageRecord


class Given:
    """Facts of earlier stages.

    Args:
        plan: the asking stage's.
        before: the stages before it, each with its record, if it has one.
        file: the pipeline file, for messages.
        consumed: told what was asked for, and which STAGE@ATTEMPT answered.
    """

    def __init__(
        self,
        plan: StagePlan,
        before: Sequence[tuple[StagePlan, StageRecord | None]],
        file: Path,
        consumed: Callable[[str, str], None] | None = None,
    ) -> None:
        self._plan, self._before, self._file, self._consumed = plan, before, file, consumed

    def record(self, name: str) -> StageRecord | None:
        """The latest finished stage before with that stage name, or else of that job."""
        named = [record for one, record in self._before if one.stage.name == name]
        of_job = [record for one, record in self._before if one.stage.job.name == name]
        finished = [record for record in named or of_job if record is not None and record.done]
        return finished[-1] if finished else None

    def facts(self, name: str) -> Mapping[str, Any]:
        """Facts of the latest finished stage before with that stage name, or else of that job.

        Raises:
            ConfigError: when no such stage has finished.
        """
        found = self.record(name)
        if found is None:
            raise ConfigError(f"{self._file}: stage {self._plan.stage.name} needs a finished stage '{name}' before it")
        if self._consumed is not None:
            self._consumed(name, answer(found))
        return found.facts

    def planned(self, job: str) -> list[StagePlan]:
        """The stages of a job before this one."""
        return [one for one, _ in self._before if one.stage.job.name == job]

    def backbone(self, ref: ModelRef | str | None) -> Path:
        """Folder of a backbone: of a stage, or as given; None for the latest finetune stage."""
        if ref is None or any(one.stage.name == ref for one, _ in self._before):
            return Path(self.facts(ref or "finetune")["backbone"]).resolve()
        return Path(ref).expanduser().resolve()


def answer(record: StageRecord | None) -> str:
    """Identity of what a stage has left."""
    return "none" if record is None else f"{record.name}@{record.attempt}"


def origin(record: StageRecord | None) -> str:
    """Identity of what a stage has left and kept up to date since, batch by batch."""
    return "none" if record is None else f"{record.name}@{record.origin or record.attempt}"
