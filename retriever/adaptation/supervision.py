"""Supervision: what the pool says is alike.

Examples are alike as far as their sets overlap: of labels where the pool has labels, else of the tokens and pairs of
neighbouring tokens of the outputs. The overlap is the Jaccard index, so equal single labels give 1 and others 0. Who
knows better can say so: equal templates of outputs, or the cosine of the outputs' own embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.learner import Batch, Targets
from retriever.adaptation.linear_map import Vectors
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Objective, objective
from retriever.evaluation.metrics import TOKEN, best_overlap, mean_overlap, output_tokens
from retriever.example import Example
from retriever.ranking.seeding import permutation
from retriever.ranking.template_key import template_key

SHARPNESS = 12.0
"""How much more attention a row of overlap 1 should get than one of overlap 0, as a logarithm."""
_MOST_KEPT = 5_000
"""Rows of which all pairs are kept, in 100 MB at most."""
_BLOCK_ROWS = 256


class Likeness(Protocol):
    """How alike any two rows are.

    Attributes:
        sizes: How much a row says, shape (rows,); a row of 0 says nothing.
    """

    sizes: NDArray[np.int64]

    def overlap(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of every pair, 0 to 1, shape (rows, others)."""


class Cosines:
    """The cosines of vectors; below 0 they are 0.

    Args:
        vectors: Unit rows, or zero where there is nothing to compare, shape (rows, dim).
    """

    def __init__(self, vectors: Vectors) -> None:
        self.sizes: NDArray[np.int64] = np.asarray(vectors.any(axis=1), dtype=np.int64)
        self._vectors = vectors

    def overlap(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosine of every pair, at most 1, shape (rows, others)."""
        cosines: NDArray[np.float32] = np.clip(self._vectors[rows] @ self._vectors[others].T, 0, 1)
        return cosines


class FeatureSets:
    """One set of features per row, for the overlaps of any rows.

    Args:
        sets: The sets.
    """

    def __init__(self, sets: Iterable[Iterable[Hashable]]) -> None:
        numbers: dict[Hashable, int] = {}
        rows = [sorted(numbers.setdefault(feature, len(numbers)) for feature in one) for one in sets]
        self.sizes = np.array([len(row) for row in rows], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._features = np.array([number for row in rows for number in row], dtype=np.int64)
        self._count = len(numbers)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.sizes)

    def overlap(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float32]:
        """The Jaccard index of every pair; 0 for two empty sets. Shape (rows, others)."""
        if len(self) > _MOST_KEPT:
            return self._overlap(rows, others)
        return self._pairs[np.ix_(rows, others)]

    @cached_property
    def _pairs(self) -> NDArray[np.float32]:
        """The overlap of all rows with all rows: each pair comes up again and again while a map is learned."""
        everything = np.arange(len(self))
        pairs = np.empty((len(self), len(self)), dtype=np.float32)
        for start in range(0, len(self), _BLOCK_ROWS):
            for other in range(0, len(self), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS), slice(other, other + _BLOCK_ROWS)
                pairs[block] = self._overlap(everything[block[0]], everything[block[1]])
        return pairs

    def _overlap(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float32]:
        both = np.concatenate([rows, others])
        sizes = self.sizes[both]
        where = np.repeat(self._starts[both] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        features = self._features[where + np.arange(len(where))]
        # What only one row has is in no intersection.
        shared = np.bincount(features, minlength=self._count) > 1
        column = np.cumsum(shared) - 1
        kept = shared[features]
        present = np.zeros((len(both), int(shared.sum())), dtype=np.float32)
        present[np.repeat(np.arange(len(both)), sizes)[kept], column[features[kept]]] = 1
        common = present[: len(rows)] @ present[len(rows) :].T
        union = self.sizes[rows][:, None] + self.sizes[others][None, :] - common
        overlap: NDArray[np.float32] = (common / np.maximum(union, 1)).astype(np.float32)
        return overlap


def output_features(text: str) -> frozenset[Hashable]:
    """The tokens of an output, words and signs in lower case, and its pairs of neighbouring tokens."""
    tokens = TOKEN.findall(text.lower())
    return frozenset[Hashable](tokens) | frozenset(pairwise(tokens))


@dataclass(frozen=True)
class Aim:
    """What a pool says is alike, and how selections are judged by it.

    Attributes:
        source: What says it, one of `SOURCES`.
        alike: How alike the examples are, in their order.
        judged: What a good selection is.
        guarded: What must not get worse meanwhile: outputs that say more than what is judged. None for nothing.
    """

    source: str
    alike: Likeness
    judged: Objective
    guarded: Objective | None = None


SOURCES = ("labels", "outputs", "templates", "embeddings")
"""Equal or overlapping labels; tokens of outputs; equal outputs but for values (`template_key`); outputs embedded."""

Embed: TypeAlias = Callable[[Sequence[str]], Vectors]
_OUTPUTS = Objective("outputs", lambda example: output_tokens(example.output_text), best_overlap)


def aim_of(examples: Sequence[Example]) -> Aim | None:
    """What the examples say is alike: labels when they repeat and differ, else outputs; None when they have neither."""
    kind = objective(examples)
    if kind is None:
        return None
    return _by_labels(examples) if kind.name == "labels" else _by_outputs(examples)


def aim_by(source: str, examples: Sequence[Example], embed: Embed) -> Aim | None:
    """What one source says is alike; None when the examples have nothing of it.

    Args:
        source: One of `SOURCES`.
        examples: The examples.
        embed: From texts to unit vectors, for the embeddings of outputs.

    Raises:
        InvalidInput: No such source.
    """
    if source not in SOURCES:
        raise InvalidInput(f"to learn from {source!r}", expected=f"one of {', '.join(SOURCES)}")
    if source == "labels":
        kind = objective(examples)
        return None if kind is None or kind.name != "labels" else _by_labels(examples)
    if sum(bool(output_tokens(example.output_text)) for example in examples) < 2:
        return None
    if source == "embeddings":
        # A cosine is learned from and nothing is judged by it: what an embedder calls alike shall show in the outputs.
        return Aim(source, Cosines(_embedded([example.output_text for example in examples], embed)), _OUTPUTS)
    return _by_templates(examples) if source == "templates" else _by_outputs(examples)


def _by_labels(examples: Sequence[Example]) -> Aim:
    labels = Objective("labels", lambda example: example.labels, mean_overlap)
    rich = len({example.output_text for example in examples}) > 2 * len({example.labels for example in examples})
    return Aim("labels", FeatureSets(example.labels for example in examples), labels, _OUTPUTS if rich else None)


def _by_outputs(examples: Sequence[Example]) -> Aim:
    return Aim("outputs", FeatureSets(output_features(example.output_text) for example in examples), _OUTPUTS)


def _by_templates(examples: Sequence[Example]) -> Aim:
    def template(example: Example) -> frozenset[str]:
        return frozenset({template_key(example.output_text, example.input_text)} - {""})

    return Aim(
        "templates", FeatureSets(map(template, examples)), Objective("templates", template, mean_overlap), _OUTPUTS
    )


def _embedded(outputs: Sequence[str], embed: Embed) -> Vectors:
    """The vectors of outputs, each text embedded once; zero for those without a token."""
    texts = sorted({text for text in outputs if output_tokens(text)})
    place = {text: n for n, text in enumerate(texts)}
    vectors = embed(texts)
    nothing = np.zeros((1, vectors.shape[1]), dtype=np.float32)
    return np.concatenate([vectors, nothing])[[place.get(text, len(texts)) for text in outputs]]


class OverlapBatches:
    """Batches of rows that are each anchor to the others, so that rows of much overlap attract each other.

    Args:
        vectors: Unit rows of the whole pool, shape (pool, dim).
        alike: How alike they are.
        rows: Which to learn from; those that say nothing are left out.
    """

    def __init__(self, vectors: Vectors, alike: Likeness, rows: NDArray[np.int64]) -> None:
        self._vectors = vectors
        self._alike = alike
        self._rows = rows[alike.sizes[rows] > 0]
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """Rows in a new order each time that all of them have been used."""
        size = min(size, len(self))
        each = max(len(self) // size, 1)
        epoch, place = divmod(step, each)
        if (epoch, seed) not in self._orders:
            self._orders = {(epoch, seed): permutation(len(self), seed, str(epoch), "adaptation")}
        rows = self._rows[self._orders[epoch, seed][place * size : (place + 1) * size]]
        overlap = self._alike.overlap(rows, rows)
        allowed = ~np.eye(len(rows), dtype=np.bool_)
        return Batch(self._vectors[rows], _spread(overlap, allowed), allowed)


def _spread(overlap: NDArray[np.float32], allowed: NDArray[np.bool_]) -> Targets:
    """Attention by overlap: a softmax over the allowed rows; none where nothing overlaps."""
    masked = np.where(allowed, overlap, -np.inf)
    best = masked.max(axis=1, keepdims=True, initial=-1.0)
    attention = np.exp(SHARPNESS * (masked - best))
    attention *= best > 0
    spread: Targets = (attention / np.maximum(attention.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)
    return spread
