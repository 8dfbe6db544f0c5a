"""Writing: the lock of an index, and what publishes a generation of examples that the pool holds already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from indexes import files
from indexes import generation as generations
from indexes.current import Current, current_path, point
from retriever.adaptation.stored import Adaptation
from retriever.base import pool_revision
from retriever.embedders import Embedder
from retriever.errors import IndexMissing
from retriever.evaluation.calibration import Calibration
from retriever.listening import Progress, silent
from retriever.opening import open_pool, pool_path, read_current, unfinished
from retriever.pool import Pool
from retriever.publishing import Published, about_of, publish
from retriever.ranking.recipe import Recipe
from retriever.reused import Reused
from retriever.revisions import Revision
from retriever.saved_vectors import saved_directory
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder

LOCK = "LOCK"


@dataclass(frozen=True)
class Session:
    """What a writer has while it holds the lock of an index.

    Attributes:
        root: The index directory.
        pool: Its pool, for writing.
        current: What CURRENT says; None before the first build is finished.
    """

    root: Path
    pool: Pool
    current: Current | None

    @property
    def revision(self) -> Revision:
        """The newest revision of the pool that readers see."""
        return Revision() if self.current is None else Revision(self.current.revision, self.current.chain)

    def show(self, revision: Revision) -> None:
        """Makes a revision that the pool holds the one that readers see; durable when it returns."""
        assert self.current is not None
        point(self.root, replace(self.current, revision=revision.number, chain=revision.chain))


@contextlib.contextmanager
def writing(root: Path, *, create: bool = False) -> Iterator[Session]:
    """Holds the lock of an index, what an interrupted writer left behind cleared away.

    Raises:
        IndexLocked: Another process is writing.
        IndexMissing: There is no index, and none is to be created.
        IndexCorrupt: It is damaged in a way that a writer could make worse.
        StorageError: The operating system refuses.
    """
    fresh = create and not root.exists()
    if create:
        files.make_directory(root)
    elif not pool_path(root).is_file():
        raise IndexMissing(root)
    with files.locked(root / LOCK):
        try:
            with contextlib.closing(Pool(pool_path(root), create=create, writable=True)) as pool:
                yield _settled(root, pool, create=create)
        except BaseException:
            # Only who holds the lock may clear away: another builder may have made what is here.
            if fresh and not current_path(root).exists() and not saved_directory(root).exists():
                files.remove(root)
            raise


def _settled(root: Path, pool: Pool, *, create: bool) -> Session:
    """What is there, once what an interrupted writer has left is cleared away."""
    current = read_current(root, pool)
    if current is None:
        if not create:
            raise unfinished(root)
        pool.settle(Revision(), {})
    else:
        manifest = generations.read_manifest(root, current.generation, current.manifest)
        pool.settle(Revision(current.revision, current.chain), about_of(manifest))
    return Session(root, pool, current)


def finish(session: Session, published: Published, revision: Revision) -> None:
    """Tidies up after a publication. A crash within it loses nothing: the next writer does the same."""
    session.pool.settle(revision, published.about)
    if session.current is not None:
        before = generations.read_manifest(session.root, session.current.generation, session.current.manifest)
        session.pool.drop_vectors(until=pool_revision(before))
    generations.collect(session.root, published.current)


@dataclass(frozen=True)
class Searched:
    """How a new generation is searched, where that changes.

    Attributes:
        adaptation: The map that rows and queries go through; None for the embedder's own vectors.
        calibration: The fusion weight; None calibrates it.
    """

    adaptation: Adaptation | None
    calibration: Calibration | None


def compact(
    session: Session,
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    recipe: Recipe | None = None,
    searched: Searched | None = None,
) -> None:
    """Publishes a generation that holds all that the newest snapshot shows.

    Every vector is in the snapshot, so nothing is embedded but the tokens of added texts, where tokens are stored.

    Args:
        session: The writer.
        snapshot: The newest view.
        embedder: Gives what embeds tokens, and queries to calibrate with; not called otherwise.
        recipe: The new default recipe; None leaves it as it is.
        searched: How it is searched; None leaves that as it is.
    """
    generation = snapshot.base.generation
    if searched is None:
        searched = Searched(snapshot.base.adaptation, snapshot.base.calibration)
    generations.collect(session.root, session.current)
    published = publish(
        session.root,
        session.pool,
        snapshot.revision,
        settings=snapshot.base.settings,
        embedder=embedder,
        stored_embedder=StoredEmbedder.from_generation(generation),
        calibration=searched.calibration,
        recipe=snapshot.base.recipe if recipe is None else recipe.to_dict(),
        adaptation=searched.adaptation,
        known=Reused(snapshot),
        progress=silent,
    )
    finish(session, published, snapshot.revision)


@dataclass(frozen=True)
class Rekeyed:
    """Another key of an index.

    Attributes:
        key: Which text of an example is indexed from now on.
        indexed: The same pool by that key; what of its texts has a vector there is not embedded again.
    """

    key: str
    indexed: Snapshot


def embed_again(
    session: Session,
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    about: StoredEmbedder,
    calibration: Calibration | None,
    progress: Progress,
    *,
    recipe: Recipe | None = None,
    rekeyed: Rekeyed | None = None,
) -> None:
    """Publishes a generation whose vectors are another embedder's or of other texts; a map of the former ones goes.

    Args:
        session: The writer.
        snapshot: The newest view, without changes since its generation: the pool's own vectors go first, for from now
            on they would be taken for this embedder's, of these texts.
        embedder: Gives what embeds from now on; not called when nothing needs it.
        about: What is stored of it.
        calibration: The fusion weight; None calibrates it.
        progress: Told how far the work is.
        recipe: The new default recipe; None leaves it as it is.
        rekeyed: The key that there is from now on; None leaves it as it is.
    """
    assert not snapshot.changed
    base = snapshot.base
    generations.collect(session.root, session.current)
    session.pool.drop_vectors(until=snapshot.revision)
    published = publish(
        session.root,
        session.pool,
        snapshot.revision,
        settings=base.settings if rekeyed is None else replace(base.settings, key=rekeyed.key),
        embedder=embedder,
        stored_embedder=about,
        calibration=calibration,
        recipe=base.recipe if recipe is None else recipe.to_dict(),
        known=Reused(None if rekeyed is None else rekeyed.indexed),
        progress=progress,
    )
    finish(session, published, snapshot.revision)


def collect(path: str | Path) -> tuple[str, ...]:
    """Removes what nobody needs: generations before the last two that no reader holds, and what a crash left behind.

    Publishing does the same; this is for what was held, or could not be removed, at the time.

    Args:
        path: The index directory.

    Returns:
        The names that were removed.

    Raises:
        IndexMissing: There is no index.
        IndexLocked: Another process is writing.
    """
    open_pool(Path(path)).close()  # what is no index yet is refused as a reader refuses it
    with writing(Path(path)) as session:
        return tuple(generations.collect(session.root, session.current))
