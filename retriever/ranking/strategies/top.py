"""The k most relevant (kNN selection; KATE, Liu et al. 2021)."""

from __future__ import annotations

import numpy as np

from retriever.ranking.strategies.base import Candidates, Places, Strategy


def first(candidates: Candidates, k: int) -> Places:
    """The first k candidates, in their order."""
    return np.arange(min(k, len(candidates)))


TOP = Strategy(pick=first, depth=lambda k: k)
