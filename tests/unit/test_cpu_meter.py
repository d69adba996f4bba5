"""What a test session has used: processes that nobody waits for are counted."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.cpu_meter import CpuMeter

# Starts a process that works for a second, and ends without waiting for it.
ORPHAN = """
import subprocess, sys, time
work = "import time\\nwhile time.process_time() < 1.0: pass\\ntime.sleep(3)"
subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.DEVNULL)
time.sleep(0.5)
"""


def test_an_orphans_seconds_count() -> None:
    meter = CpuMeter(every=0.1)
    meter.start()
    before, began = time.process_time(), time.time() - 1
    subprocess.run([sys.executable, "-c", ORPHAN], check=True)
    waited = time.monotonic() + 60
    used = 0.0
    while used < 1.0 and time.monotonic() < waited:
        time.sleep(0.1)
        # What other tests have started (a JVM) works on meanwhile: only what is new counts.
        used = sum(seconds for (_, created), seconds in dict(meter.used).items() if created >= began)
    assert 1.0 <= used < 3.0
    assert meter.stop() >= before + used
