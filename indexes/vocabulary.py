"""Vocabulary: the terms of a set of documents, sorted, in two flat arrays that need no parsing to open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class Vocabulary:
    """Sorted distinct terms; the number of a term is its place.

    UTF-8 keeps the order of code points, so a binary search over the encoded bytes is one over the terms.

    Args:
        blob: The terms' UTF-8 bytes, one after the other, dtype uint8.
        offsets: Where each term begins in `blob`, and the end, dtype int64, shape (terms + 1,).
    """

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.blob = blob
        self.offsets = offsets
        self._bytes = blob.data

    @classmethod
    def from_terms(cls, terms: Iterable[str]) -> Vocabulary:
        """From terms that are sorted and distinct."""
        encoded = [term.encode("utf-8", "surrogatepass") for term in terms]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(term) for term in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        return (self._term(number).decode("utf-8", "surrogatepass") for number in range(len(self)))

    def _term(self, number: int) -> bytes:
        return bytes(self._bytes[self.offsets[number] : self.offsets[number + 1]])

    def find(self, term: str) -> int:
        """The number of a term; -1 when it is not there."""
        wanted = term.encode("utf-8", "surrogatepass")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._term(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._term(low) == wanted else -1
