"""What holds for all tests."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest

# No test fails for the time it took: a busy machine is no defect.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

MEMORY, ROOM = Path("/dev/shm"), 4 << 30


def pytest_configure():
    """Puts temporary directories into memory where there is room, unless it was said where they go.

    Half of the suite's time was waiting for a disk to take what tests of durable writes gave it. What is left when the
    power fails is tested with a disk that forgets (`disk.py`); these need none that remembers.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory):
    """What the library keeps for its user, it keeps in a directory of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def interrupts_count():
    """A shell ignores interrupts for what it runs in the background, and whatever that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
