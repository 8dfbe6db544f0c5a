"""Opening: from the files of an index to its newest snapshot, or to the newest that is intact."""

from __future__ import annotations

import contextlib
from pathlib import Path

from indexes import current as currents
from indexes import generation as generations
from indexes.current import Current, current_path
from indexes.errors import to_repair
from indexes.generation import Generation
from retriever import verified
from retriever.base import Base
from retriever.embedders import same_space
from retriever.errors import IndexCorrupt, IndexMissing
from retriever.listening import Note
from retriever.pool import Pool
from retriever.revisions import Revision
from retriever.settings import IndexSettings
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder

_ATTEMPTS = 10


def pool_path(root: Path) -> Path:
    """Where the pool of an index is."""
    return root / "pool.sqlite"


def open_pool(root: Path) -> Pool:
    """The pool of an index, for reading.

    Raises:
        IndexMissing: There is no index, or its first build has not come far.
        IndexCorrupt: There is one, but its pool is missing or damaged.
    """
    published = current_path(root).exists() or bool(generations.generations(root))
    if not published and not pool_path(root).exists():
        raise IndexMissing(root)
    try:
        return Pool(pool_path(root))
    except IndexCorrupt:
        if published:
            raise
        # A first build that is just making its tables, or was killed while it did.
        raise unfinished(root) from None


def unfinished(root: Path) -> IndexMissing:
    """What there is instead of an index where its first build was killed, or is still at work."""
    return IndexMissing(
        root,
        seen=f"{root} holds the beginning of an index: its build did not finish",
        fix="run the same build again, it goes on where it stopped",
    )


def read_current(root: Path, pool: Pool) -> Current | None:
    """What CURRENT says; None when no build was ever finished.

    Raises:
        IndexCorrupt: It is damaged, or missing although a build was finished.
    """
    with contextlib.suppress(IndexMissing):
        return currents.read_current(root)
    if pool.head() is None:
        return None
    # The pool notes a build once CURRENT names it: one that was not there a moment ago is there by now.
    try:
        return currents.read_current(root)
    except IndexMissing:
        raise IndexCorrupt(current_path(root), "is missing", fix=to_repair(root)) from None


def open_snapshot(root: Path, pool: Pool, *, verify: bool, remember: bool = False, note: Note) -> Snapshot:
    """The newest view of an index; tried again when a writer publishes between one look and the next.

    Args:
        root: The index directory.
        pool: Its pool.
        verify: Whether to compare hashes and to look at every vector and posting.
        remember: Whether a verification within a day counts where no file was written to since; see
            `retriever.verified`.
        note: Told in one line when an older generation answers in place of what is damaged.

    Raises:
        IndexMissing: No build was finished.
        IndexCorrupt: It is damaged, and no generation that is intact can answer in its place.
        Incompatible: A newer format.
        StorageError: A file cannot be read.
    """
    for attempt in range(_ATTEMPTS):
        try:
            current = read_current(root, pool)
        except IndexCorrupt as damage:
            return _substitute(root, pool, damage, None, pool.head(), verify=verify, note=note)
        if current is None:
            raise unfinished(root)
        newest = Revision(current.revision, current.chain)
        try:
            view = _current_view(root, pool, current, verify=verify, remember=remember)
        except IndexCorrupt as damage:
            # No damage, if a writer has published meanwhile and removed what was being read.
            if attempt + 1 < _ATTEMPTS and read_current(root, pool) != current:
                continue
            return _substitute(root, pool, damage, current.generation, newest, verify=verify, note=note)
        snapshot = view.advanced(newest)
        if snapshot is not None:
            return snapshot
    raise IndexCorrupt(
        pool_path(root),
        "lacks the vectors of examples that were added",
        fix=to_repair(root),
    )


def _current_view(root: Path, pool: Pool, current: Current, *, verify: bool, remember: bool) -> Snapshot:
    directory = root / current.generation
    if not (verify and remember):
        return _view(generations.open_current(root, current, verify=verify), pool, verify=verify)
    seen = verified.state(directory)
    if seen and verified.known(current.manifest, directory, seen):
        return _view(generations.open_current(root, current, verify=False), pool, verify=False)
    view = _view(generations.open_current(root, current), pool, verify=True)
    verified.note(current.manifest, directory, seen)
    return view


def _substitute(
    root: Path,
    pool: Pool,
    damage: IndexCorrupt,
    before: str | None,
    newest: Revision | None,
    *,
    verify: bool,
    note: Note,
) -> Snapshot:
    """The view of the newest intact generation, moved on as far as the pool has the vectors of what came later."""
    generation = generations.open_substitute(root, damage, before=before, verify=verify, note=note)
    view = _view(generation, pool, verify=verify)
    if newest is None or newest.number <= view.revision.number or not _fits(generation, pool):
        return view
    return view.advanced(newest) or view


def _fits(generation: Generation, pool: Pool) -> bool:
    """Whether the vectors of later additions are of the generation's embedder and key, as far as the pool has noted."""
    about = pool.about()
    if about is None:
        return True
    here, newest = (StoredEmbedder(dict(one["embedder"]), {}) for one in (generation.manifest, about))  # type: ignore[call-overload]
    learned = here.manifest.get("learned") == newest.manifest.get("learned")
    keys = {IndexSettings.from_manifest(one["settings"]).key for one in (generation.manifest, about)}
    return len(keys) == 1 and learned and same_space(here.fingerprint, newest.fingerprint)


def _view(generation: Generation, pool: Pool, *, verify: bool) -> Snapshot:
    try:
        return Snapshot.of(Base.load(generation, verify=verify), pool)
    except BaseException:
        generation.hold.release()
        raise
