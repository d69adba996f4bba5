"""The jobs as a pipeline finds them: one verb a module of a package, known by name and imported when it is named."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ledgerlm.config import nearest
from ledgerlm.errors import ConfigError

if TYPE_CHECKING:
    from ledgerlm.runs.job import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """The verbs of one package.

    Attributes:
        package: its dotted name. Modules that begin with `_`, and those of `commands`, are no verbs.
        commands: its modules that are commands of the command line, but no stage of a pipeline.
    """

    package: str
    commands: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """The verbs that a pipeline can name."""
        modules = (module.name for module in pkgutil.iter_modules([str(self._folder())]))
        return sorted(name for name in modules if name not in self.commands and not name.startswith("_"))

    def about(self, name: str) -> str:
        """What the module of a job says about itself, read without importing its engines."""
        source = (resources.files(self.package) / f"{name}.py").read_text(encoding="utf-8")
        return ast.get_docstring(ast.parse(source)) or ""

    def job(self, name: str) -> Job:
        """The job of a verb; only its module is imported.

        Raises:
            ConfigError: when there is no such job.
        """
        names = self.names()
        if name not in names:
            raise ConfigError(f"no job '{name}': {nearest(name, names)}")
        found: Job = importlib.import_module(f"{self.package}.{name}").JOB
        return found

    def main(self, argv: Sequence[str]) -> int:
        """The package's command line, its module `cli`; returns the exit code."""
        code: int = importlib.import_module(f"{self.package}.cli").main(argv)
        return code

    def _folder(self) -> Path:
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"no package of jobs '{self.package}' is installed")
        return Path(next(iter(spec.submodule_search_locations)))


_COMMANDS = frozenset(
    {
        "check",
        "cli",
        "deliveries",
        "doctor",
        "erase",
        "explain",
        "fetch_backbone",
        "init",
        "maintain",
        "plan",
        "promote",
        "quarantine",
        "rescore",
        "rollback",
        "run",
        "status",
    }
)
SHIPPED = Registry(package="ledgerlm.jobs", commands=_COMMANDS)
"""The jobs that come with ledgerlm. This room knows them by name alone; a pipeline may be given others."""
