"""Progress on the terminal: one line a finished stage, a bar for what takes long. Rich draws; plain logs get lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

# A log file or a CI has no terminal that a bar could redraw: it gets a line at most this often, in seconds.
_LINE_EVERY = 15.0


class Task:
    """A piece of work that moves; a context manager from `Progress.task`."""

    def __init__(self, progress: Progress, text: str, total: float | None) -> None:
        self._progress = progress
        self._text = text
        self._total = total
        self._done = 0.0
        self._counts = total is not None
        self._engine = ""
        self._bar: TaskID | None = None
        self._started = self._spoken = time.monotonic()
        self._over = threading.Event()

    @property
    def counts(self) -> bool:
        """Whether it knows by itself how far it is."""
        return self._counts

    def __enter__(self) -> Self:
        self._progress.open.append(self)
        if self._progress.live:
            self._bar = self._progress.bars.add_task(self._text, total=self._total)
        else:
            threading.Thread(target=self._tell_time, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._progress.open.remove(self)
        if self._bar is not None:
            self._progress.bars.remove_task(self._bar)

    def advance(self, amount: float = 1) -> None:
        """Moves on by `amount` of the total."""
        self._done += amount
        self._show()

    def update(self, *, done: float | None = None, total: float | None = None, text: str | None = None) -> None:
        """Sets what is done, the total or the text."""
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        self._counts = self._counts or total is not None
        self._text = text or self._text
        self._show()

    def tell(self, done: float, total: float, unit: str) -> None:
        """Shows how far an engine is with the part of the work that it has in hand; what comes after is not known."""
        if self._bar is not None:
            self._progress.bars.update(self._bar, completed=done, total=total)
        else:
            self._engine = f", {done:,.0f} of {total:,.0f} {unit}"
            self._speak()

    def _tell_time(self) -> None:
        """Says in a log that work goes on, where nothing else has for a while."""
        while not self._over.wait(_LINE_EVERY):
            self._speak()

    def _speak(self) -> None:
        newest = self._progress.open[-1:] == [self]
        if newest and time.monotonic() - self._spoken >= 2 * _LINE_EVERY:
            self._spoken = time.monotonic()
            self._progress.say(f"    {self._text}, {self._spoken - self._started:,.0f} s{self._engine}")

    def _show(self) -> None:
        if self._bar is not None:
            self._progress.bars.update(self._bar, completed=self._done, total=self._total, description=self._text)
        elif time.monotonic() - self._spoken > _LINE_EVERY:
            self._spoken = time.monotonic()
            of = f" {self._done:,.0f}" + (f" of {self._total:,.0f}{self._left()}" if self._total else "")
            self._progress.say(f"    {self._text}{of}")

    def _left(self) -> str:
        """How long the rest takes at the speed so far; the first steps hold the start, and say little of it."""
        if not self._total or not self._total / 20 <= self._done < self._total:
            return ""
        seconds = (self._spoken - self._started) * (self._total - self._done) / self._done
        return f", {seconds:,.0f} s left" if seconds < 120 else f", {seconds / 60:,.0f} min left"


class Progress:
    """What a run shows while it works.

    Args:
        console: where to. A command's is its standard output, as its log; without one, standard error, since what a
            caller of the library prints is the caller's.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal or (self.console.is_jupyter and _has_widgets())
        self.open: list[Task] = []
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Shows bars while the block runs."""
        if self.live:
            with self.bars:
                yield
        else:
            yield

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, soft_wrap=True)

    def task(self, text: str, total: float | None = None) -> Task:
        """A bar for work of a known or unknown size."""
        return Task(self, text, total)

    def tell(self, done: float, total: float, unit: str = "Spark tasks") -> None:
        """Shows how far an engine is, on the newest bar, unless that counts by itself."""
        for newest in self.open[-1:]:
            if not newest.counts:
                newest.tell(done, total, unit)


def _has_widgets() -> bool:
    """A notebook redraws bars by widgets; without them it would warn at each, so it gets lines as a log does."""
    return find_spec("ipywidgets") is not None
