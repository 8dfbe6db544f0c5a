"""Repair: the derived files of an index, built again from an intact pool."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes import files
from indexes import generation as generations
from indexes.current import Current
from indexes.generation import Generation, Manifest
from indexes.vector_storage import VectorRows, gives
from retriever.adaptation.stored import FILE, Adaptation
from retriever.base import embedded_rows, pool_revision
from retriever.embedders import Embedder, EmbedderSource
from retriever.errors import EmbedderError, Incompatible, IndexCorrupt, IndexMissing
from retriever.evaluation.calibration import Calibration
from retriever.keys import Key
from retriever.listening import Note, Progress, log_note, silent
from retriever.opening import pool_path, read_current
from retriever.pool import Pool
from retriever.publishing import about_of, publish
from retriever.revisions import Revision
from retriever.settings import IndexSettings
from retriever.stored_embedder import StoredEmbedder, load_for
from retriever.token_storage import TextTokens, stored_tokens
from retriever.verification import RESTORE, generation_problems, pool_problems
from retriever.writing import LOCK

_Place: TypeAlias = tuple[VectorRows, int]
"""A row of some rows."""


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        generation: The generation that was built; None when nothing was damaged.
        reused: Texts whose vectors were still there.
        embedded: Texts that were embedded again.
    """

    generation: str | None
    reused: int = 0
    embedded: int = 0


def repair(
    path: str | Path,
    *,
    embedder: EmbedderSource | None = None,
    note: Note = log_note,
    progress: Progress = silent,
) -> Repair:
    """Builds a new generation from the pool if the current one, or CURRENT, is damaged.

    Vectors that are intact in any generation or in the pool are used; only what is lost is embedded again. Settings and
    fusion weight stay. Generations that are damaged are removed.

    Args:
        path: The index directory.
        embedder: The embedder, where the index was built with an object of the caller's.
        note: Told in one line what a reader should know; by default the logger `retriever` warns.
        progress: Told how far the work is.

    Raises:
        IndexMissing: There is no index.
        IndexCorrupt: The pool itself is damaged; only a copy can restore it.
        Incompatible: Text has to be embedded again and the embedder is another one, or is not at hand.
        StorageError: The operating system refuses.
    """
    root = Path(path)
    if not pool_path(root).exists():
        raise IndexMissing(root)
    with files.locked(root / LOCK), contextlib.closing(Pool(pool_path(root), writable=True)) as pool:
        pool.reindex()
        for problem in pool_problems(pool):
            raise IndexCorrupt(problem.path, problem.found, fix=RESTORE)
        current = _readable(root, pool)
        _check_history(root, pool, current, note)
        names = generations.generations(root)
        damaged = [name for name in names if generation_problems(root, name, current, pool)]
        if current is not None and current.generation in names and current.generation not in damaged:
            pool.settle(Revision(current.revision, current.chain), _about(root, pool, current))
            _remove(root, damaged)
            return Repair(None)
        about = _about(root, pool, current)
        found = _Remains.of(root, pool, current, about)
        lost = None if found.embedder_files else found.embedder.base
        if lost is not None:
            note(f"the model that was fine-tuned is lost: {lost.name} embeds again (retriever adapt --full)")
            found = _Remains.of(root, pool, current, {**about, "embedder": lost.manifest}, own=False)
        newest = Revision(current.revision, current.chain) if current is not None else found.newest
        made = _rebuild(root, pool, newest, found, embedder, note, progress)
        now = pool.about()
        if now is not None and now["embedder"] != about["embedder"]:
            pool.drop_vectors(until=newest)  # the next repair would take them for this embedder's
        _remove(root, damaged)
        return made


def _readable(root: Path, pool: Pool) -> Current | None:
    try:
        return read_current(root, pool)
    except IndexCorrupt:
        return None


def _manifests(root: Path, current: Current | None) -> list[Manifest]:
    """The manifests that are intact, newest first, without those of a writer that did not get as far as CURRENT."""
    found = []
    for name in reversed(generations.published(root, current)):
        with contextlib.suppress(IndexCorrupt, Incompatible):
            found.append(generations.read_manifest(root, name))
    return found


def _check_history(root: Path, pool: Pool, current: Current | None, note: Note) -> None:
    """Refuses a pool in which a change is lost or altered; what is derived from it would look intact afterwards.

    Vectors that a generation holds are dropped from the pool, and with them goes the way from the first revision to the
    newest: so each generation's revision is a place to start from, too.

    Raises:
        IndexCorrupt: No way leads to the newest revision, or a generation has had other rows.
    """
    newest = pool.head() if current is None else Revision(current.revision, current.chain)
    if newest is None:
        return
    starts = [(Revision(), 0)]
    for manifest in _manifests(root, current):
        revision, about = pool_revision(manifest), dict(manifest["pool"])  # type: ignore[call-overload]
        if revision.number > newest.number:
            continue
        starts.append((revision, int(about["last_row"])))
        if pool.size(revision.number)[0] != int(about["rows"]):
            raise _lost(pool, revision)
    if any(pool.chain(start, last_row, newest.number) == newest.chain for start, last_row in starts):
        return
    if len(starts) > 1:
        raise _lost(pool, newest)
    note("no generation is left that tells whether the pool holds every change: it is taken as it is")


def _lost(pool: Pool, revision: Revision) -> IndexCorrupt:
    return IndexCorrupt(pool.path, f"does not hold what was written up to revision {revision.number}", fix=RESTORE)


def _about(root: Path, pool: Pool, current: Current | None) -> Mapping[str, object]:
    """How the index is built: as the current manifest says, else the pool's note, else an older manifest.

    An older manifest may be that of another build.
    """
    if current is not None:
        with contextlib.suppress(IndexCorrupt):
            return about_of(generations.read_manifest(root, current.generation, current.manifest))
    if about := pool.about():
        return about
    for manifest in _manifests(root, current):
        return about_of(manifest)
    raise IndexCorrupt(root, "neither a manifest nor the pool tells how it was built", fix="build it again")


@dataclass(frozen=True)
class _Remains:
    """What is left of an index.

    Attributes:
        about: Settings, embedder, fusion and recipe.
        newest: The newest revision that the pool or an intact manifest tells of.
        vectors: Where each is by pool row, in every file of vectors that is intact and from the pool.
        tokens: By pool row, from every generation whose files of tokens are intact.
        embedder_files: What a fitted embedder has learned, if it is intact.
        adaptation: The map that vectors go through, if the index has one and it is intact.
    """

    about: Mapping[str, object]
    newest: Revision
    vectors: Mapping[int, _Place]
    tokens: Mapping[int, TextTokens]
    embedder_files: Mapping[str, Sequence[files.Buffer]]
    adaptation: Adaptation | None

    @property
    def embedder(self) -> StoredEmbedder:
        """What is left of the embedder."""
        return StoredEmbedder(dict(self.about["embedder"]), self.embedder_files)  # type: ignore[call-overload]

    @classmethod
    def of(
        cls, root: Path, pool: Pool, current: Current | None, about: Mapping[str, object], *, own: bool = True
    ) -> _Remains:
        """What is left that fits how the index is built; `own` tells whether the pool's vectors are its embedder's."""
        embedder = StoredEmbedder(dict(about["embedder"]), {})  # type: ignore[call-overload]
        revisions = [pool.head() or Revision()]
        kept = pool.vectors(embedder.dim) if own else {}
        vectors = {row: (VectorRows(vector[np.newaxis]), 0) for row, vector in kept.items()}
        tokens: dict[int, TextTokens] = {}
        learned: Mapping[str, Sequence[files.Buffer]] = {}
        adaptation: Adaptation | None = None
        for name in reversed(generations.generations(root)):
            left = generations.salvage(root, name)
            if left is None or left.manifest["embedder"] != about["embedder"]:
                continue
            revisions.append(pool_revision(left.manifest))
            if not learned:
                learned = _learned(StoredEmbedder.from_generation(left))
            if _key(left.manifest) != _key(about):
                continue  # its vectors are of other texts
            with contextlib.suppress(IndexCorrupt):
                vectors |= _where(left, about)  # these have a hash of their own
            with contextlib.suppress(IndexCorrupt):
                rows = left.array("rows", np.int64).tolist()
                stored = stored_tokens(left, len(rows))
                tokens |= {row: stored.text(place) for place, row in enumerate(rows)}
            with contextlib.suppress(IndexCorrupt):
                if adaptation is None and FILE in about and left.manifest.get(FILE) == about[FILE]:
                    adaptation = Adaptation.from_generation(left)
        newest = max(revisions, key=lambda revision: revision.number)
        return cls(
            about=about, newest=newest, vectors=vectors, tokens=tokens, embedder_files=learned, adaptation=adaptation
        )


def _key(about: Mapping[str, object]) -> str:
    return IndexSettings.from_manifest(about["settings"]).key


def _where(left: Generation, about: Mapping[str, object]) -> dict[int, _Place]:
    """Where the vector of each pool row is in a generation, where it gives what the index's own settings ask for.

    Raises:
        IndexCorrupt: A file is not intact.
    """
    settings = IndexSettings.from_manifest(left.manifest["settings"])
    if not gives(settings.vectors, IndexSettings.from_manifest(about["settings"]).vectors):
        return {}
    rows = embedded_rows(left, settings)
    return {number: (rows, place) for place, number in enumerate(left.array("rows", np.int64).tolist())}


def _learned(stored: StoredEmbedder) -> Mapping[str, Sequence[files.Buffer]]:
    """What a fitted embedder has learned, if all of it is there."""
    if stored.is_fitted:
        with contextlib.suppress(EmbedderError):
            stored.check_files()
            return stored.files
    return {}


def _rebuild(
    root: Path,
    pool: Pool,
    revision: Revision,
    found: _Remains,
    given: EmbedderSource | None,
    note: Note,
    progress: Progress,
) -> Repair:
    settings = IndexSettings.from_manifest(found.about["settings"])
    key = Key(settings.key)
    rows = [(key.text(pool_row.example), pool_row.row) for pool_row in pool.examples(revision.number)]
    known = _Known(
        {text: found.vectors[row] for text, row in rows if row in found.vectors},
        {text: found.tokens[row] for text, row in rows if row in found.tokens} if settings.token_vectors else {},
    )
    about = found.embedder
    fusion = Calibration.from_dict(found.about["fusion"])
    calibration: Calibration | None = fusion
    lost = FILE in found.about and found.adaptation is None
    if lost:
        note("the map that the index was adapted by is lost: adapt it again (retriever adapt)")
        calibration = fusion.if_given()
    texts = {text for text, _ in rows}
    complete = texts <= known.places.keys() and (not settings.token_vectors or texts <= known.kept.keys())
    embedder: Embedder | None = None
    if about.is_fitted and about.files:
        embedder = about.fitted(note)
    elif about.is_fitted or not complete or (calibration is None and _embeds_queries(key, about)):
        embedder, now = load_for(key, given or about.pool_source, pool, revision, note)
        if now.space != about.space:
            note(f"the embedder is not to the last bit what it was: all {len(texts):,} texts are embedded again")
            known = _Known({}, {})
            calibration = fusion if found.adaptation is not None else fusion.if_given()
        about = now if now.space != about.space else replace(about, files=now.files)
    published = publish(
        root,
        pool,
        revision,
        settings=settings,
        embedder=lambda: _present(embedder),
        stored_embedder=about,
        calibration=calibration,
        recipe=dict(found.about["recipe"]),  # type: ignore[call-overload]
        adaptation=found.adaptation,
        known=known,
        progress=progress,
    )
    pool.settle(revision, published.about)
    return Repair(published.current.generation, len(texts) - known.saved, known.saved)


def _embeds_queries(key: Key, about: StoredEmbedder) -> bool:
    """Whether a calibration embeds the examples that it asks: as queries they have other vectors."""
    return about.prompts.query != about.prompts.example or key.names_answer


def _present(embedder: Embedder | None) -> Embedder:
    assert embedder is not None  # it is loaded whenever a text has no vector, or a query to calibrate by
    return embedder


class _Known:
    """Where vectors are, and tokens, by text; counts the vectors that are embedded beside them."""

    def __init__(self, places: dict[str, _Place], tokens: dict[str, TextTokens]) -> None:
        self.places = places
        self.kept = tokens
        self.saved = 0

    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        found = [(text, self.places[text]) for text in texts if text in self.places]
        return {text: rows.take(np.array([place]))[0] for text, (rows, place) in found}

    def save(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self.saved += len(texts)

    def tokens(self, text: str) -> TextTokens | None:
        return self.kept.get(text)


def _remove(root: Path, names: Sequence[str]) -> None:
    for name in names:
        files.remove(root / name)
    if names:
        files.sync_directory(root)  # so that the damage does not come back with a power cut
