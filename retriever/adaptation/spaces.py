"""Spaces: where examples and queries stand, before something was learned and after.

Validation compares spaces and need not know what was learned: a map of frozen vectors, or another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retriever.adaptation.linear_map import Matrix, Vectors, mapped, toward_identity


class Space(Protocol):
    """Vectors of the rows that are learned from, and of any query."""

    def rows(self, share: float) -> Vectors:
        """The vectors of all rows.

        Args:
            share: How far to go toward what was learned, from 0 to 1.

        Returns:
            Unit or zero rows, shape (rows, dim).
        """

    def queries(self, texts: Sequence[str], share: float) -> Vectors:
        """The vectors of queries' key texts, shape (texts, dim); `share` as for `rows`."""


class Frozen:
    """The embedder's own space; a share of anything leaves it as it is.

    Args:
        vectors: Of the rows, shape (rows, dim).
        encode: From queries' key texts to their vectors. Each text is asked for once.
        known: Vectors of queries that are known already, by text.
    """

    def __init__(
        self, vectors: Vectors, encode: Callable[[Sequence[str]], Vectors], known: Mapping[str, Vectors]
    ) -> None:
        self._vectors = vectors
        self._encode = encode
        self._known = dict(known)

    def rows(self, share: float = 0.0) -> Vectors:
        """As `Space` says."""
        return self._vectors

    def queries(self, texts: Sequence[str], share: float = 0.0) -> Vectors:
        """As `Space` says."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encode(new), strict=True))
        vectors = [self._known[text] for text in texts]
        return np.array(vectors, dtype=np.float32).reshape(len(texts), self._vectors.shape[1])


@dataclass(frozen=True)
class Mapped:
    """The frozen space after a map.

    Attributes:
        frozen: What it maps.
        matrix: From `learn`, shape (dim, dim).
    """

    frozen: Frozen
    matrix: Matrix

    def rows(self, share: float) -> Vectors:
        """As `Space` says."""
        return mapped(toward_identity(self.matrix, share), self.frozen.rows())

    def queries(self, texts: Sequence[str], share: float) -> Vectors:
        """As `Space` says."""
        return mapped(toward_identity(self.matrix, share), self.frozen.queries(texts))
