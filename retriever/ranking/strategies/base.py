"""What a selection strategy is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.example import Example
from retriever.ranking.strategies.picks import Integers, Picks, Reals, Scaling


class Reader(Protocol):
    """Where candidates come from; what is not asked for is not read."""

    @property
    def query(self) -> Example:
        """The query."""

    @property
    def query_vector(self) -> NDArray[np.float32]:
        """Its vector, unit or zero, shape (dim,)."""

    @property
    def query_terms(self) -> Sequence[str]:
        """Its terms, in text order."""

    def cosines(self, rows: Integers) -> Reals:
        """The cosine of each row to the query, shape (m,)."""

    def vectors(self, rows: Integers) -> NDArray[np.float32]:
        """The vector of each row, shape (m, dim)."""

    def recall(self, rows: Integers) -> Reals:
        """How well each row's tokens match each of the query's, shape (m, tokens); see `late_interaction.recall`."""

    def terms(self, examples: Sequence[Example]) -> list[list[str]]:
        """The terms of each example's key text, in text order."""

    def examples(self, rows: Integers) -> list[Example]:
        """The example of each row."""


class Candidates:
    """The examples a strategy chooses from: eligible, past the guard, best first.

    Args:
        rows: Row numbers, int64, shape (m,).
        relevance: Fused scores, or what a reranker made of them, float64, shape (m,).
        reader: Where more about them is read, when it is asked for.
        fused: Fused scores where the relevance is a reranker's; None where it is not.
        cosines: Cosines to the query where they are known; None to have the reader work them out.
    """

    def __init__(
        self,
        rows: Integers,
        relevance: Reals,
        reader: Reader,
        fused: Reals | None = None,
        cosines: Reals | None = None,
    ) -> None:
        self.rows = rows
        self.relevance = relevance
        self.reader = reader
        self.fused = relevance if fused is None else fused
        self.reranked = fused is not None
        self._known_cosines = cosines

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)

    @cached_property
    def cosines(self) -> Reals:
        """Cosines to the query, float64, shape (m,)."""
        return self.reader.cosines(self.rows) if self._known_cosines is None else self._known_cosines

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Unit or zero vectors, shape (m, dim)."""
        return self.reader.vectors(self.rows)

    @cached_property
    def examples(self) -> list[Example]:
        """The examples themselves."""
        return self.reader.examples(self.rows)

    @cached_property
    def terms(self) -> list[list[str]]:
        """The terms of each, in text order."""
        return self.reader.terms(self.examples)

    @cached_property
    def labels(self) -> list[frozenset[str]]:
        """The labels of each."""
        return [example.labels for example in self.examples]

    def on_one_scale(self, scaling: Scaling) -> tuple[Reals, Scaling]:
        """Relevance that may be set against cosines: cosines as they are, or relevance to be mapped to 0 … 1.

        A query without direction has no cosines, and a reranker knows better: relevance is taken then.
        """
        if scaling == "raw" and not self.reranked and self.reader.query_vector.any():
            return self.cosines, "raw"
        return self.relevance, "min-max"


@dataclass(frozen=True)
class NoOptions:
    """For strategies without settings of their own."""


def several(k: int, candidates: int, options: object) -> int:
    """The depth of a strategy that chooses among `select.candidates`, or k if that is more."""
    return max(k, candidates) if k else 0


def by_relevance_order(options: object, query_id: str) -> None:
    """The candidates come by relevance."""


@dataclass(frozen=True)
class Strategy:
    """A way to choose k of the candidates.

    A package of its own can add one: an entry point of the group `retriever.strategies`, whose name is the strategy's
    and whose object is a `Strategy`.

    Attributes:
        pick: From candidates, k and settings to picks: no place twice, and min(k, m) of them unless the strategy is
            one that may stop early. A pure function.
        options: A frozen dataclass, the settings with their defaults; it refuses what cannot be used.
        depth: From k, `select.candidates` and settings to how many candidates it looks at.
        shuffled_by: From settings and the query's id to the text that seeds a random order of the candidates; None
            where they come by relevance.
        blind: Whether it does without a query, so that it can choose a block that all queries share.
        ranked: Whether it matters how relevant a candidate is, and not only that it is one.
        left_open: From the reader, n rows in the order in which they were chosen, whoever chose them, and settings to
            the share of the query's variance that is open before the first and after each, shape (n + 1,); None where
            the strategy has no such measure.
    """

    pick: Callable[[Candidates, int, Any], Picks]
    options: type = NoOptions
    depth: Callable[[int, int, Any], int] = several
    shuffled_by: Callable[[Any, str], str | None] = by_relevance_order
    blind: bool = False
    ranked: bool = True
    left_open: Callable[[Reader, Integers, Any], Reals] | None = None
