"""What a user sees while something runs: lines in a log, how long the rest takes, how far an engine is."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from ledgerlm import progress as module
from ledgerlm.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the module sees; nothing is said by itself in a test."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.Task, "_tell_time", lambda _: None)
    return now


def lines(progress: Progress) -> list[str]:
    file = progress.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def shown(**console: bool) -> Progress:
    return Progress(Console(file=io.StringIO(), width=120, **console))  # type: ignore[arg-type]


def test_a_log_tells_how_long_the_rest_takes(clock: list[float]) -> None:
    progress = shown()
    with progress.task("Fitting", total=40) as task:
        clock[0] = 10
        task.advance(5)
        assert lines(progress) == [], "not more often than a reader wants"
        clock[0] = 20
        task.advance(5)
        clock[0] = 40
        task.update(done=1)
        clock[0] = 41
        task.update(done=10)
        clock[0] = 1000
        task.advance(5)
        clock[0] = 1100
        task.update(done=40)
    assert lines(progress) == [
        "    Fitting 10 of 40, 60 s left",
        "    Fitting 1 of 40",
        "    Fitting 15 of 40, 28 min left",
        "    Fitting 40 of 40",
    ]


def test_an_engine_tells_on_the_newest_bar_unless_that_counts_itself(clock: list[float]) -> None:
    progress = shown()
    progress.tell(1, 2)
    with progress.task("embed") as stage:
        clock[0] = 40
        progress.tell(3, 64)
        with progress.task("Folding states"):
            clock[0] = 80
            progress.tell(5, 8)
        with progress.task("Fitting", total=3):
            clock[0] = 120
            progress.tell(1, 4)
        assert progress.open == [stage]
    assert lines(progress) == [
        "    embed, 40 s, 3 of 64 Spark tasks",
        "    Folding states, 40 s, 5 of 8 Spark tasks",
    ]


def test_a_terminal_has_bars_with_the_time_left() -> None:
    progress = shown(force_terminal=True)
    with progress.running(), progress.task("embed"):
        progress.tell(3, 64)
        [bar] = progress.bars.tasks
        assert (bar.description, bar.completed, bar.total) == ("embed", 3, 64)
        progress.bars.refresh()
    drawn = "\n".join(lines(progress))
    assert "3/64" in drawn and "-:--:--" in drawn


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_bars_where_it_can_redraw_them(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    monkeypatch.setattr(module, "_has_widgets", lambda: widgets)
    assert shown(force_jupyter=True).live is widgets
