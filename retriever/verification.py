"""Verification: everything in an index looked at, and said what is damaged and what mends it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexes import generation as generations
from indexes.current import Current
from indexes.errors import RetrieverError
from indexes.postings import Postings
from indexes.vocabulary import check_sorted
from retriever.base import Base
from retriever.errors import IndexCorrupt, InvalidInput, StorageError
from retriever.keys import text_hash
from retriever.listening import Progress, silent
from retriever.opening import open_pool, pool_path, read_current, unfinished
from retriever.pool import Pool
from retriever.revisions import Revision
from retriever.snapshot import Snapshot

REBUILD = "retriever verify INDEX --repair builds it again from the pool"
RESTORE = "restore it from a copy: nothing else holds what was in it"

_MOST_PROBLEMS = 100


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        path: The file.
        found: What is wrong with it.
        remedy: What mends it.
    """

    path: Path
    found: str
    remedy: str

    @property
    def repairable(self) -> bool:
        """Whether the pool holds what is needed to mend it."""
        return self.remedy == REBUILD

    def __str__(self) -> str:
        return f"{self.path}: {self.found}; {self.remedy}"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        path: The index directory.
        rows: Rows of the pool that were looked at, removed ones included.
        generations: The generations that were looked at.
        problems: What is wrong, at most 100.
    """

    path: Path
    rows: int
    generations: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def repairable(self) -> bool:
        """Whether everything that is wrong can be mended from the pool."""
        return all(problem.repairable for problem in self.problems)


def verify(path: str | Path, *, progress: Progress = silent) -> Verification:
    """Looks at every byte that an answer can depend on.

    That is: CURRENT; every file of every generation, by hash and against the others; what the generation derives from
    the pool but for the vectors, derived again; every row of the pool, removed ones included, by its hash; the changes
    since the generation, by the chain of their digests; and SQLite's own structures. Nothing is written.

    Args:
        path: The index directory.
        progress: Told how far the work is.

    Raises:
        IndexMissing: There is no index, or its first build did not finish.
        StorageError: The operating system refuses.
    """
    root = Path(path)
    try:
        pool = open_pool(root)
    except IndexCorrupt as error:
        return Verification(root, 0, (), (Problem(error.path, _what(error), RESTORE),))
    with contextlib.closing(pool):
        problems = list(pool_problems(pool, progress))
        rows = 0 if problems else pool.last_row()
        try:
            current = read_current(root, pool)
        except IndexCorrupt as error:
            current = None
            problems.append(Problem(error.path, _what(error), REBUILD))
        if current is None and not problems:
            raise unfinished(root)
        names = tuple(generations.published(root, current))
        for number, name in enumerate(names):
            progress("checking generations", number, len(names))
            problems += generation_problems(root, name, current, pool)
        if current is not None and current.generation not in names:
            problems.append(Problem(root / current.generation, "is missing", REBUILD))
        problems += _state_problems(pool)
    return Verification(root, rows, names, tuple(problems[:_MOST_PROBLEMS]))


def pool_problems(pool: Pool, progress: Progress = silent) -> Iterator[Problem]:
    """What is wrong with the pool itself: SQLite's structures and every row."""
    try:
        for line in pool.integrity():
            # An index holds nothing that the table does not.
            yield Problem(pool.path, f"SQLite says: {line}", REBUILD if "index" in line else RESTORE)
        total = pool.last_row()
        for done, found in enumerate(pool.damaged_rows()):
            if found is not None:
                yield Problem(pool.path, found, RESTORE)
            elif done % 1000 == 0:
                progress("checking examples", done, total)
    except IndexCorrupt as error:
        yield Problem(error.path, _what(error), RESTORE)


def generation_problems(root: Path, name: str, current: Current | None, pool: Pool) -> list[Problem]:
    """What is wrong with a generation, by itself and against the pool."""
    try:
        if current is not None and current.generation == name:
            generation = generations.open_current(root, current)
        else:
            generation = generations.open_generation(root, name)
        with contextlib.closing(generation):
            base = Base.load(generation)
            _check_derived(base, pool)
            if current is not None and current.generation == name:
                _check_changes(base, current, pool)
    except StorageError:
        raise
    except RetrieverError as error:
        path = error.path if isinstance(error, IndexCorrupt) else root / name
        return [Problem(path, _what(error), RESTORE if path == pool.path else REBUILD)]
    return []


def _check_derived(base: Base, pool: Pool) -> None:
    """Derives again, from the pool, what a generation holds beside the vectors.

    Raises:
        IndexCorrupt: The two differ.
    """
    try:
        check_sorted(base.ids, "id")
        check_sorted(base.postings.vocabulary, "term")
    except InvalidInput as error:
        raise IndexCorrupt(base.generation.path, str(error)) from error
    _check_mapped(base)
    view = Snapshot.of(base, pool)
    ids: list[str] = []

    def terms() -> Iterator[list[str]]:
        for place, example in view.present():
            text = view.key.text(example)
            if text_hash(text) != int(base.text_hashes[place]):
                raise IndexCorrupt(base.generation.path, f"row {place} is of another text than the pool's")
            ids.append(example.id)
            yield view.analyze(text)

    derived = Postings.from_documents(terms())
    for array in ("offsets", "rows", "counts", "lengths"):
        if not np.array_equal(getattr(derived, array), getattr(base.postings, array)):
            raise IndexCorrupt(base.generation.path, f"its posting {array} are not those of the pool")
    if not np.array_equal(derived.vocabulary.blob, base.postings.vocabulary.blob):
        raise IndexCorrupt(base.generation.path, "its terms are not those of the pool")
    if view.places_of(ids) != {identity: place for place, identity in enumerate(ids)}:
        raise IndexCorrupt(base.generation.path, "its ids are not those of the pool")


def _check_mapped(base: Base) -> None:
    if base.adaptation is None:
        return
    moved = base.adaptation.moved_rows(base.embedded)
    if not np.array_equal(moved.values, base.vectors.rows.values):
        raise IndexCorrupt(base.generation.path, "its mapped vectors are not those that its map gives")


def _check_changes(base: Base, current: Current, pool: Pool) -> None:
    if Snapshot.of(base, pool).advanced(Revision(current.revision, current.chain)) is None:
        raise IndexCorrupt(pool_path(base.generation.path.parent), "lacks the vectors of examples that were added")


def _state_problems(pool: Pool) -> list[Problem]:
    """What a repair would miss, were CURRENT or every generation lost as well."""
    return [Problem(pool.path, f"its note {key!r} is damaged", REBUILD) for key in pool.damaged_notes()]


def _what(error: RetrieverError) -> str:
    found = error.seen
    if isinstance(error, IndexCorrupt):
        found = found.removeprefix(f"{error.path}: ")
    return f"{found}; expected {error.expected}" if error.expected else found
