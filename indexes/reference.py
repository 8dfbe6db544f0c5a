"""The package rank-bm25 behind the interface of a lexical index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput
from indexes.lexical import BM25, Scores
from indexes.postings import Postings


class RankBM25Index:
    """The same interface over the package rank-bm25 (Okapi), for small pools and for checking.

    It scores every row in Python, some thousand times slower than `BM25Index` at 100,000 rows.

    Args:
        segments: The runs of documents, in row order.
        settings: k1, b and epsilon are used; the variant must be `okapi`.
        removed: For each removed row, the terms of its document.

    Raises:
        InvalidInput: A variant other than `okapi`.
    """

    def __init__(
        self,
        segments: Sequence[Postings],
        settings: BM25 | None = None,
        removed: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.settings = settings or BM25(variant="okapi")
        if self.settings.variant != "okapi":
            raise InvalidInput(f"rank-bm25 with the variant {self.settings.variant!r}", expected="okapi")
        documents = [document for segment in segments for document in segment.documents()]
        self._rows = np.array([row for row in range(len(documents)) if row not in (removed or {})], dtype=np.int64)
        self._size = len(documents)
        kept = [documents[row] for row in self._rows]
        self._terms = frozenset(term for document in kept for term in document)
        self._scorer = self._make(kept) if self._terms else None

    def _make(self, documents: list[list[str]]) -> object:
        from rank_bm25 import BM25Okapi

        return BM25Okapi(documents, k1=self.settings.k1, b=self.settings.b, epsilon=self.settings.epsilon)

    def __len__(self) -> int:
        return self._size

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""
        return not self._terms.isdisjoint(terms)

    def block(self, queries: Sequence[Sequence[str]]) -> Scores:
        """The scores of several queries, one after the other; shape (queries, rows)."""
        return np.array([self.scores(terms) for terms in queries]).reshape(len(queries), len(self))

    def scores_of(self, rows: NDArray[np.int64], terms: Sequence[str]) -> Scores:
        """The scores of some rows; as every row is scored, no faster than those of all."""
        return self.scores(terms)[rows]

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row for the terms of a query, as rank-bm25 gives them."""
        scores = np.zeros(self._size)
        if self._scorer is not None:
            scores[self._rows] = self._scorer.get_scores(list(terms))  # type: ignore[attr-defined]
        return scores
