"""One Ray for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledgerlm.engines.ray import RayConf, RayEngine

_ENGINE = RayEngine(RayConf(cpus=2, object_store_gb=0.3))


@pytest.fixture(scope="module")
def ray_engine() -> RayEngine:
    """A local Ray of two cores."""
    _ENGINE.start()  # does nothing after the first module
    return _ENGINE


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Ends it as other folders' tests begin: idle it takes a fifth of a core, all the rest of a long run."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _ENGINE.stop()
