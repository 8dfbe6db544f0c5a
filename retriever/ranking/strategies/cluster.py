"""Clusters: one demonstration of each kind (Auto-CoT, Zhang et al. 2023; KQG-CoT+, Liang et al. 2023).

The candidates, or a whole pool, are split by k-means; from each cluster the one nearest to its centre is taken.
Auto-CoT takes only short and simple examples (`simple`); KQG-CoT+ sorts what it took by complexity (`complexities`).
The result depends on the vectors, their order and the seed alone; see `kmeans`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.complexity import complexities_of, steps
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.kmeans import Clusters, kmeans
from retriever.ranking.strategies.picks import NONE, Picks, Reals, check_k, check_range, first_best, picks


def simple(
    inputs: Sequence[str], rationales: Sequence[str | None], *, words: int = 60, most: int = 5
) -> NDArray[np.bool_]:
    """Which examples Auto-CoT would take: at most 60 words of input and at most 5 steps of rationale.

    Raises:
        InvalidInput: There are not as many inputs as rationales.
    """
    if len(inputs) != len(rationales):
        raise InvalidInput(f"{len(inputs)} inputs", expected=f"{len(rationales)}, one for each rationale")
    pairs = zip(inputs, rationales, strict=True)
    return np.array([len(text.split()) <= words and steps(why or "") <= most for text, why in pairs], dtype=np.bool_)


def cluster(
    vectors: NDArray[np.float32],
    k: int,
    *,
    clusters: int | None = None,
    seed: int = 0,
    eligible: NDArray[np.bool_] | None = None,
    complexities: Reals | None = None,
) -> Picks:
    """Picks from every cluster, the nearest to its centre first.

    Clusters are served in the order of their best members. After one round comes the next nearest of each, until k are
    chosen. Candidates that are not eligible come after all that are.

    Args:
        vectors: Unit or zero vectors, shape (m, d).
        k: How many, at most.
        clusters: How many clusters, at least 1; None for k.
        seed: Seeds the clustering, 0 or more.
        eligible: Which candidates are preferred, shape (m,); None for all.
        complexities: When given, the picks are sorted by it, the most complex first, shape (m,). In a prompt whose
            order is best-last they then go from simple to complex.

    Returns:
        The picks. A gain is minus the squared distance to the centre. `against` is the first pick of the same cluster,
        none for that one itself.

    Raises:
        InvalidInput: A shape, vector or setting that cannot be used.
    """
    check_k(k)
    check_range("seed", seed, 0, 2**128 - 1)
    if clusters is not None:
        check_range("clusters", clusters, 1, 1_000_000)
    for name, column in (("eligible", eligible), ("complexities", complexities)):
        if column is not None and column.shape != (len(vectors),):
            raise InvalidInput(f"{name} of shape {column.shape}", expected=f"({len(vectors)},)")
    if complexities is not None and not np.isfinite(complexities).all():
        raise InvalidInput("complexities that are not finite", expected="finite numbers")
    grid, squares = exact_vectors(vectors)
    count = min(k, len(grid))
    if count == 0:
        return picks([], [], [])
    parts = kmeans(grid, squares, min(clusters or k, len(grid)), seed)
    preferred = np.ones(len(grid), dtype=np.bool_) if eligible is None else eligible
    chosen = _in_rounds(parts, preferred, count)
    first = {int(parts.members[place]): place for place in reversed(chosen)}
    if complexities is not None:
        chosen.sort(key=lambda place: (-complexities[place], place))
    leaders = [first[int(parts.members[place])] for place in chosen]
    against = [NONE if leader == place else leader for place, leader in zip(chosen, leaders, strict=True)]
    return picks(chosen, (-parts.distances[chosen]).tolist(), against)


def _in_rounds(parts: Clusters, preferred: NDArray[np.bool_], count: int) -> list[int]:
    """The first `count` candidates, round by round, the preferred ones before all others."""
    chosen: list[int] = []
    for free in (preferred.copy(), ~preferred):
        while free.any():
            for number in range(len(parts.centres)):
                mine = free & (parts.members == number)
                if len(chosen) == count:
                    return chosen
                if mine.any():
                    chosen.append(first_best(np.where(mine, -parts.distances, -np.inf)))
                    free[chosen[-1]] = False
    return chosen


@dataclass(frozen=True)
class ClusterOptions:
    """See `cluster`.

    Attributes:
        clusters: How many; None for k.
        seed: Seeds the clustering.
        simple: Whether examples that are short and simple are preferred (Auto-CoT).
        by_complexity: Whether the picks are sorted by complexity (KQG-CoT+).
    """

    clusters: int | None = None
    seed: int = 0
    simple: bool = False
    by_complexity: bool = False

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**128 - 1)
        if self.clusters is not None:
            check_range("clusters", self.clusters, 1, 1_000_000)


def _pick(candidates: Candidates, k: int, options: ClusterOptions) -> Picks:
    eligible = None
    if options.simple:
        examples = candidates.examples
        eligible = simple([one.input_text for one in examples], [one.rationale for one in examples])
    return cluster(
        candidates.vectors,
        k,
        clusters=options.clusters,
        seed=options.seed,
        eligible=eligible,
        complexities=complexities_of(candidates.examples) if options.by_complexity else None,
    )


CLUSTER = Strategy(pick=_pick, options=ClusterOptions, blind=True, ranked=False)
