"""The key texts of the pool, in a few bytes more than they have: ten million fit into a gigabyte."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.strings import Packer, Strings
from retriever.keys import Key, text_hash
from retriever.pool import Pool
from retriever.revisions import Revision

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Texts:
    """The key texts of a revision of the pool.

    Attributes:
        rows: The pool's row numbers, ascending, int64, shape (rows,).
        ids: The examples' ids, in the same order.
        texts: The distinct key texts, in order of first appearance.
        number: For each row the place of its text in `texts`, int64, shape (rows,).
        hashes: `text_hash` of each row's text, uint64, shape (rows,).
    """

    rows: Numbers
    ids: Strings
    texts: Strings
    number: Numbers
    hashes: Hashes

    @classmethod
    def of(cls, pool: Pool, revision: Revision, key: Key) -> Texts:
        """Reads them."""
        rows, hashes = array("q"), array("Q")
        ids, every = Packer(), Packer()
        for pool_row in pool.examples(revision.number):
            text = key.text(pool_row.example)
            rows.append(pool_row.row)
            ids.append(pool_row.example.id)
            every.append(text)
            hashes.append(text_hash(text))
        texts, hashed = every.strings(), np.frombuffer(hashes, dtype=np.uint64)
        number = numbered(texts, hashed)
        return cls(
            rows=np.frombuffer(rows, np.int64),
            ids=ids.strings(),
            texts=_distinct(texts, number),
            number=number,
            hashes=hashed,
        )

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)


def numbered(texts: Strings, hashes: Hashes) -> Numbers:
    """Numbers texts by first appearance, equal ones alike.

    Args:
        texts: The texts.
        hashes: Equal for equal texts, uint64, shape (texts,); the less often for others, the faster.

    Returns:
        int64, shape (texts,).
    """
    _, firsts, group = np.unique(hashes, return_index=True, return_inverse=True)
    again = np.flatnonzero(firsts[group] != np.arange(len(texts)))
    if any(texts.encoded(row) != texts.encoded(int(firsts[group[row]])) for row in again.tolist()):
        return by_appearance(texts)
    order = np.empty(len(firsts), dtype=np.int64)
    order[np.argsort(firsts)] = np.arange(len(firsts))
    return order[group]


def by_appearance(values: Iterable[Hashable]) -> Numbers:
    """Numbers values by first appearance, equal ones alike: int64, shape (values,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def _distinct(texts: Strings, number: Numbers) -> Strings:
    _, firsts = np.unique(number, return_index=True)
    return texts if len(firsts) == len(texts) else Strings.of(texts[row] for row in firsts.tolist())
