"""Reranking: the optional stage between guard and select, which scores the best candidates again, one by one.

The reranker's scores s and the fused ones f are each mapped to 0 … 1 over the candidates that were scored again
(all 0 where they are equal), so that the weight w means the same for every reranker and every fusion rule:

    relevance = w · (s − min s) / (max s − min s) + (1 − w) · (f − min f) / (max f − min f)

The order is total: (−relevance, row). Candidates beyond the depth follow in the order they had, with a relevance from
−1 to 0.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import Integers, Reals, check_range, scaled

MAXSIM = "maxsim"
CROSS_ENCODER = "cross-encoder:"
UNSEEN = -1.0
"""The relevance of what was not scored again and stands in no order: the least there is."""

_MAX_DEPTH = 100_000

Value = TypeVar("Value")


@dataclass(frozen=True)
class Rerank:
    """Whether and how the best candidates are scored again.

    Attributes:
        by: None for not at all; `maxsim`, over token vectors; or `cross-encoder:` and the name or folder of a model.
        depth: How many of the best candidates are scored again.
        weight: What the reranker counts against the fused score, 0 to 1.
        idf: For `maxsim`: whether a token of the query counts by its idf over the pool instead of as much as any other.
            The index must be built with token vectors.

    Raises:
        InvalidInput: A value that cannot be used.
    """

    by: str | None = None
    depth: int = 100
    weight: float = 1.0
    idf: bool = False

    def __post_init__(self) -> None:
        if self.by not in (None, MAXSIM) and not self.model:
            raise InvalidInput(
                f"rerank.by = {self.by!r}", expected=f"nothing, {MAXSIM} or {CROSS_ENCODER}NAME_OR_FOLDER"
            )
        check_range("rerank.depth", self.depth, 1, _MAX_DEPTH)
        check_range("rerank.weight", self.weight, 0.0, 1.0)
        if self.idf and self.by != MAXSIM:
            raise InvalidInput(
                f"rerank.idf = true with rerank.by = {self.by!r}", expected=f"{MAXSIM}, which has tokens"
            )

    @property
    def model(self) -> str | None:
        """The name or folder of the cross-encoder; None for another reranker, and for none."""
        name = (self.by or "").removeprefix(CROSS_ENCODER)
        return name if name.strip() and name != self.by else None


@dataclass(frozen=True)
class Reranked:
    """Candidates in a new order.

    Attributes:
        places: Their places among the candidates as they were, best first, int64, shape (m,).
        relevance: The new relevance of each, in the new order, float64, shape (m,), from -1 to 1.
    """

    places: Integers
    relevance: Reals


def rerank(rows: Integers, relevance: Reals, scores: Reals, weight: float) -> Reranked:
    """The new order and relevance; see the module for the formula.

    Args:
        rows: Of m candidates, best first, int64, shape (m,).
        relevance: Their fused scores, float64, shape (m,).
        scores: The reranker's scores of the first s of them, float64, shape (s,), s <= m.
        weight: What the reranker counts, 0 to 1.

    Raises:
        InvalidInput: Shapes that do not belong together, a number that is not finite, or a weight out of range.
    """
    check_range("weight", weight, 0.0, 1.0)
    depth = len(scores)
    if relevance.shape != rows.shape or scores.ndim != 1 or depth > len(rows):
        raise InvalidInput(
            f"relevance of shape {relevance.shape}, scores of shape {scores.shape}",
            expected=f"{rows.shape}, and no more scores than that",
        )
    if not (np.isfinite(relevance).all() and np.isfinite(scores).all()):
        raise InvalidInput("a relevance or score that is not finite", expected="finite numbers")
    head = weight * scaled(scores, "min-max") + (1.0 - weight) * scaled(relevance[:depth], "min-max")
    tail = scaled(relevance[depth:], "min-max") - 1.0
    order = np.lexsort((rows[:depth], -head))
    places = np.concatenate([order, np.arange(depth, len(rows))]).astype(np.int64)
    return Reranked(places, np.concatenate([head[order], tail]))


class Cache(Generic[Value]):
    """What was used last, up to a number of bytes. Safe to use from several threads.

    Args:
        max_bytes: The most bytes, as the callers of `put` count them; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        """How many entries."""
        return len(self._kept)

    def get(self, key: Hashable) -> Value | None:
        """The value, which is now the one used last; None when it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keeps a value of so many bytes, in place of what was not used for longest; not if it is larger than all."""
        with self._lock:
            self.bytes -= self._kept.pop(key, (None, 0))[1]
            if size > self._max_bytes:
                return
            self._kept[key] = (value, size)
            self.bytes += size
            while self.bytes > self._max_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self.bytes -= freed
