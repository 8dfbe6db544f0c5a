"""Writing: every operation that changes an index, each under its lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes import files
from indexes import generation as generations
from retriever.build import AboutEmbedder, Progress, publish
from retriever.embedders import Embedder, EmbedderSettings, EmbedderSource, load_embedder
from retriever.errors import BadRows, IndexMissing, InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Example
from retriever.formats import BadRow, BadRowLog
from retriever.keys import Key
from retriever.pool import Pool
from retriever.settings import IndexSettings
from retriever.snapshot import Snapshot, pool_revision

_LOCK = "LOCK"
_POOL = "pool.sqlite"


def pool_path(root: Path) -> Path:
    """Where the pool of an index is."""
    return root / _POOL


@contextlib.contextmanager
def writing(root: Path, *, create: bool = False) -> Iterator[tuple[Pool, int]]:
    """Holds the lock of an index and gives its pool, what an interrupted writer left behind cleared away.

    Yields:
        The pool, and the pool revision of the current generation; 0 when there is none yet.

    Raises:
        IndexLocked: Another process is writing.
        IndexMissing: There is no index, and none is to be created.
    """
    if create:
        files.make_directory(root)
    elif not pool_path(root).is_file():
        raise IndexMissing(root)
    with files.locked(root / _LOCK):
        pool = Pool(pool_path(root), create=create)
        try:
            published = _published_revision(root)
            pool.drop_unpublished(published)
            yield pool, published
        finally:
            pool.close()


def _published_revision(root: Path) -> int:
    try:
        name, digest = generations.read_current(root)
    except IndexMissing:
        return 0
    current = generations.open_generation(root, name, manifest_digest=digest, verify=False)
    return pool_revision(current)


@dataclass(frozen=True)
class BuildSettings:
    """What `build` is asked for beside the examples.

    Attributes:
        index: How examples are indexed.
        embedder: What embeds them.
        weight: The fusion weight; None calibrates it.
        strict: Whether a bad row fails the build instead of being set aside.
        overwrite: Whether the examples may take the place of those of an index that is there.
    """

    index: IndexSettings
    embedder: EmbedderSource = "auto"
    weight: float | None = None
    strict: bool = False
    overwrite: bool = False


def build_index(
    root: Path,
    read: Callable[[Callable[[BadRow], None]], Iterator[Example]],
    settings: BuildSettings,
    *,
    log: BadRowLog,
    note: Callable[[str], None],
    progress: Progress,
) -> Embedder:
    """Builds an index, or replaces what one holds; a reader sees the old examples until the new ones are all there.

    Args:
        root: The index directory.
        read: From a sink of bad rows to the examples.
        settings: How.
        log: Where the bad rows are counted.
        note: Told in one line what a reader should know.
        progress: Told how far the work is.

    Returns:
        The embedder.

    Raises:
        InvalidInput: There is an index and `overwrite` is off, or the directory holds something else.
        BadRows: A bad row under `strict`, or no usable row among some.
    """
    fresh = not root.exists()
    _check_target(root, overwrite=settings.overwrite)
    try:
        with writing(root, create=True) as (pool, published):
            revision = pool.stage(_usable(read(log), log, strict=settings.strict), replace=published > 0)
            embedder, about = _embedder(settings, pool, revision, note)
            generation = publish(
                root,
                pool,
                revision,
                settings=settings.index,
                embedder=lambda: embedder,
                about_embedder=about,
                weight=settings.weight,
                known={},
                progress=progress,
            )
            pool.publish(revision, vectors_kept_after=published)
            if generation.manifest["fusion"]["objective"] == "none":  # type: ignore[index]
                note("the pool has neither labels nor outputs to calibrate the fusion weight by: it is 0.5")
            generations.collect(root)
    except BaseException:
        if fresh:
            files.remove(root)
        raise
    return embedder


def _check_target(root: Path, *, overwrite: bool) -> None:
    if not root.exists():
        return
    if not root.is_dir() or (files.list_directory(root) and not pool_path(root).is_file()):
        raise InvalidInput(f"{root} is there and is no index", expected="a new path, or that of an index")
    if (root / "CURRENT").exists() and not overwrite:
        raise InvalidInput(
            f"{root} holds an index already", fix="add to it (retriever add), or replace its examples (--overwrite)"
        )


def _usable(examples: Iterable[Example], log: BadRowLog, *, strict: bool) -> Iterator[Example]:
    count = 0
    for example in examples:
        count += 1
        yield example
    if strict:
        log.raise_if_any()
    if not count and log.count:
        raise BadRows(
            log.rows,
            seen=f"no usable row: all {log.count} are bad, first {log.rows[0]}",
            fix="name the fields with input=, output= and so on; a pool without outputs has output=None (--no-output)",
        )


def _embedder(
    settings: BuildSettings, pool: Pool, revision: int, note: Callable[[str], None]
) -> tuple[Embedder, AboutEmbedder]:
    """The embedder, and what the manifest says of it."""
    key = Key(settings.index.key)
    embedder = load_embedder(
        settings.embedder,
        note=note,
        pool_texts=lambda: (key.text(pool_row.example) for pool_row in pool.examples(revision)),
    )
    if not isinstance(settings.embedder, str | EmbedderSettings):
        return embedder, AboutEmbedder.of(embedder, None)
    asked = EmbedderSettings(settings.embedder) if isinstance(settings.embedder, str) else settings.embedder
    # `auto` may mean another model on another machine or day; what it meant here is what the index needs.
    named = replace(asked, name=embedder.name) if asked.name == "auto" else asked
    return embedder, AboutEmbedder.of(embedder, named)


def compact(root: Path, pool: Pool, snapshot: Snapshot, embedder: Callable[[], Embedder], progress: Progress) -> None:
    """Publishes a generation that holds all that the snapshot shows. The caller holds the lock.

    Every vector is in the snapshot, so nothing is embedded.

    Args:
        root: The index directory.
        pool: Its pool.
        snapshot: The newest view of it.
        embedder: Gives its embedder, should an empty index ask for the dimension.
        progress: Told how far the work is.
    """
    generation = snapshot.base.generation
    publish(
        root,
        pool,
        snapshot.revision,
        settings=snapshot.base.settings,
        embedder=embedder,
        about_embedder=AboutEmbedder.from_generation(generation),
        weight=Calibration.from_dict(generation.manifest["fusion"]),
        known=_known(snapshot),
        progress=progress,
    )
    pool.publish(snapshot.revision, vectors_kept_after=snapshot.base.revision)
    generations.collect(root)


def _known(snapshot: Snapshot) -> dict[str, NDArray[np.float32]]:
    places = np.arange(len(snapshot.rows)) if snapshot.alive is None else np.flatnonzero(snapshot.alive)
    texts = (snapshot.key.text(pool_row.example) for pool_row in snapshot.pool.examples(snapshot.revision))
    vectors = snapshot.index.dense.vectors(places)
    return dict(zip(texts, vectors, strict=True))


def check_addable(example: Example, pool: Pool, key: Key) -> None:
    """Refuses an example that an index cannot take.

    Raises:
        InvalidInput: It lacks a field that the key needs, or its id is in the pool.
    """
    key.text(example)
    if pool.rows_of([example.id]):
        raise InvalidInput(f"id {example.id!r} is in the pool already")
