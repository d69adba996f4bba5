"""The order of the rooms: what may import what, and how thin a job is, read from the code without running it."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ledgerlm.runs.registry import SHIPPED

REPOSITORY = Path(__file__).parents[2]
LIBRARY = REPOSITORY / "lib" / "ledgerlm"
JOBS = REPOSITORY / "jobs"
COMMANDS = {"__init__", *SHIPPED.commands}

# Half of the jobs have at most this many lines.
MEDIAN = 50


@dataclass(frozen=True)
class Import:
    """One import of a module of the package."""

    file: str
    line: int
    module: str

    @property
    def room(self) -> str:
        return (*self.module.split("."), "")[1]


def ordered_rooms() -> list[str]:
    """The rooms as the architecture page tables them, from the ground up."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Rooms", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `ledgerlm\.(\w+)`", table, flags=re.MULTILINE)


def sources() -> list[Path]:
    """All files but the package's own `__init__`, which shows the verbs and is no room."""
    rooms = [one for one in sorted(LIBRARY.rglob("*.py")) if one != LIBRARY / "__init__.py"]
    return [*rooms, *sorted(JOBS.glob("*.py"))]


def name_of(file: Path) -> str:
    """Dotted name below the package: `lake.history`, `jobs.serialize`."""
    inside = file.relative_to(LIBRARY if file.is_relative_to(LIBRARY) else REPOSITORY)
    return ".".join(inside.with_suffix("").parts)


def imports(file: Path) -> Iterator[Import]:
    """Every import of the package in a file: at its top, inside functions, and for types alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its room"
            module = node.module or ""
            # `from ledgerlm import lake` and `from ledgerlm.jobs import cli` name a module by its last word.
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(name_of(file), node.lineno, one) for one in modules if one.split(".")[0] == "ledgerlm")


def test_the_table_of_rooms_is_that_of_the_package() -> None:
    there = {
        one.stem for one in LIBRARY.iterdir() if one.name not in {"__init__.py", "__pycache__", "py.typed", "conf"}
    }
    listed = ordered_rooms()
    assert sorted(listed) == sorted(there)
    assert listed[-1] == "jobs"


def test_a_room_imports_only_rooms_that_stand_before_it() -> None:
    """Types count as well: a room that needs a type of a later one has it in the wrong place."""
    order = {room: place for place, room in enumerate(ordered_rooms())}
    assert upward(order) == []


def upward(order: dict[str, int]) -> list[str]:
    """Imports of a room that does not stand before the importing one; the package's own root is in no room."""
    found = []
    for file in sources():
        mine = name_of(file).split(".")[0]
        for one in imports(file):
            if one.room in order and one.room != mine and order[one.room] > order.get(mine, -1):
                found.append(f"{one.file}:{one.line} imports {one.module}")
    return found


def test_the_order_is_not_held_by_chance() -> None:
    """With two rooms exchanged, the imports that there are stand out."""
    rooms = ordered_rooms()
    for early, late in (("errors", "config"), ("lake", "events"), ("heads", "evaluation")):
        order = {room: place for place, room in enumerate(rooms)}
        order[early], order[late] = order[late], order[early]
        assert any(f" imports ledgerlm.{early}." in text for text in upward(order)), (early, late)


def test_nothing_imports_the_jobs_and_no_job_another() -> None:
    """The command line finds a verb by name; only it and the commands know each other."""
    among = {f"jobs.{one}" for one in COMMANDS}
    wrong = [
        f"{one.file}:{one.line} imports {one.module}"
        for file in sources()
        for one in imports(file)
        if one.room == "jobs" and not (one.file.startswith("jobs.") and ".".join(one.module.split(".")[1:3]) in among)
    ]
    assert wrong == []


def faults(job: Path) -> list[str]:
    """What keeps a job from being thin."""
    text = job.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    found = [f"{lines} lines"] if lines > 80 else []
    found += [
        f"{node.name} takes ctx"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and node.name not in {"run", "expect"}
        and "ctx" in {arg.arg for arg in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]}
    ]
    others = {one.module.split(".")[2] for one in imports(job) if one.room == "jobs"} - COMMANDS
    return found + [f"imports job {one}" for one in sorted(others)]


def jobs() -> list[Path]:
    return [one for one in sorted(JOBS.glob("*.py")) if one.stem not in COMMANDS]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job.stem)
def test_a_job_is_thin(job: Path) -> None:
    """At most 80 lines; `run` and `expect` alone take ctx; it imports no other job."""
    assert faults(job) == []


def test_half_of_the_jobs_are_short() -> None:
    assert statistics.median(len(one.read_text(encoding="utf-8").splitlines()) for one in jobs()) <= MEDIAN
