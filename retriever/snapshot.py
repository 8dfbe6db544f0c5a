"""Snapshot: one consistent view of an index, from which queries are answered.

A snapshot is the current generation plus what the pool recorded since: additions form a tail that is searched beside
the generation's own rows, removals are masked and taken out of the statistics. So its answers are those of an index
built afresh from the same examples, and a change costs what the change is worth. Snapshots are never modified;
`advanced` makes the next one.

Which examples there are, under which ids, is known from the generation and the tail, whose digests were compared; the
pool is asked for payloads alone, and each of those has its own hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import Analyzer, analyzer
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from indexes.postings import Postings
from indexes.vector_storage import VectorRows
from retriever.adaptation.stored import is_adapted
from retriever.base import Base
from retriever.errors import IndexCorrupt
from retriever.example import Example
from retriever.keys import Key, text_hash
from retriever.pool import Pool, PoolRow
from retriever.revisions import Revision

Rows: TypeAlias = NDArray[np.int64]

_TAIL_CHUNK = 512


@dataclass(frozen=True)
class Added:
    """An example that was added since the generation.

    Attributes:
        row: The pool's row number.
        id: Its id.
        terms: The terms of its key text.
        text_hash: Of its key text.
        vector: Of its key text as the embedder gave it and the index stores it, float32, shape (dim,).
        searched: What the dense channel makes of it.
    """

    row: int
    id: str
    terms: tuple[str, ...]
    text_hash: int
    vector: NDArray[np.float32]
    searched: NDArray[np.float32]


@dataclass(frozen=True)
class Tail:
    """What was added since the generation.

    Attributes:
        added: The examples, by ascending row.
        full: Postings of the runs of 512 that are complete, so that an addition only makes anew what is short.
    """

    added: tuple[Added, ...] = ()
    full: tuple[Postings, ...] = ()

    def __len__(self) -> int:
        """How many were added."""
        return len(self.added)

    def extended(self, added: Sequence[Added]) -> Tail:
        """With more at the end."""
        everything = (*self.added, *added)
        full = list(self.full)
        while len(everything) >= (len(full) + 1) * _TAIL_CHUNK:
            start = len(full) * _TAIL_CHUNK
            full.append(Postings.from_documents(one.terms for one in everything[start : start + _TAIL_CHUNK]))
        return Tail(everything, tuple(full))

    def postings(self) -> list[Postings]:
        """All of it, in runs."""
        rest = self.added[len(self.full) * _TAIL_CHUNK :]
        return [*self.full, *([Postings.from_documents(one.terms for one in rest)] if rest else [])]


@dataclass(frozen=True)
class Snapshot:
    """A view of the pool at one revision.

    Attributes:
        base: The generation's part.
        pool: Where examples are fetched from.
        revision: The revision that is seen.
        last_row: The largest row number that the pool had used by then.
        tail: What was added since the generation.
        removed: The terms of each row that was removed since, by row of the index.
    """

    base: Base
    pool: Pool
    revision: Revision
    last_row: int
    tail: Tail = field(default_factory=Tail)
    removed: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Base, pool: Pool) -> Snapshot:
        """The view of a generation as it was published."""
        return cls(base, pool, base.revision, base.last_row)

    def advanced(self, until: Revision) -> Snapshot | None:
        """The view at a later revision; None when the tail's vectors are gone, so that a newer generation has them.

        Raises:
            IndexCorrupt: The pool does not hold the changes that lead to this revision.
        """
        if until == self.revision:
            return self
        changes = self.pool.changes(self.revision, self.last_row, until.number, self.dim)
        if changes is None:
            return None
        if changes.chain != until.chain:
            raise IndexCorrupt(
                self.pool.path,
                f"does not hold what was written up to revision {until.number}",
                fix="restore the whole index from one copy, pool.sqlite-wal included",
            )
        # Rounded as the generation's own rows are: the answers are those of an index that was built afresh.
        rounded = VectorRows.of(changes.vectors, self.base.settings.vectors).take(np.arange(len(changes.vectors)))
        searched = self.base.moved(rounded)
        added = [self._added(*one) for one in zip(changes.added, rounded, searched, strict=True)]
        grown = replace(self, revision=until, last_row=changes.last_row, tail=self.tail.extended(added))
        return replace(grown, removed={**self.removed, **grown._newly_removed(changes.removed)})

    def _added(self, pool_row: PoolRow, vector: NDArray[np.float32], searched: NDArray[np.float32]) -> Added:
        text = self.key.text(pool_row.example)
        terms = tuple(self.analyze(text))
        return Added(
            row=pool_row.row,
            id=pool_row.example.id,
            terms=terms,
            text_hash=text_hash(text),
            vector=vector,
            searched=searched,
        )

    def _newly_removed(self, pool_rows: Sequence[int]) -> dict[int, tuple[str, ...]]:
        here = self.places(pool_rows)
        return {
            place: tuple(self._terms(example))
            for place, example in zip(here.tolist(), self.pool.fetch(pool_rows), strict=True)
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
        return np.concatenate([self.base.rows, np.array([one.row for one in self.tail.added], dtype=np.int64)])

    @cached_property
    def text_hashes(self) -> NDArray[np.uint64]:
        """`text_hash` of the key text of each row of the index, uint64, shape (rows,)."""
        added = np.array([one.text_hash for one in self.tail.added], dtype=np.uint64)
        return np.concatenate([self.base.text_hashes, added])

    @cached_property
    def _tail_places(self) -> dict[str, int]:
        """The rows of the index by id, for what was added since the generation; of one id the newest."""
        return {one.id: place for place, one in enumerate(self.tail.added, start=len(self.base.rows))}

    @cached_property
    def alive(self) -> NDArray[np.bool_] | None:
        """Which rows are not removed; None when none is."""
        if not self.removed:
            return None
        alive = np.ones(len(self.rows), dtype=np.bool_)
        alive[list(self.removed)] = False
        return alive

    @property
    def live(self) -> Rows:
        """The rows of the index that are not removed, ascending, int64, shape (examples,)."""
        return np.arange(len(self.rows)) if self.alive is None else np.flatnonzero(self.alive)

    @cached_property
    def index(self) -> HybridIndex:
        """Both channels over generation and tail."""
        lexical = self.base.settings.lexical_index([self.base.postings, *self.tail.postings()], self.removed)
        dense = [self.base.vectors]
        if len(self.tail):
            dense.append(Segment.of(np.stack([one.searched for one in self.tail.added]), self.base.settings.vectors))
        return HybridIndex(DenseIndex(dense, self.base.ann), lexical, self.alive)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.rows) - len(self.removed)

    @property
    def changed(self) -> int:
        """How many examples were added or removed since the generation."""
        return len(self.tail) + len(self.removed)

    @property
    def is_adapted(self) -> bool:
        """Whether its vectors were learned from what examples or a log say is alike: by a map, or in the model itself.

        Held-out examples of such an index ask a space that was made for their own answers.
        """
        return is_adapted(self.base.generation.manifest)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.base.vectors.rows.dim

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
        found = {identity: self._place_of(identity) for identity in ids}
        return {identity: place for identity, place in found.items() if place is not None}

    def _place_of(self, identity: str) -> int | None:
        place = self._tail_places.get(identity)
        if place is None:
            number = self.base.ids.find(identity)
            place = int(self.base.id_rows[number]) if number >= 0 else None
        return None if place in self.removed else place

    def examples(self, places: Sequence[int] | Rows) -> list[Example]:
        """The examples of rows of the index, in their order."""
        return self.pool.fetch(self.rows[np.asarray(places, dtype=np.int64)].tolist())

    def present(self) -> Iterator[tuple[int, Example]]:
        """Every row of the index that is not removed, ascending, with its example.

        Raises:
            IndexCorrupt: The pool does not hold these rows and no others.
        """
        places = self.live
        expected = zip(places.tolist(), self.rows[places].tolist(), strict=True)
        for pool_row in self.pool.examples(self.revision.number):
            place, row = next(expected, (0, 0))
            if pool_row.row != row:
                raise self._out_of_step(min(row, pool_row.row) or pool_row.row)
            yield place, pool_row.example
        for _, row in expected:
            raise self._out_of_step(row)

    def _out_of_step(self, row: int) -> IndexCorrupt:
        return IndexCorrupt(
            self.pool.path, f"row {row} is missing, or is there and should not be", fix="restore the index from a copy"
        )

    def embedded(self, places: Rows) -> NDArray[np.float32]:
        """The vectors of rows of the index as the embedder gave them, copied; float32, shape (rows, dim)."""
        count = len(self.base.rows)
        vectors = np.empty((len(places), self.dim), dtype=np.float32)
        early = places < count
        vectors[early] = self.base.embedded.take(places[early])
        if not early.all():
            vectors[~early] = [self.tail.added[place - count].vector for place in places[~early]]
        return vectors

    def known_vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those key texts that some example of the index has, removed ones included."""
        wanted: dict[int, str] = {text_hash(text): text for text in texts}
        places = np.flatnonzero(np.isin(self.text_hashes, np.array(list(wanted), dtype=np.uint64)))
        first = dict(zip(self.text_hashes[places[::-1]].tolist(), places[::-1].tolist(), strict=True))
        # Two texts of one hash would be a vector for the wrong text: the example says which text it is.
        same = [
            place
            for (number, place), example in zip(first.items(), self.examples(list(first.values())), strict=True)
            if self.key.text(example) == wanted[number]
        ]
        vectors = self.embedded(np.array(same, dtype=np.int64))
        return {wanted[int(self.text_hashes[place])]: vector for place, vector in zip(same, vectors, strict=True)}
