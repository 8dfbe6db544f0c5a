"""The selector: from queries to selections, over one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexes.hybrid import ChannelScores, Fusion, Query
from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.filters import Filters
from retriever.ranking.guard import LEVELS, leak
from retriever.ranking.pipeline import Check, Ranked, Rows, rank
from retriever.ranking.recipe import Recipe
from retriever.selection import Demonstration, Dropped, Selection, channel_scores
from retriever.snapshot import Snapshot

_BLOCK_BYTES = 64 << 20
_BYTES_PER_SCORE = 12
MAX_BLOCK = 256

_NO_TERMS = "no term of the query is in the pool: ranked by the dense channel alone"
_NO_VECTOR = "the query's text has no vector: ranked by the lexical channel alone"
_SILENT = "neither channel knows anything of the query: the demonstrations are the first ones of the pool"

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]
"""From key texts of queries to their vectors, float32, shape (texts, dim)."""


class Selector:
    """Answers queries from one snapshot. Safe to use from several threads.

    Args:
        snapshot: The view of the pool.
        embed: Gives the vectors of queries.
    """

    def __init__(self, snapshot: Snapshot, embed: Vectors) -> None:
        self.snapshot = snapshot
        self._embed = embed
        self._filters = Filters(snapshot)

    @cached_property
    def block(self) -> int:
        """How many queries are scored at once; more rows make it fewer, so that memory stays bounded."""
        return max(1, min(MAX_BLOCK, _BLOCK_BYTES // (_BYTES_PER_SCORE * max(1, len(self.snapshot.rows)))))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the pool, sorted."""
        return tuple(sorted({label for _, example in self.snapshot.present() for label in example.labels}))

    def select(
        self, queries: Sequence[Example], recipe: Recipe, vectors: NDArray[np.float32] | None = None
    ) -> list[Selection]:
        """The selections for a block of queries.

        Args:
            queries: At most `block` of them, to keep the memory bounded.
            recipe: The settings.
            vectors: The vectors of the queries' keys, shape (queries, dim), when they are known already.
        """
        recipe = self._with_weight(recipe)
        texts = [self.snapshot.key.text(query) for query in queries]
        terms = [self.snapshot.analyze(text) for text in texts]
        vectors = self._vectors(texts, terms, recipe, vectors)
        given = [Query(vector, tuple(one)) for vector, one in zip(vectors, terms, strict=True)]
        own = self._own_places(queries, recipe)
        excluded = list(self.snapshot.places_of(recipe.filter.exclude).values())
        fixed = self._fixed(recipe)
        masks = [
            self._filters.eligible(query, recipe.filter, [*excluded, *([] if at is None else [at])])
            for query, at in zip(queries, own, strict=True)
        ]
        scored = self.snapshot.index.score(given, masks)
        return [
            self._select_one(query, scores, recipe, fixed, at)
            for query, scores, at in zip(queries, scored, own, strict=True)
        ]

    def _with_weight(self, recipe: Recipe) -> Recipe:
        """The recipe with the calibrated weight filled in, so that what is stored says all."""
        if recipe.retrieve.weight is not None:
            return recipe
        return recipe.with_options({"weight": self.snapshot.base.weight})

    def _vectors(
        self,
        texts: Sequence[str],
        terms: Sequence[Sequence[str]],
        recipe: Recipe,
        known: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """The vectors of the queries; in lexical mode only of those that the lexical channel knows nothing of."""
        lexical = self.snapshot.index.lexical
        wanted = [recipe.retrieve.mode != "lexical" or not lexical.knows(one) for one in terms]
        if known is not None:
            return np.where(np.array(wanted)[:, np.newaxis], known, np.float32(0))
        vectors = np.zeros((len(texts), self.snapshot.dim), dtype=np.float32)
        if any(wanted):
            vectors[wanted] = self._embed([text for text, one in zip(texts, wanted, strict=True) if one])
        return vectors

    def _own_places(self, queries: Sequence[Example], recipe: Recipe) -> list[int | None]:
        """Where the queries themselves stand in the pool, if they do and the guard is to leave them out."""
        if LEVELS.index(recipe.guard.level) < LEVELS.index("self"):
            return [None] * len(queries)
        places = self.snapshot.places_of([query.id for query in queries])
        return [places.get(query.id) for query in queries]

    def _fixed(self, recipe: Recipe) -> Rows:
        ids = tuple(dict.fromkeys(recipe.select.fixed))
        places = self.snapshot.places_of(ids)
        for identity in ids:
            if identity not in places:
                raise InvalidInput(f"fixed example {identity!r}", expected="the id of an example in the pool")
        return np.array([places[identity] for identity in ids], dtype=np.int64)

    def _select_one(
        self, query: Example, scores: ChannelScores, recipe: Recipe, fixed: Rows, own: int | None
    ) -> Selection:
        retrieve = recipe.retrieve
        assert retrieve.weight is not None
        fusion = Fusion(retrieve.mode, retrieve.weight, retrieve.rule, retrieve.rrf_k)
        ranked = rank(
            self.snapshot.index,
            scores,
            recipe,
            fusion=fusion,
            fixed=fixed,
            check=self._check(query, recipe),
            query_id=query.id,
        )
        dropped = [*([] if own is None else [(own, "the query itself")]), *sorted(ranked.blocked.items())]
        examples = self.snapshot.examples([place for place, _ in dropped])
        return Selection(
            query,
            self._demonstrations(ranked, recipe),
            tuple(Dropped(example.id, reason) for example, (_, reason) in zip(examples, dropped, strict=True)),
            len(scores.rows),
            recipe,
            self.snapshot.base.generation.name,
            self.snapshot.revision.number,
            _notes(scores, len(ranked.hits), recipe),
        )

    def _demonstrations(self, ranked: Ranked, recipe: Recipe) -> tuple[Demonstration, ...]:
        hits = ranked.hits
        return tuple(
            Demonstration(
                example,
                i + 1,
                float(hits.fused[i]),
                channel_scores(float(hits.dense[i]), float(hits.lexical[i]), float(hits.fused[i])),
                "fixed" if i < ranked.fixed else recipe.select.strategy,
            )
            for i, example in enumerate(self.snapshot.examples(hits.rows))
        )

    def _check(self, query: Example, recipe: Recipe) -> Check | None:
        """The guard as a test of rows; None when it looks at nothing but the query's own id."""
        guard = recipe.guard
        if guard.group is None and LEVELS.index(guard.level) <= LEVELS.index("self"):
            return None
        return lambda rows: [leak(query, example, guard) for example in self.snapshot.examples(rows)]


def _notes(scores: ChannelScores, chosen: int, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if not scores.dense_speaks and not scores.lexical_speaks:
        notes.append(_SILENT)
    elif not scores.lexical_speaks and recipe.retrieve.mode != "dense":
        notes.append(_NO_TERMS)
    elif not scores.dense_speaks and recipe.retrieve.mode != "lexical":
        notes.append(_NO_VECTOR)
    if chosen < recipe.select.k and recipe.select.strategy != "fixed":
        notes.append(f"{chosen} of {recipe.select.k}: the pool, the filters and the guard leave no more")
    return tuple(notes)
