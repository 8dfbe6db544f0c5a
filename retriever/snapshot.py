"""Snapshot: one consistent view of an index, from which queries are answered.

A snapshot is the current generation plus what the pool recorded since: additions form a tail that is searched beside
the generation's own rows, removals are masked and taken out of the statistics. So its answers are those of an index
built afresh from the same examples, and a change costs what the change is worth. Snapshots are never modified;
`advanced` makes the next one.

Which examples there are, under which ids, is known from the generation and the tail, whose digests were compared; the
pool is asked for payloads alone, and each of those has its own hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import Analyzer, analyzer
from indexes.ann import AnnIndex
from indexes.dense import DenseIndex, Segment
from indexes.errors import to_repair
from indexes.generation import Generation, Manifest
from indexes.hybrid import HybridIndex
from indexes.postings import Postings, check_postings
from indexes.vector_storage import TYPES, VectorRows
from indexes.vocabulary import Vocabulary, check_vocabulary
from retriever.adaptation.stored import Adaptation, adapted_rows, is_adapted
from retriever.errors import IndexCorrupt, InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Example, Json
from retriever.keys import Key, text_hash
from retriever.pool import Pool, PoolRow
from retriever.revisions import Revision
from retriever.settings import IndexSettings
from retriever.token_storage import StoredTokens, stored_tokens

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
        ids: The examples' ids, sorted.
        id_rows: For each of these ids its row, int64, shape (rows,).
        text_hashes: `text_hash` of each row's key text, uint64, shape (rows,).
        ann: The FAISS index, when there is one.
        tokens: The tokens of each row, when they are stored.
        revision: The revision of the pool that it was derived from.
        last_row: The largest row number that the pool had used by then.
        weight: The calibrated fusion weight.
        recipe: The default recipe, as it is stored: it may name a strategy of a package that is not there.
        embedded: The rows as the embedder gave them.
        adaptation: The map that made `vectors` of these, and that queries go through; None where both are the same.
    """

    generation: Generation
    settings: IndexSettings
    rows: Rows
    vectors: Segment
    postings: Postings
    ids: Vocabulary
    id_rows: Rows
    text_hashes: NDArray[np.uint64]
    ann: AnnIndex | None
    tokens: StoredTokens | None
    revision: Revision
    last_row: int
    weight: float
    recipe: Mapping[str, Json]
    embedded: VectorRows
    adaptation: Adaptation | None

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
                base.embedded.check("vectors")
                if base.adaptation is not None:
                    base.vectors.rows.check("mapped vectors")
                check_postings(base.postings)
                check_vocabulary(base.ids, "id")
            _check_rows(base)
        except (InvalidInput, KeyError, TypeError, ValueError, AttributeError) as error:
            fix = to_repair(generation.path.parent)
            raise IndexCorrupt(generation.path, f"contradicts itself: {error}", fix=fix) from error
        return base

    @property
    def calibration(self) -> Calibration:
        """The fusion weight, and where it comes from."""
        return Calibration.from_dict(self.generation.manifest["fusion"])

    def moved(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of the embedder as the dense channel takes them, float32, shape (n, dim)."""
        return vectors if self.adaptation is None else self.adaptation.moved(vectors)


def _check_rows(base: Base) -> None:
    counts = {
        "rows": len(base.rows),
        "vectors": len(base.vectors),
        "vector scales": len(base.vectors) if base.vectors.rows.scales is None else len(base.vectors.rows.scales),
        "embedded vectors": len(base.embedded),
        "documents": len(base.postings),
        "ids": len(base.ids),
        "rows of ids": len(base.id_rows),
        "text hashes": len(base.text_hashes),
    }
    if len(set(counts.values())) > 1:
        raise InvalidInput(", ".join(f"{count:,} {name}" for name, count in counts.items()), expected="as many of each")
    if len(base.rows) and not (base.rows[0] > 0 and base.rows[-1] <= base.last_row and (np.diff(base.rows) > 0).all()):
        raise InvalidInput("row numbers out of order", expected=f"ascending ones from 1 to {base.last_row}")
    if not np.array_equal(np.sort(base.id_rows), np.arange(len(base.rows))):
        raise InvalidInput("ids that do not name each row once")


def pool_revision(manifest: Manifest) -> Revision:
    """The revision of the pool that a generation was derived from."""
    pool = dict(manifest["pool"])  # type: ignore[call-overload]
    return Revision(int(pool["revision"]), str(pool["chain"]))


def embedded_rows(generation: Generation, settings: IndexSettings) -> VectorRows:
    """The rows as the embedder gave them, in place.

    Raises:
        IndexCorrupt: They are missing, or of another type than the settings say.
    """
    scales = generation.array("vector_scales", np.float32) if settings.vectors == "int8" else None
    return VectorRows(generation.array("vectors", TYPES[settings.vectors].type), scales)


def _parse(generation: Generation) -> Base:
    manifest = generation.manifest
    pool = dict(manifest["pool"])  # type: ignore[call-overload]
    settings = IndexSettings.from_manifest(manifest["settings"])
    ann = generation.buffers.get("ann.faiss")
    rows = generation.array("rows", np.int64)
    embedded = embedded_rows(generation, settings)
    adaptation = Adaptation.from_generation(generation)
    searched = embedded if adaptation is None else adapted_rows(generation, settings.vectors)
    if adaptation is not None and not len(adaptation.matrix) == searched.dim == embedded.dim:
        raise InvalidInput(f"a map of {len(adaptation.matrix)} components", expected=f"{embedded.dim}")
    return Base(
        generation=generation,
        settings=settings,
        rows=rows,
        vectors=Segment(searched),
        postings=Postings(
            vocabulary=Vocabulary(generation.array("terms", np.uint8), generation.array("term_offsets", np.int64)),
            offsets=generation.array("posting_offsets", np.int64),
            rows=generation.array("posting_rows", np.int32),
            counts=generation.array("posting_counts", np.int32),
            lengths=generation.array("lengths", np.int32),
        ),
        ids=Vocabulary(generation.array("ids", np.uint8), generation.array("id_offsets", np.int64)),
        id_rows=generation.array("id_rows", np.int64),
        text_hashes=generation.array("text_hashes", np.uint64),
        ann=None if ann is None else AnnIndex.from_bytes(ann),
        tokens=stored_tokens(generation, len(rows)) if settings.token_vectors else None,
        revision=pool_revision(manifest),
        last_row=int(pool["last_row"]),
        weight=Calibration.from_dict(manifest["fusion"]).weight,
        recipe=dict(manifest.get("recipe", {})),  # type: ignore[call-overload]
        embedded=embedded,
        adaptation=adaptation,
    )


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
