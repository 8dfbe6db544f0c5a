"""What a selection strategy is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The examples a strategy chooses from: eligible, past the guard, best first.

    Attributes:
        rows: Row numbers, int64, shape (m,).
        relevance: Fused scores, float64, shape (m,).
    """

    rows: NDArray[np.int64]
    relevance: NDArray[np.float64]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)


@dataclass(frozen=True)
class Strategy:
    """A way to choose k of the candidates.

    Attributes:
        pick: From the candidates and k to the places of those chosen, best first: no place twice, and k of them unless
            there are fewer. A pure function.
        depth: From k to how many candidates it looks at.
        shuffled: Whether the candidates come in a seeded random order instead of by relevance.
    """

    pick: Callable[[Candidates, int], Places]
    depth: Callable[[int], int]
    shuffled: bool = False
