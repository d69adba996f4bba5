"""CPU seconds and memory of a test session: its own processes and all that these start, whoever waits for them.

What the operating system tells of children is of those that were waited for: Ray's workers and a JVM that outlives its
session are not among them. So the processes are looked at every second, and what one had used when it was last seen
counts.
"""

from __future__ import annotations

import threading

import psutil


class CpuMeter:
    """Adds up the CPU seconds of this process and its descendants, orphans among them.

    Args:
        every: seconds between two looks; what a process uses after the last one is not seen.

    Attributes:
        used: seconds of each process, by its id and when it began.
        memory: bytes that all of them held at the last look, pages that several share counted for each.
    """

    def __init__(self, every: float = 1.0) -> None:
        self._every, self._ended = every, threading.Event()
        self._own = psutil.Process().pid
        self.used: dict[tuple[int, float], float] = {}
        self.memory = 0
        self._looks = threading.Thread(target=self._look_on, name="cpu-meter", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._looks.start()

    @property
    def so_far(self) -> float:
        """The seconds as of the last look."""
        return sum(list(self.used.values()))

    def now(self) -> float:
        """The seconds as of a look at this moment."""
        self._look()
        return self.so_far

    def stop(self) -> float:
        """Ends the looking and tells the seconds."""
        self._ended.set()
        self._looks.join()
        self._look()
        return sum(self.used.values())

    def _look_on(self) -> None:
        while not self._ended.wait(self._every):
            self._look()

    def _look(self) -> None:
        seen = psutil.process_iter(["pid", "ppid", "create_time", "cpu_times", "memory_info"])
        found = sorted((one.info for one in seen if one.info["cpu_times"]), key=lambda info: info["create_time"])
        ours, held = {self._own}, 0
        for info in found:  # the older first, so that a parent is known before its children
            key = (info["pid"], info["create_time"])
            if key in self.used or info["ppid"] in ours or info["pid"] == self._own:
                ours.add(info["pid"])
                self.used[key] = info["cpu_times"].user + info["cpu_times"].system
                held += info["memory_info"].rss if info["memory_info"] else 0
        self.memory = held
