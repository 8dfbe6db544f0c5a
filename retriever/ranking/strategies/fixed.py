"""Nothing beyond the examples that the recipe names."""

from __future__ import annotations

import numpy as np

from retriever.ranking.strategies.base import Candidates, Places, Strategy


def none(candidates: Candidates, k: int) -> Places:
    """No candidate."""
    return np.empty(0, dtype=np.int64)


FIXED = Strategy(pick=none, depth=lambda k: 0)
