"""Progress on the terminal: one line a finished stage, a bar for what takes long. Rich draws; plain logs get lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
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
        self._bar: TaskID | None = None
        self._started = self._spoken = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if self._progress.live:
            self._bar = self._progress.bars.add_task(self._text, total=self._total)
        else:
            threading.Thread(target=self._tell_time, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
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
        self._text = text or self._text
        self._show()

    def _tell_time(self) -> None:
        """Says in a log that work goes on, where nothing else has for a while."""
        while not self._over.wait(_LINE_EVERY):
            if time.monotonic() - self._spoken >= 2 * _LINE_EVERY:
                self._spoken = time.monotonic()
                self._progress.say(f"    {self._text}, {self._spoken - self._started:,.0f} s")

    def _show(self) -> None:
        if self._bar is not None:
            self._progress.bars.update(self._bar, completed=self._done, total=self._total, description=self._text)
        elif time.monotonic() - self._spoken > _LINE_EVERY:
            self._spoken = time.monotonic()
            of = f" {self._done:,.0f}" + (f" of {self._total:,.0f}" if self._total else "")
            self._progress.say(f"    {self._text}{of}")


class Progress:
    """What a run shows while it works."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
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
