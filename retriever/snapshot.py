"""Snapshot: one consistent view of an index, from which queries are answered.

A snapshot is the current generation plus what the pool recorded since: additions form a tail that is searched beside
the generation's own rows, removals are masked and taken out of the statistics. So its answers are those of an index
built afresh from the same examples, and a change costs what the change is worth. Snapshots are never modified;
`advanced` makes the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import Analyzer, analyzer
from indexes.dense import AnnIndex, DenseIndex, Segment, check_vectors
from indexes.generation import Generation
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25Index, Postings, RankBM25Index, check_postings
from indexes.vocabulary import Vocabulary
from retriever.errors import IndexCorrupt, InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Example
from retriever.keys import Key
from retriever.pool import Changes, Pool
from retriever.settings import IndexSettings

Rows: TypeAlias = NDArray[np.int64]

_TAIL_CHUNK = 512


@dataclass(frozen=True)
class Base:
    """What a generation holds, checked and ready to search.

    Attributes:
        generation: The generation.
        settings: How it was built.
        rows: The pool's row number of each row, ascending, int64, shape (rows,).
        vectors: The dense channel's rows.
        postings: The lexical channel's.
        ann: The FAISS index, when there is one.
        revision: The revision of the pool that it was derived from.
        weight: The calibrated fusion weight.
    """

    generation: Generation
    settings: IndexSettings
    rows: Rows
    vectors: Segment
    postings: Postings
    ann: AnnIndex | None
    revision: int
    weight: float

    @classmethod
    def load(cls, generation: Generation, *, verify: bool = True) -> Base:
        """From a generation whose files match its manifest.

        Args:
            generation: The generation.
            verify: Whether to look at every vector and posting; `False` trusts what was published.

        Raises:
            IndexCorrupt: The files contradict each other.
        """
        try:
            base = _parse(generation)
            if verify:
                check_vectors(base.vectors.vectors, "vectors")
                check_postings(base.postings)
            if not len(base.rows) == len(base.vectors) == len(base.postings) or (np.diff(base.rows) <= 0).any():
                raise InvalidInput(
                    f"{len(base.rows)} rows, {len(base.vectors)} vectors, {len(base.postings)} documents",
                    expected="as many of each, rows ascending",
                )
        except (InvalidInput, KeyError, TypeError, ValueError) as error:
            raise IndexCorrupt(generation.path, f"contradicts itself: {error}", fix="build it again") from error
        return base


def pool_revision(generation: Generation) -> int:
    """The revision of the pool that a generation was derived from."""
    pool = generation.manifest["pool"]
    if not isinstance(pool, dict) or not isinstance(pool.get("revision"), int):
        raise IndexCorrupt(generation.path, "names no revision of the pool", fix="build it again")
    return int(pool["revision"])


def _parse(generation: Generation) -> Base:
    manifest = generation.manifest
    settings = IndexSettings.from_manifest(manifest["settings"])
    ann = generation.buffers.get("ann.faiss")
    return Base(
        generation,
        settings,
        generation.array("rows", np.int64),
        Segment.of(generation.array("vectors", np.float32)),
        Postings(
            Vocabulary(generation.array("terms", np.uint8), generation.array("term_offsets", np.int64)),
            generation.array("posting_offsets", np.int64),
            generation.array("posting_rows", np.int32),
            generation.array("posting_counts", np.int32),
            generation.array("lengths", np.int32),
        ),
        None if ann is None or settings.ann is None else AnnIndex.from_bytes(settings.ann, ann),
        pool_revision(generation),
        Calibration.from_dict(manifest["fusion"]).weight,
    )


@dataclass(frozen=True)
class Tail:
    """What was added since the generation.

    Attributes:
        rows: The pool's row numbers, ascending.
        terms: The terms of each.
        vectors: The vector of each.
        full: Postings of the runs of 512 that are complete, so that an addition only makes anew what is short.
    """

    rows: tuple[int, ...] = ()
    terms: tuple[tuple[str, ...], ...] = ()
    vectors: tuple[NDArray[np.float32], ...] = ()
    full: tuple[Postings, ...] = ()

    def extended(
        self, rows: Sequence[int], terms: Sequence[Sequence[str]], vectors: Sequence[NDArray[np.float32]]
    ) -> Tail:
        """With more at the end."""
        all_terms = (*self.terms, *map(tuple, terms))
        full = list(self.full)
        while len(all_terms) >= (len(full) + 1) * _TAIL_CHUNK:
            start = len(full) * _TAIL_CHUNK
            full.append(Postings.from_documents(all_terms[start : start + _TAIL_CHUNK]))
        return Tail((*self.rows, *rows), all_terms, (*self.vectors, *vectors), tuple(full))

    def postings(self) -> list[Postings]:
        """All of it, in runs."""
        rest = self.terms[len(self.full) * _TAIL_CHUNK :]
        return [*self.full, *([Postings.from_documents(rest)] if rest else [])]


@dataclass(frozen=True)
class Snapshot:
    """A view of the pool at one revision.

    Attributes:
        base: The generation's part.
        pool: Where examples are fetched from.
        revision: The revision that is seen.
        tail: What was added since the generation.
        removed: The terms of each row that was removed since, by row of the index.
    """

    base: Base
    pool: Pool
    revision: int
    tail: Tail = field(default_factory=Tail)
    removed: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def advanced(self) -> Snapshot | None:
        """The view at the newest revision; None when the tail's vectors are gone, so that a newer generation has them.

        Raises:
            IndexCorrupt: The pool contradicts the generation.
        """
        revision = self.pool.visible()
        if revision == self.revision:
            return self
        changes = self.pool.changes(self.revision, revision)
        added = [pool_row.row for pool_row in changes.added]
        vectors = self.pool.vectors(added, self.base.vectors.vectors.shape[1])
        if len(vectors) < len(added):
            return None
        terms = [self._terms(pool_row.example) for pool_row in changes.added]
        tail = self.tail.extended(added, terms, [vectors[row] for row in added])
        grown = replace(self, revision=revision, tail=tail)
        return replace(grown, removed={**self.removed, **grown._newly_removed(changes)})

    def _newly_removed(self, changes: Changes) -> dict[int, tuple[str, ...]]:
        here = self.places(changes.removed)
        return {
            place: tuple(self._terms(example))
            for place, example in zip(here.tolist(), self.pool.fetch(changes.removed), strict=True)
        }

    def _terms(self, example: Example) -> list[str]:
        return self.analyze(self.key.text(example))

    @cached_property
    def key(self) -> Key:
        """The text that stands for an example or query."""
        return Key(self.base.settings.key)

    @cached_property
    def analyze(self) -> Analyzer:
        """From text to terms."""
        return analyzer(self.base.settings.analyzer)

    @cached_property
    def rows(self) -> Rows:
        """The pool's row number of each row of the index, ascending, int64, shape (rows,)."""
        return np.concatenate([self.base.rows, np.array(self.tail.rows, dtype=np.int64)])

    @cached_property
    def alive(self) -> NDArray[np.bool_] | None:
        """Which rows are not removed; None when none is."""
        if not self.removed:
            return None
        alive = np.ones(len(self.rows), dtype=np.bool_)
        alive[list(self.removed)] = False
        return alive

    @cached_property
    def index(self) -> HybridIndex:
        """Both channels over generation and tail."""
        segments = [self.base.postings, *self.tail.postings()]
        kind = RankBM25Index if self.base.settings.lexical == "rank-bm25" else BM25Index
        lexical = kind(segments, self.base.settings.scoring(), self.removed)
        dense = [self.base.vectors]
        if self.tail.vectors:
            dense.append(Segment.of(np.stack(self.tail.vectors)))
        return HybridIndex(DenseIndex(dense, self.base.ann), lexical, self.alive)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.rows) - len(self.removed)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.base.vectors.vectors.shape[1])

    def places(self, pool_rows: Sequence[int]) -> Rows:
        """The rows of the index for row numbers of the pool.

        Raises:
            IndexCorrupt: One is not there.
        """
        wanted = np.array(pool_rows, dtype=np.int64)
        places = np.searchsorted(self.rows, wanted)
        if (places >= len(self.rows)).any() or (self.rows[places] != wanted).any():
            raise IndexCorrupt(self.pool.path, "names rows that the generation does not have", fix="build it again")
        return places

    def places_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of the index for those ids that are in the pool at this revision."""
        found = self.pool.rows_of(ids, self.revision)
        return dict(zip(found, self.places(list(found.values())).tolist(), strict=True))

    def examples(self, places: Sequence[int] | Rows) -> list[Example]:
        """The examples of rows of the index, in their order."""
        return self.pool.fetch(self.rows[np.asarray(places, dtype=np.int64)].tolist())
