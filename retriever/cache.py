"""Where the library keeps what it can make again, for the user who runs it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """The directory `demonstration-retriever` in XDG_CACHE_HOME, or else in ~/.cache; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demonstration-retriever"
