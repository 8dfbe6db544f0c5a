"""What the selection strategies give back, and the rule by which they choose.

Every strategy here is a pure function over arrays. Candidates come best first and are named by their places, from 0.
It gives min(k, m) places, none twice. The order is total: gains closer than `TIE` to the best are ties, and ties go to
the lower place. The margin is above the rounding of float32 vectors and scores, so gains that are equal on paper stay
ties, whatever batch a vector was embedded in and however a sum was added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput

Reals: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Scaling: TypeAlias = Literal["raw", "min-max"]

TIE = 1e-6
"""Gains closer than this are ties."""

NONE = -1
"""In `Picks.against`: traded against no other pick."""


@dataclass(frozen=True)
class Picks:
    """The candidates that a strategy chose.

    Attributes:
        places: Their places among the candidates, best first, int64, shape (min(k, m),).
        gains: The gain of each at the moment it was picked, float64, same shape.
        against: The place of the earlier pick that each was most traded against, `NONE` for none, int64, same shape.
    """

    places: Integers
    gains: Reals
    against: Integers

    def __len__(self) -> int:
        """How many were picked."""
        return len(self.places)

    def first(self, count: int) -> Picks:
        """The first so many of them."""
        return Picks(self.places[:count], self.gains[:count], self.against[:count])


def picks(places: Sequence[int], gains: Sequence[float], against: Sequence[int]) -> Picks:
    """Picks from the lists that a strategy filled."""
    return Picks(np.array(places, dtype=np.int64), np.array(gains, dtype=np.float64), np.array(against, dtype=np.int64))


def first_best(gains: Reals) -> int:
    """The lowest place whose gain is the best or closer to it than `TIE`; shape (m,), m > 0, no NaN."""
    return int(np.argmax(gains >= gains.max() - TIE))


def by_relevance(relevance: Reals, places: Integers) -> Integers:
    """The places sorted by relevance, best first; ties go to the lower place."""
    places = np.sort(places)
    return places[np.argsort(-relevance[places], kind="stable")]


def scaled(relevance: Reals, scaling: Scaling) -> Reals:
    """Relevance as it is (`raw`), or mapped to 0 … 1 over the candidates at hand (`min-max`; all 0 when all are equal).

    Raises:
        InvalidInput: Another scaling.
    """
    if scaling == "raw":
        return relevance
    if scaling == "min-max":
        low, high = (relevance.min(), relevance.max()) if len(relevance) else (0.0, 0.0)
        return (relevance - low) / (high - low) if high > low else np.zeros(len(relevance))
    raise InvalidInput(f"scaling {scaling!r}", expected=f"one of {', '.join(get_args(Scaling))}")


def check_relevance(relevance: Reals, k: int, count: int) -> None:
    """Checks what every strategy is given.

    Raises:
        InvalidInput: Relevance is not one finite number per candidate, or k is negative.
    """
    if relevance.shape != (count,):
        raise InvalidInput(f"relevance of shape {relevance.shape}", expected=f"({count},)")
    if not np.isfinite(relevance).all():
        raise InvalidInput("relevance that is not finite", expected="finite numbers")
    check_k(k)


def check_k(k: int) -> None:
    """Checks how many are wanted.

    Raises:
        InvalidInput: k is negative.
    """
    if k < 0:
        raise InvalidInput(f"k = {k}", expected="0 or more")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Checks a setting.

    Raises:
        InvalidInput: The value is not within low … high, or is not a number.
    """
    if not low <= value <= high:
        raise InvalidInput(f"{name} = {value}", expected=f"a number from {low:g} to {high:g}")
