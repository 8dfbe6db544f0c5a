"""The map: a sample of the pool, of the queries, and all that was chosen for these, in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retriever.evaluation.report.projection import MOST_ROWS, Projection, principal_axes
from retriever.example import Example
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies.picks import Integers, Reals
from retriever.retriever import Retriever
from retriever.selection import Selection
from retriever.snapshot import Snapshot

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
        shares: Of the variance, how much each axis holds.
        fitted: How many examples the axes were found from.
    """

    examples: Sequence[Example]
    places: Reals
    chosen: Sequence[int]
    queries: Sequence[Asked]
    shares: tuple[float, float]
    fitted: int


def map_of(
    retriever: Retriever,
    given: Sequence[Example],
    selections: Sequence[Selection],
    examples: int,
    queries: int,
    seed: int,
) -> Map:
    """The map of an index and of queries with their selections.

    Args:
        retriever: The index.
        given: The queries.
        selections: What was chosen for each.
        examples: How many examples are sampled; what was chosen for the queries that are shown comes on top.
        queries: How many queries are sampled.
        seed: Of the samples.
    """
    snapshot = retriever.snapshot
    alive = np.arange(len(snapshot.rows)) if snapshot.alive is None else np.flatnonzero(snapshot.alive)
    shuffled = alive[permutation(len(alive), seed, "", "map")]
    fitted = np.sort(shuffled[:MOST_ROWS])
    projection = principal_axes(snapshot.index.dense.vectors(fitted))
    asked = np.sort(permutation(len(given), seed, "", "map queries")[:queries]).tolist()
    picked = snapshot.places_of(list({one: None for place in asked for one in selections[place].ids[:MOST_PICKS]}))
    shown = np.union1d(shuffled[:examples], np.array(list(picked.values()), dtype=np.int64))
    found = snapshot.examples(shown)
    number = {example.id: place for place, example in enumerate(found)}
    counts = Counter(identity for one in selections for identity in one.ids)
    where = projection.of(retriever.query_vectors([given[place] for place in asked]))
    return Map(
        found,
        _places(snapshot, projection, shown),
        [counts[example.id] for example in found],
        [
            Asked(
                given[place],
                (float(where[row, 0]), float(where[row, 1])),
                tuple(number[identity] for identity in selections[place].ids[:MOST_PICKS]),
            )
            for row, place in enumerate(asked)
        ],
        projection.shares,
        len(fitted),
    )


def _places(snapshot: Snapshot, projection: Projection, rows: Integers) -> Reals:
    return projection.of(snapshot.index.dense.vectors(rows))
