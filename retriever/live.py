"""LiveIndex: an index on disk, the view of it that this process has, and how both change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from indexes.errors import to_repair
from retriever import writing
from retriever.embedders import Embedder, EmbedderSettings, EmbedderSource
from retriever.errors import IndexCorrupt, RetrieverError
from retriever.evaluation.calibration import Calibration
from retriever.example import Example
from retriever.listening import Note, Progress
from retriever.opening import open_pool, open_snapshot, read_current
from retriever.query_encoder import QueryEncoder
from retriever.ranking.recipe import Recipe
from retriever.rescoring import Rescorer, Rescoring
from retriever.revisions import Revision
from retriever.selector import Selector
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder

COMPACT_AFTER = 1000
"""Changes since the last generation after which a change publishes a new one."""


class LiveIndex:
    """The state of a retriever. The view is replaced as a whole, so that readers in other threads are not disturbed.

    Args:
        path: The index directory.
        embedder: The caller's embedder, in place of the one that the index names.
        trust: Whether to skip the comparison of hashes.
        note: Told in one line what a reader should know.

    Attributes:
        selector: Answers queries from the newest view.
    """

    def __init__(self, path: Path, embedder: EmbedderSource | None, *, trust: bool, note: Note) -> None:
        self.path = path
        self._given = embedder
        self._trust = trust
        self._note = note
        self._changing = threading.RLock()
        self._pool = open_pool(path)
        try:
            snapshot = self._open()
            self._use(StoredEmbedder.from_generation(snapshot.base.generation))
            if embedder is not None:
                self._encoder.embedder  # noqa: B018  refuses a wrong one now, not at the first query
        except BaseException:
            self._pool.close()
            raise
        self.selector = self.selector_of(snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """The newest view that this process has."""
        return self.selector.snapshot

    def close(self) -> None:
        """Lets go of the index."""
        self._pool.close()
        self.snapshot.base.generation.close()

    def refresh(self) -> bool:
        """Moves on to the newest state on disk; whether there was anything new."""
        with self._changing:
            before = self.snapshot
            self._move_to(self._newest())
            return (before.base.generation.name, before.revision) != (
                self.snapshot.base.generation.name,
                self.snapshot.revision,
            )

    @contextlib.contextmanager
    def session(self) -> Iterator[writing.Session]:
        """Holds the lock, with the view at the state that the lock protects.

        Raises:
            IndexCorrupt: That state cannot be read; a change would build upon an older one.
        """
        with self._changing, writing.writing(self.path) as session:
            self._move_to(self._newest())
            if self.snapshot.revision != session.revision:
                raise IndexCorrupt(
                    self.snapshot.base.generation.path,
                    f"the newest state that can be read is revision {self.snapshot.revision.number}",
                    expected=f"revision {session.revision.number}",
                    fix=to_repair(self.path, " before it is changed"),
                )
            yield session

    def change(self, session: writing.Session, added: Sequence[Example], removed: Sequence[int]) -> None:
        """Removes rows of the index and adds examples; many changes are folded into a new generation.

        Args:
            session: The writer.
            added: Their ids are not in the pool, or those of `removed`.
            removed: Rows of the index, of the newest view.
        """
        if not added and not removed:
            return
        snapshot = self.snapshot
        texts = [snapshot.key.text(example) for example in added]
        known = snapshot.known_vectors(texts)
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, self._encoder.examples(new), strict=True))
        vectors = np.array([known[text] for text in texts], dtype=np.float32).reshape(len(texts), snapshot.dim)
        rows = snapshot.rows[np.array(removed, dtype=np.int64)].tolist()
        revision = session.pool.change(added, vectors, rows, session.revision)
        session.show(revision)
        newest = snapshot.advanced(revision)
        assert newest is not None  # the lock is held: nobody else can have published
        self._move_to(newest)
        if newest.changed > COMPACT_AFTER:
            try:
                self.compact(session)
            except RetrieverError as error:
                # The change itself is done and durable; an embedder may be needed for its tokens and not be there.
                self._note(f"the changes could not be folded into a new generation; the next one tries again: {error}")

    @property
    def encoder(self) -> QueryEncoder:
        """What embeds queries and new examples."""
        return self._encoder

    def selector_of(self, snapshot: Snapshot, encoder: QueryEncoder | None = None) -> Selector:
        """What answers queries from a view.

        Args:
            snapshot: The view.
            encoder: What embeds its queries; None for the index's own.
        """
        shared = self._rescoring if encoder is None else Rescoring(encoder)
        return Selector(snapshot, shared.encoder.queries, Rescorer(snapshot, shared))

    def compact(
        self, session: writing.Session, recipe: Recipe | None = None, searched: writing.Searched | None = None
    ) -> None:
        """Publishes a generation that holds all that the view shows; see `writing.compact`."""
        writing.compact(session, self.snapshot, lambda: self._encoder.embedder, recipe, searched)
        self._move_to(self._open())

    def embed_again(
        self,
        session: writing.Session,
        embedder: Callable[[], Embedder],
        about: StoredEmbedder,
        calibration: Calibration | None,
        progress: Progress,
        *,
        recipe: Recipe | None = None,
        rekeyed: writing.Rekeyed | None = None,
    ) -> None:
        """Publishes a generation of other vectors, or of another key; see `writing.embed_again`."""
        if self.snapshot.changed:
            self.compact(session)
        writing.embed_again(
            session, self.snapshot, embedder, about, calibration, progress, recipe=recipe, rekeyed=rekeyed
        )
        same = about.manifest == self._encoder.stored.manifest
        if not (same or (isinstance(self._given, EmbedderSettings) and self._given.name == "auto")):
            self._given = None  # what the caller brought was the former one
        self._move_to(self._open())

    def _open(self) -> Snapshot:
        return open_snapshot(self.path, self._pool, verify=not self._trust, remember=True, note=self._note)

    def _newest(self) -> Snapshot:
        """The newest view, at the cost of what has changed."""
        try:
            current = read_current(self.path, self._pool)
        except IndexCorrupt:
            return self._open()  # it says what can be answered without
        if current is not None and current.generation == self.snapshot.base.generation.name:
            advanced = self.snapshot.advanced(Revision(current.revision, current.chain))
            if advanced is not None:
                return advanced
        return self._open()

    def _move_to(self, snapshot: Snapshot) -> None:
        stored = StoredEmbedder.from_generation(snapshot.base.generation)
        if stored.manifest != self._encoder.stored.manifest:
            self._use(stored)
        if snapshot is not self.snapshot:
            self.selector = self.selector_of(snapshot)

    def _use(self, stored: StoredEmbedder) -> None:
        self._encoder = QueryEncoder(stored, self._given, self._note)
        self._rescoring = Rescoring(self._encoder)
