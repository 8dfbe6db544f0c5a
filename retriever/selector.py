"""The selector: from queries to selections, over one snapshot."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from indexes.channels import ChannelScores, Fusion, Query
from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.filters import Filters
from retriever.ranking.guard import LEVELS, Guard, leak
from retriever.ranking.pipeline import Check, Lookup, Ranked, Rows, rank
from retriever.ranking.recipe import Options, Part, Recipe
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import strategy
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.fixed import FixedOptions
from retriever.rescoring import Rescorer
from retriever.selection import Demonstration, Dropped, Selection, channel_scores
from retriever.snapshot import Snapshot

_BLOCK_BYTES = 128 << 20
_BYTES_PER_SCORE = 4
MAX_BLOCK = 256
"""Queries that are embedded at once."""
_TOGETHER = 64
"""Queries whose examples are read together."""
_KEPT = 64
"""Shared blocks that are remembered."""
MOST_SHARED = 20_000
"""Rows that a shared block is chosen from, where the strategy compares them; of a larger pool a seeded sample."""

_NO_TERMS = "no term of the query is in the pool: ranked by the dense channel alone"
_NO_VECTOR = "the query's text has no vector: ranked by the lexical channel alone"
_NO_MORE = "the pool, the filters and the guard leave no more"
_SILENT = "neither channel knows anything of the query"
_FIRST = f"{_SILENT}: the demonstrations are the first ones of the pool"

_SINGLE = (str, int, float, bool, type(None))
_Asked = tuple[tuple[str, type, object], ...]
"""Options, each with the type of its value."""

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]
"""From key texts of queries to their vectors, float32, shape (texts, dim)."""


class Selector:
    """Answers queries from one snapshot. Safe to use from several threads.

    Args:
        snapshot: The view of the pool.
        embed: Gives the vectors of queries.
        rescorer: Reads the texts of candidates again, for recipes that ask for it.
    """

    def __init__(self, snapshot: Snapshot, embed: Vectors, rescorer: Rescorer) -> None:
        self.snapshot = snapshot
        self._embed = embed
        self._rescorer = rescorer
        self._filters = Filters(snapshot)
        # Most selections are asked for as the one before was.
        self._last_asked: tuple[Recipe, _Asked, Recipe] = Recipe(), (), Recipe()
        self._last_filled = Recipe(), Recipe()
        self._shared: dict[str, Rows] = {}
        self._sharing = threading.Lock()

    @cached_property
    def block(self) -> int:
        """How many queries are scored at once; more rows make it fewer, so that memory stays bounded."""
        return max(1, min(MAX_BLOCK, _BLOCK_BYTES // (_BYTES_PER_SCORE * max(1, len(self.snapshot.rows)))))

    @cached_property
    def recipe(self) -> Recipe:
        """The index's default recipe.

        Raises:
            InvalidInput: It names a strategy of a package that is not installed.
        """
        return Recipe.of(self.snapshot.base.recipe)

    def with_options(self, recipe: Recipe, options: Options) -> Recipe:
        """The recipe with some keys changed, as `Recipe.with_options` gives it; the last one is kept.

        Raises:
            InvalidInput: An unknown option, or a value of the wrong type or out of range.
        """
        # 1, 1.0 and True are equal, but not all of them are right; what is no single value may change in place.
        asked: _Asked = tuple((name, type(value), value) for name, value in options.items())
        if not all(kind in _SINGLE for _, kind, _ in asked):
            return recipe.with_options(options)
        before, last, found = self._last_asked
        if before is not recipe or last != asked:
            found = recipe.with_options(options)
            self._last_asked = recipe, asked, found
        return found

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of the pool, sorted."""
        return tuple(sorted({label for _, example in self.snapshot.present() for label in example.labels}))

    def select(
        self, queries: Sequence[Example], recipe: Recipe, vectors: NDArray[np.float32] | None = None
    ) -> Iterator[Selection]:
        """The selections for a few hundred queries, in their order.

        They are embedded all at once, and scored in blocks that keep the memory bounded. To score one block while the
        demonstrations of another are chosen gained nothing on two cores: both are busy already.

        Args:
            queries: The queries.
            recipe: The settings.
            vectors: The vectors of the queries' keys, shape (queries, dim), when they are known already.
        """
        recipe = self._filled(recipe)
        ranked = (
            self._rank(one, recipe, self._check(one.query, recipe)) for one in self._scored(queries, recipe, vectors)
        )
        while some := list(islice(ranked, _TOGETHER)):
            yield from self._told(some, recipe)

    def select_each(self, queries: Sequence[Example], recipes: Sequence[Recipe]) -> Iterator[tuple[Selection, ...]]:
        """For each of a few hundred queries its selection by each recipe, the same as `select` gives.

        Queries are embedded and scored once for all recipes that differ only in what comes after, and a row that the
        guard has looked at is not looked at again.
        """
        filled = [self._filled(recipe) for recipe in recipes]
        alike: dict[str, list[int]] = {}
        for place, recipe in enumerate(filled):
            # A lexical selection is scored without vectors, so that no strategy sees them either; and where a FAISS
            # index proposes, a dense one without what the lexical channel proposes.
            mode = recipe.retrieve.mode
            scored_alike = mode if mode == "lexical" or self.snapshot.index.dense.ann is not None else ""
            what = [asdict(recipe.filter), scored_alike, _leaves_itself_out(recipe)]
            alike.setdefault(json.dumps(what), []).append(place)
        groups = list(alike.values())
        for of_query in zip(*(self._scored(queries, filled[group[0]], None) for group in groups), strict=True):
            made: dict[int, Selection] = {}
            checks: dict[Guard, Check | None] = {}
            for group, one in zip(groups, of_query, strict=True):
                for place in group:
                    recipe = filled[place]
                    if recipe.guard not in checks:
                        checks[recipe.guard] = _remembered(self._check(one.query, recipe))
                    [made[place]] = self._told([self._rank(one, recipe, checks[recipe.guard])], recipe)
            yield tuple(made[place] for place in range(len(filled)))

    def _scored(
        self, queries: Sequence[Example], recipe: Recipe, vectors: NDArray[np.float32] | None
    ) -> Iterator[_Scored]:
        """The queries with the scores of what the recipe lets them have."""
        texts = [self.snapshot.key.text(query) for query in queries]
        terms = [self.snapshot.analyze(text) for text in texts]
        vectors = self._vectors(texts, terms, recipe, vectors)
        given = [Query(vector, tuple(one)) for vector, one in zip(vectors, terms, strict=True)]
        own = self._own_places(queries, recipe)
        excluded = list(self.snapshot.places_of(recipe.filter.exclude).values())

        for start in range(0, len(queries), self.block):
            block = slice(start, start + self.block)
            masks = [
                self._filters.eligible(query, recipe.filter, [*excluded, *([] if at is None else [at])])
                for query, at in zip(queries[block], own[block], strict=True)
            ]
            scored = self.snapshot.index.score(given[block], masks, mode=recipe.retrieve.mode)
            yield from map(_Scored, queries[block], own[block], scored)

    def _filled(self, recipe: Recipe) -> Recipe:
        """The recipe with the calibrated weight and every default filled in, so that what is stored says all."""
        before, filled = self._last_filled
        if before is not recipe:
            weight = self.snapshot.base.weight if recipe.retrieve.weight is None else recipe.retrieve.weight
            filled = replace(recipe, retrieve=replace(recipe.retrieve, weight=weight)).filled()
            self._last_filled = recipe, filled
        return filled

    def query_vectors(self, queries: Sequence[Example]) -> NDArray[np.float32]:
        """The vectors of the queries' key texts, float32, shape (queries, dim)."""
        return self._embed([self.snapshot.key.text(query) for query in queries])

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
            given = self.snapshot.base.moved(known)
            return np.where(np.array(wanted)[:, np.newaxis], given, np.float32(0))
        vectors = np.zeros((len(texts), self.snapshot.dim), dtype=np.float32)
        if any(wanted):
            asked = self._embed([text for text, one in zip(texts, wanted, strict=True) if one])
            vectors[wanted] = self.snapshot.base.moved(asked)
        return vectors

    def _own_places(self, queries: Sequence[Example], recipe: Recipe) -> list[int | None]:
        """Where the queries themselves stand in the pool, if they do and the guard is to leave them out."""
        if not _leaves_itself_out(recipe):
            return [None] * len(queries)
        places = self.snapshot.places_of([query.id for query in queries])
        return [places.get(query.id) for query in queries]

    def check_ids(self, ids: Sequence[str]) -> None:
        """Refuses ids of examples that are not in the pool.

        Raises:
            InvalidInput: There is one.
        """
        self._named(ids)

    def _named(self, ids: Sequence[str]) -> Rows:
        """The rows of examples by their ids, once each.

        Raises:
            InvalidInput: One is not in the pool.
        """
        ids = tuple(dict.fromkeys(ids))
        places = self.snapshot.places_of(ids)
        for identity in ids:
            if identity not in places:
                raise InvalidInput(f"fixed example {identity!r}", expected="the id of an example in the pool")
        return np.array([places[identity] for identity in ids], dtype=np.int64)

    def _shared_rows(self, part: Part, recipe: Recipe) -> Rows:
        """The rows of a part that all queries share, in the order in which they were chosen."""
        conditions = json.dumps([asdict(part), recipe.filter.where, recipe.filter.exclude, recipe.select.seed])
        with self._sharing:
            if conditions not in self._shared:
                if len(self._shared) >= _KEPT:
                    self._shared.clear()
                self._shared[conditions] = self._choose_shared(part, recipe)
            return self._shared[conditions]

    def _choose_shared(self, part: Part, recipe: Recipe) -> Rows:
        settings, nobody = part.settings(), Example(id="", input="")
        method = strategy(part.strategy)
        if isinstance(settings, FixedOptions):
            rows = self._named(settings.ids)
        else:
            excluded = list(self.snapshot.places_of(recipe.filter.exclude).values())
            mask = self._filters.eligible(nobody, replace(recipe.filter, match=()), excluded)
            eligible = np.ones(len(self.snapshot.rows), dtype=np.bool_) if mask is None else mask
            if self.snapshot.alive is not None:
                eligible = eligible & self.snapshot.alive
            order = permutation(len(eligible), recipe.select.seed, "", "shared")
            rows = order[eligible[order]]
            if method.shuffled_by(settings, "") is None:
                rows = np.sort(rows[:MOST_SHARED])
        reader = _Reader(self.snapshot, self._rescorer, nobody, np.zeros(self.snapshot.dim, dtype=np.float32), ())
        candidates = Candidates(rows, np.zeros(len(rows)), reader)
        return rows[method.pick(candidates, part.k, settings).places]

    def _rank(self, one: _Scored, recipe: Recipe, check: Check | None) -> _Ranked:
        retrieve = recipe.retrieve
        assert retrieve.weight is not None
        asked = one.scores.query
        ranked = rank(
            self.snapshot.index,
            one.scores,
            recipe,
            fusion=Fusion(retrieve.mode, retrieve.weight, retrieve.rule, retrieve.rrf_k),
            lookup=Lookup(
                _Reader(self.snapshot, self._rescorer, one.query, asked.vector, asked.terms),
                self._named,
                lambda part: self._shared_rows(part, recipe),
                lambda rows: self._rescorer.scores(recipe.rerank, one.query, rows),
            ),
            check=check,
        )
        itself = [] if one.own is None else [(one.own, "the query itself")]
        left_out = [*itself, *sorted(ranked.blocked.items()), *sorted(ranked.barred.items())]
        notes = _notes(one.scores, ranked, recipe)
        if len(ranked.choices) < recipe.select.k:
            notes += tuple(f"no example has a field {path!r}" for path in self._filters.unknown(recipe.filter.where))
        return _Ranked(one.query, ranked, left_out, len(one.scores.eligible), notes)

    def _told(self, some: Sequence[_Ranked], recipe: Recipe) -> Iterator[Selection]:
        """The selections of some queries; their examples are read all at once, one that several have only once."""
        wanted = dict.fromkeys(choice.row for one in some for choice in one.ranked.choices)
        wanted.update(dict.fromkeys(row for one in some for row, _ in one.left_out))
        examples = dict(zip(wanted, self.snapshot.examples(list(wanted)), strict=True))
        for one in some:
            open_variance = one.ranked.open_variance
            yield Selection(
                one.query,
                _demonstrations(one.ranked, examples),
                tuple(Dropped(examples[row].id, reason) for row, reason in one.left_out),
                one.eligible,
                recipe,
                self.snapshot.base.generation.name,
                self.snapshot.revision.number,
                one.notes,
                None if open_variance is None else 1.0 - open_variance,
            )

    def _check(self, query: Example, recipe: Recipe) -> Check | None:
        """The guard as a test of rows; None when it looks at nothing but the query's own id."""
        guard = recipe.guard
        if guard.group is None and LEVELS.index(guard.level) <= LEVELS.index("self"):
            return None
        return lambda rows: [leak(query, example, guard) for example in self.snapshot.examples(rows)]


@dataclass(frozen=True)
class _Scored:
    """A query, where it stands in the pool itself if the guard is to leave it out, and its scores."""

    query: Example
    own: int | None
    scores: ChannelScores


@dataclass(frozen=True)
class _Ranked:
    """A query and what was chosen for it; without the scores of all rows, so that many may be held.

    Attributes:
        query: The query.
        ranked: What was chosen.
        left_out: Rows that were left out, each with the reason.
        eligible: How many rows there were to choose from.
        notes: What a reader should know.
    """

    query: Example
    ranked: Ranked
    left_out: Sequence[tuple[int, str]]
    eligible: int
    notes: tuple[str, ...]


def _demonstrations(ranked: Ranked, examples: Mapping[int, Example]) -> tuple[Demonstration, ...]:
    channels = channel_scores(ranked.hits, [choice.rescored for choice in ranked.choices])
    return tuple(
        Demonstration(
            examples[choice.row],
            place,
            scores["fused"] if choice.relevance is None else choice.relevance,
            scores,
            choice.origin,
            choice.gain,
            None if choice.against is None else examples[choice.against].id,
            choice.shared,
            choice.breaks,
        )
        for place, (choice, scores) in enumerate(zip(ranked.choices, channels, strict=True), start=1)
    )


def _leaves_itself_out(recipe: Recipe) -> bool:
    """Whether the guard leaves out the example with the query's own id."""
    return LEVELS.index(recipe.guard.level) >= LEVELS.index("self")


def _remembered(check: Check | None) -> Check | None:
    """The same test, which looks at each row once."""
    if check is None:
        return None
    known: dict[int, str | None] = {}

    def look(rows: Rows) -> list[str | None]:
        new = [row for row in rows.tolist() if row not in known]
        if new:
            known.update(zip(new, check(np.array(new, dtype=np.int64)), strict=True))
        return [known[row] for row in rows.tolist()]

    return look


def _notes(scores: ChannelScores, ranked: Ranked, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if not scores.dense_speaks and not scores.lexical_speaks:
        ranks = len(ranked.choices) > 0 and recipe.select.last.by_relevance
        notes.append(_FIRST if ranks else _SILENT)
    elif not scores.lexical_speaks and recipe.retrieve.mode != "dense":
        notes.append(_NO_TERMS)
    elif not scores.dense_speaks and recipe.retrieve.mode != "lexical":
        notes.append(_NO_VECTOR)
    chosen = len(ranked.choices)
    if chosen < recipe.select.k and recipe.select.strategy != "fixed":
        fewer = "this is enough, as the recipe has it" if _may_be_few(recipe) else _NO_MORE
        notes.append(f"{chosen} of {recipe.select.k}: {fewer}")
    filled = sum(bool(choice.breaks) for choice in ranked.choices)
    if filled:
        notes.append(f"{filled} of {chosen} break a constraint: nothing else was left to fill up with")
    notes += [f"a constraint cannot be kept: {unmet}" for unmet in ranked.unmet]
    return tuple(notes)


def _may_be_few(recipe: Recipe) -> bool:
    """Whether the recipe asks for fewer than k where fewer are enough."""
    return recipe.adaptive.by != "none" or recipe.select.strategy == "sift"


@dataclass(frozen=True)
class _Reader:
    """What strategies may read, over a snapshot; see `retriever.ranking.strategies.base.Reader`."""

    snapshot: Snapshot
    rescorer: Rescorer
    query: Example
    query_vector: NDArray[np.float32]
    query_terms: Sequence[str]

    def cosines(self, rows: Rows) -> NDArray[np.float64]:
        return self.snapshot.index.dense.exact(rows, self.query_vector)

    def vectors(self, rows: Rows) -> NDArray[np.float32]:
        return self.snapshot.index.dense.vectors(rows)

    def recall(self, rows: Rows) -> NDArray[np.float64]:
        return self.rescorer.recall(self.query, rows)

    def examples(self, rows: Rows) -> list[Example]:
        return self.snapshot.examples(rows)

    def terms(self, examples: Sequence[Example]) -> list[list[str]]:
        return [self.snapshot.analyze(self.snapshot.key.text(example)) for example in examples]
