"""Vocabulary: the terms of a set of documents, sorted, in two flat arrays that need no parsing to open."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from indexes.errors import InvalidInput
from indexes.strings import Strings

_MOST_HEADS = 2048


class Vocabulary(Strings):
    """Sorted distinct terms; the number of a term is its place.

    UTF-8 keeps the order of code points, so a binary search over the encoded bytes is one over the terms.
    """

    @classmethod
    def from_terms(cls, terms: Iterable[str]) -> Vocabulary:
        """From terms that are sorted and distinct."""
        strings = Strings.of(terms)
        return cls(strings.blob, strings.offsets)

    @cached_property
    def _stride(self) -> int:
        return len(self) // _MOST_HEADS + 1

    @cached_property
    def _heads(self) -> list[bytes]:
        """Some of the terms, at equal distances; they spare half of the steps of a search."""
        return [self.encoded(number) for number in range(0, len(self), self._stride)]

    def find(self, term: str) -> int:
        """The number of a term; -1 when it is not there."""
        wanted = term.encode("utf-8", "surrogatepass")
        # What is before the wanted term's head is less than it, what is at the head behind it is not.
        behind = bisect_left(self._heads, wanted)
        span = range(len(self))[max(0, behind - 1) * self._stride : behind * self._stride + 1]
        number = span.start + bisect_left(span, wanted, key=self.encoded)
        return number if number < len(self) and self.encoded(number) == wanted else -1


def check_vocabulary(vocabulary: Vocabulary, name: str) -> None:
    """Refuses offsets that lead out of the bytes.

    Raises:
        InvalidInput: They do not rise from 0 to the end.
    """
    offsets, end = vocabulary.offsets, len(vocabulary.blob)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
        raise InvalidInput(f"{name} offsets that do not rise from 0 to {end}")


def check_sorted(vocabulary: Vocabulary, name: str) -> None:
    """Refuses terms that a binary search would miss; looks at each of them.

    Raises:
        InvalidInput: They are not sorted, or one comes twice.
    """
    terms = (vocabulary.encoded(number) for number in range(len(vocabulary)))
    if any(one >= other for one, other in itertools.pairwise(terms)):
        raise InvalidInput(f"{name}s that are not sorted, or come twice")
