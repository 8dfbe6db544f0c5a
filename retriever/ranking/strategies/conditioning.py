"""A kernel given the picks: the incomplete Cholesky factor that DPP and query-variance selection share."""

from __future__ import annotations

import numpy as np

from retriever.ranking.strategies.picks import NONE, Reals

_NEGLIGIBLE = 1e-12


class Conditioned:
    """What the picks so far explain of every candidate, one row of the factor per pick.

    Sums run over the picks in their order and elementwise over the candidates, so that copies get the same bits.

    Attributes:
        places: The picks so far.
    """

    def __init__(self, most: int, count: int) -> None:
        """No pick yet.

        Args:
            most: How many picks there can be.
            count: How many candidates there are.
        """
        self.places: list[int] = []
        self._factor = np.zeros((most, count))

    def add(self, place: int, kernel_row: Reals, pivot: float) -> Reals:
        """Makes a candidate a pick.

        Args:
            place: The candidate.
            kernel_row: The kernel between it and every candidate, shape (m,).
            pivot: Its variance given the earlier picks, observation noise included, above 0.

        Returns:
            Its row of the factor, (kernel_row − Σₜ factor[t, place] · factor[t]) / √pivot, shape (m,).
        """
        factor = self._factor[: len(self.places)]
        explained: Reals = (factor[:, place, None] * factor).sum(axis=0)
        row: Reals = (kernel_row - explained) / np.sqrt(pivot)
        self._factor[len(self.places)] = row
        self.places.append(place)
        return row

    def rival(self, place: int, picked: int) -> int:
        """Which of the first `picked` picks explains most of a candidate's variance.

        Returns:
            The pick's place, the earlier of equals; `NONE` where none explains any.
        """
        shares = self._factor[:picked, place] ** 2
        if picked == 0 or shares.max() <= _NEGLIGIBLE:
            return NONE
        return self.places[int(np.argmax(shares))]
