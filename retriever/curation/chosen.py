"""What the curation methods give back, and what they share.

Each is a pure function over the vectors of a pool: deterministic, the same whatever the number of threads, no row
twice, min(budget, free rows) of them. Ties go to the lower row. Rows that are held already count as chosen before the
first choice and are not chosen again, so that what is chosen complements them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import Integers, Reals, check_k

BLOCK_BYTES = 64 << 20
"""How large one block of inner products may be."""


@dataclass(frozen=True)
class Chosen:
    """The rows that were chosen.

    Attributes:
        places: In the order of the choice, int64, shape (min(budget, free rows),).
        gains: What each was worth at the moment it was chosen, float64, same shape; the method says in what unit.
    """

    places: Integers
    gains: Reals

    def __len__(self) -> int:
        """How many were chosen."""
        return len(self.places)


def chosen(places: Sequence[int], gains: Sequence[float]) -> Chosen:
    """From the lists that a method filled."""
    return Chosen(np.array(places, dtype=np.int64), np.array(gains, dtype=np.float64))


def free_rows(count: int, budget: int, held: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows may be chosen, bool, shape (count,).

    Raises:
        InvalidInput: The budget is negative, or a held row does not exist.
    """
    check_k(budget)
    for place in held:
        if not 0 <= place < count:
            raise InvalidInput(f"held row {place}", expected=f"rows from 0 to {count - 1}")
    free = np.ones(count, dtype=np.bool_)
    free[list(held)] = False
    return free


def block_rows(count: int) -> int:
    """How many rows of `count` float64 numbers make a block."""
    return max(1, BLOCK_BYTES // (8 * max(1, count)))
