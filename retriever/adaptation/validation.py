"""Validation: whether a learned map helps on examples that it has not seen.

The pool is cut into folds by key text. For each, a map is learned from the other folds, and examples of the fold ask
for their neighbours among these: what a new query would get from the examples that were learned from. How far to go
from the identity toward the map is chosen so, and so is the fusion weight; a map that was fitted to the examples that
judge it would look better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex, Query
from indexes.lexical import LexicalIndex
from retriever.adaptation.linear_map import Matrix, Vectors, mapped, toward_identity
from retriever.evaluation.calibration import GRID, SAMPLE, Objective, best_weight, utilities
from retriever.example import Example, Json
from retriever.ranking.seeding import permutation

Learn: TypeAlias = Callable[[NDArray[np.int64]], Matrix]
"""From rows to the map that is learned from them."""

FOLDS = 3
SHARES = (0.25, 0.5, 0.75, 1.0)
TOLERATED = 0.005
_DENSE = (1.0,)


@dataclass(frozen=True)
class Held:
    """The pool as validation sees it.

    Attributes:
        vectors: As the embedder gave them, shape (rows, dim).
        lexical: The lexical channel over the same rows.
        copies: For each row a number that it shares with the rows of the same key text, shape (rows,).
        examples: From rows to their examples.
        queries: From rows to their keys as queries.
    """

    vectors: Vectors
    lexical: LexicalIndex
    copies: NDArray[np.int64]
    examples: Callable[[Sequence[int]], Sequence[Example]]
    queries: Callable[[Sequence[int]], Sequence[Query]]


@dataclass(frozen=True)
class Fold:
    """A part that is held out.

    Attributes:
        rows: The examples of it that ask.
        others: Which rows are not of it, bool, shape (pool,).
        matrix: The map that was learned from these.
    """

    rows: list[int]
    others: NDArray[np.bool_]
    matrix: Matrix


@dataclass(frozen=True)
class Compared:
    """A metric on the held-out examples, before and after.

    Attributes:
        metric: Its name.
        before: Its mean with the embedder's own vectors.
        after: Its mean with mapped ones.
        error: The standard error of the difference, paired by example.
    """

    metric: str
    before: float
    after: float
    error: float

    @classmethod
    def of(cls, metric: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Compared:
        """From the values of each example, in the same order."""
        error = (after - before).std(ddof=1) / np.sqrt(len(before)) if len(before) > 1 else np.inf
        return cls(metric, float(before.mean()), float(after.mean()), float(error))

    def to_dict(self) -> dict[str, Json]:
        """For the manifest and JSON output; what no example could be compared by has no error."""
        error = round(self.error, 6) if np.isfinite(self.error) else None
        return {
            "metric": self.metric,
            "before": round(self.before, 6),
            "after": round(self.after, 6),
            "error": error,
        }

    @property
    def gain(self) -> float:
        """How much more there is after than before."""
        return self.after - self.before


def folds(held: Held, rows: NDArray[np.int64], learn: Learn) -> list[Fold]:
    """Cuts the pool by key text and learns a map from what is outside each part.

    Args:
        held: The pool.
        rows: Those that have something to compare.
        learn: From rows to the map that is learned from them.
    """
    texts = int(held.copies.max()) + 1
    fold_of = permutation(texts, 0, "", "folds") % FOLDS
    order = rows[permutation(len(rows), 0, "", "validation")][:SAMPLE]
    return [
        Fold(
            order[fold_of[held.copies[order]] == number].tolist(),
            fold_of[held.copies] != number,
            learn(rows[fold_of[held.copies[rows]] != number]),
        )
        for number in range(FOLDS)
    ]


def gained(
    held: Held, parts: Sequence[Fold], share: float, judged: Objective, weights: Sequence[float] = GRID
) -> NDArray[np.float64]:
    """The utility of each held-out example at each fusion weight.

    Args:
        held: The pool.
        parts: From `folds`.
        share: How far to go from the identity toward each fold's map; 0 leaves the vectors as they are.
        judged: What a match is.
        weights: The fusion weights.

    Returns:
        Shape (examples, weights), in an order that depends on `parts` and `judged` alone.
    """
    found = []
    for part in parts:
        matrix = toward_identity(part.matrix, share)
        moved = mapped(matrix, held.vectors) if share else held.vectors
        index = HybridIndex(DenseIndex([Segment.of(moved)]), held.lexical, part.others)

        def queries(rows: Sequence[int], matrix: Matrix = matrix) -> list[Query]:
            asked = held.queries(rows)
            if not share:
                return list(asked)
            vectors = mapped(matrix, np.stack([query.vector for query in asked]))
            return [Query(vector, query.terms) for vector, query in zip(vectors, asked, strict=True)]

        _, values = utilities(
            index, part.rows, judged, examples=held.examples, queries=queries, copies=held.copies, weights=weights
        )
        found.append(values)
    return np.concatenate(found)


@dataclass(frozen=True)
class Verdict:
    """Whether a map is worth having.

    Attributes:
        kept: Whether it is.
        share: How far to go from the identity toward the map.
        compared: What was compared at this share, the fusion calibrated before and after.
        weight: The fusion weight that goes with it.
        utilities: The mean utility of the held-out examples at each weight that was tried.
        sample: How many were held out.
        objective: The name of what a match is.
    """

    kept: bool
    share: float
    compared: tuple[Compared, ...]
    weight: float
    utilities: tuple[float, ...]
    sample: int
    objective: str


def judge(
    held: Held,
    parts: Sequence[Fold],
    judged: Objective,
    *,
    guarded: Objective | None = None,
    weight: float | None = None,
) -> Verdict:
    """Finds how far to go toward the map, and whether that helps.

    It helps when the hybrid, each time at its own best weight, gains more than one standard error, and no channel and
    nothing guarded loses more than is tolerated.

    Args:
        held: The pool.
        parts: From `folds`.
        judged: What a match is.
        guarded: What must not get worse while matches get better.
        weight: The fusion weight when it is not to be chosen.
    """
    weights = GRID if weight is None else (weight,)
    before = _Utilities.of(held, parts, 0, judged, guarded, weights)
    base = before.choose(before.everywhere())
    dense = gained(held, parts, 0, judged, _DENSE)[:, 0]
    shares = {share: gained(held, parts, share, judged, _DENSE)[:, 0] for share in SHARES}
    # Stable: of equal ones the greater change comes last.
    for share in sorted(SHARES, key=lambda share: -float(shares[share].mean())):
        after = _Utilities.of(held, parts, share, judged, guarded, weights)
        allowed = after.not_below(before, base)
        place = after.choose(allowed if allowed.any() else after.everywhere())
        compared = (
            Compared.of(f"dense, {judged.name}", dense, shares[share]),
            Compared.of(f"hybrid, {judged.name}", before.judged[:, base], after.judged[:, place]),
            *_costs(held, parts, share, guarded),
            *after.cost(before, base, place),
        )
        helps = compared[1].gain > compared[1].error
        kept = bool(allowed.any()) and helps and all(one.gain >= -TOLERATED for one in compared)
        means = tuple(np.round(after.judged.mean(axis=0), 6).tolist())
        verdict = Verdict(kept, share, compared, weights[place], means, len(after.judged), judged.name)
        if kept or guarded is None:
            break
    return verdict


def _costs(held: Held, parts: Sequence[Fold], share: float, guarded: Objective | None) -> list[Compared]:
    if guarded is None:
        return []
    before, after = (gained(held, parts, one, guarded, _DENSE)[:, 0] for one in (0, share))
    return [Compared.of(f"dense, {guarded.name}", before, after)]


@dataclass(frozen=True)
class _Utilities:
    """The utilities at each weight, shape (examples, weights)."""

    weights: Sequence[float]
    judged: NDArray[np.float64]
    guarded: NDArray[np.float64] | None
    name: str

    @classmethod
    def of(
        cls,
        held: Held,
        parts: Sequence[Fold],
        share: float,
        judged: Objective,
        guarded: Objective | None,
        weights: Sequence[float],
    ) -> _Utilities:
        watched = None if guarded is None else gained(held, parts, share, guarded, weights)
        name = "" if guarded is None else guarded.name
        return cls(weights, gained(held, parts, share, judged, weights), watched, name)

    def everywhere(self) -> NDArray[np.bool_]:
        return np.ones(len(self.weights), dtype=np.bool_)

    def choose(self, allowed: NDArray[np.bool_]) -> int:
        return 0 if len(self.weights) == 1 else GRID.index(best_weight(self.judged, allowed))

    def not_below(self, before: _Utilities, base: int) -> NDArray[np.bool_]:
        """The weights at which what is guarded is not below what it was."""
        if self.guarded is None or before.guarded is None:
            return self.everywhere()
        allowed: NDArray[np.bool_] = self.guarded.mean(axis=0) >= before.guarded[:, base].mean() - TOLERATED
        return allowed

    def cost(self, before: _Utilities, base: int, place: int) -> list[Compared]:
        if self.guarded is None or before.guarded is None:
            return []
        return [Compared.of(f"hybrid, {self.name}", before.guarded[:, base], self.guarded[:, place])]
