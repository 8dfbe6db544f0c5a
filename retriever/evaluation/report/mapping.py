"""The map: a sample of the pool, of the queries, and all that was chosen for these, in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retriever.evaluation.report.projection import MOST_ROWS, principal_axes, umap_places
from retriever.example import Example
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies.picks import Reals
from retriever.retriever import Retriever
from retriever.selection import Selection

MOST_PICKS = 8
"""Choices of a query that the map shows, the best."""


@dataclass(frozen=True)
class Asked:
    """A query on the map.

    Attributes:
        query: With its true output and labels.
        place: Where it lies.
        picks: Its choices as numbers of the map's examples, best first.
    """

    query: Example
    place: tuple[float, float]
    picks: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """The pool in two dimensions.

    Attributes:
        examples: Those that are shown.
        places: Where they lie, shape (examples, 2).
        chosen: How often each is chosen by all queries.
        queries: Those that are shown.
        method: `pca`, or `umap`; what it was made by.
        shares: Of the variance, how much each axis holds; zeros for UMAP, whose axes mean nothing.
        fitted: How many examples the axes were found from, or are laid out.
    """

    examples: Sequence[Example]
    places: Reals
    chosen: Sequence[int]
    queries: Sequence[Asked]
    method: str
    shares: tuple[float, float]
    fitted: int


def map_of(
    retriever: Retriever,
    given: Sequence[Example],
    selections: Sequence[Selection],
    examples: int,
    queries: int,
    seed: int,
    method: str,
) -> Map:
    """The map of an index and of queries with their selections.

    Args:
        retriever: The index.
        given: The queries.
        selections: What was chosen for each.
        examples: How many examples are sampled; what was chosen for the queries that are shown comes on top.
        queries: How many queries are sampled.
        seed: Of the samples, and of the layout.
        method: `pca`, or `umap`, which is `pca` where UMAP finds nothing to lay out.
    """
    snapshot = retriever.snapshot
    live = snapshot.live
    shuffled = live[permutation(len(live), seed, "", "map")]
    asked = np.sort(permutation(len(given), seed, "", "map queries")[:queries]).tolist()
    picked = snapshot.places_of(list({one: None for place in asked for one in selections[place].ids[:MOST_PICKS]}))
    shown = np.union1d(shuffled[:examples], np.array(list(picked.values()), dtype=np.int64))
    found = snapshot.examples(shown)
    number = {example.id: place for place, example in enumerate(found)}
    counts = Counter(identity for one in selections for identity in one.ids)
    together = np.concatenate(
        [snapshot.index.dense.vectors(shown), retriever.query_vectors([given[place] for place in asked])]
    )
    laid_out = umap_places(together, seed) if method == "umap" else None
    if laid_out is not None:
        placed, shares, fitted = laid_out, (0.0, 0.0), len(shown)
    else:
        rows = np.sort(shuffled[:MOST_ROWS])
        axes = principal_axes(snapshot.index.dense.vectors(rows))
        placed, shares, fitted = axes.of(together), axes.shares, len(rows)
    of_queries = placed[len(shown) :]
    return Map(
        examples=found,
        places=placed[: len(shown)],
        chosen=[counts[example.id] for example in found],
        queries=[
            Asked(
                given[place],
                (float(of_queries[row, 0]), float(of_queries[row, 1])),
                tuple(number[identity] for identity in selections[place].ids[:MOST_PICKS]),
            )
            for row, place in enumerate(asked)
        ],
        method="pca" if laid_out is None else "umap",
        shares=shares,
        fitted=fitted,
    )
