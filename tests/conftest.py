"""What holds for all tests: what the library keeps for its user, it keeps in a directory of the test run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
