"""What a test session has used: processes that nobody waits for are counted."""

from __future__ import annotations

import os
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
    before = time.process_time()
    subprocess.run([sys.executable, "-c", ORPHAN], check=True)
    waited = time.monotonic() + 60
    used = 0.0
    while used < 1.0 and time.monotonic() < waited:
        time.sleep(0.1)
        used = sum(seconds for (pid, _), seconds in dict(meter.used).items() if pid != os.getpid())
    assert 1.0 <= used < 3.0
    assert meter.stop() >= before + used
