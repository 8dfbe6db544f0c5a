"""Writing: every operation that changes an index, each under its lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes import files
from indexes import generation as generations
from indexes.ann_choice import planned_bytes
from indexes.current import Current, current_path, point
from indexes.vector_storage import gives
from retriever.adaptation.stored import FILE, Adaptation
from retriever.build import Progress, Published, about_of, ann_room, publish
from retriever.embedders import Embedder, EmbedderSettings, EmbedderSource, load_embedder, prompts_of
from retriever.errors import BadRows, IndexMissing, InvalidInput, OutOfSpace
from retriever.evaluation.calibration import Calibration
from retriever.example import Example
from retriever.formats import BadRow, BadRowLog, Limits
from retriever.keys import Key
from retriever.opening import open_snapshot, pool_path, read_current
from retriever.plan import BuildPlan
from retriever.pool import Pool
from retriever.ranking.recipe import Recipe
from retriever.revisions import Revision
from retriever.saved_vectors import SavedVectors, saved_directory
from retriever.settings import IndexSettings
from retriever.snapshot import Snapshot, pool_revision
from retriever.stored_embedder import StoredEmbedder
from retriever.texts import Texts
from retriever.token_storage import TextTokens, predicted_bytes

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
            raise IndexMissing(root)
        pool.settle(Revision(), {})
    else:
        manifest = generations.read_manifest(root, current.generation, current.manifest)
        pool.settle(Revision(current.revision, current.chain), about_of(manifest))
    return Session(root, pool, current)


@dataclass(frozen=True)
class BuildSettings:
    """What `build` is asked for beside the examples.

    Attributes:
        index: How examples are indexed.
        embedder: What embeds them.
        weight: The fusion weight; None calibrates it.
        strict: Whether a bad row fails the build instead of being set aside.
        overwrite: Whether the examples may take the place of those of an index that is there.
        max_rows: The most examples that are taken.
        max_memory: The most bytes of memory that the build may be predicted to need; None for any.
        recipe: How demonstrations are selected where nobody says otherwise.
    """

    index: IndexSettings
    embedder: EmbedderSource = "auto"
    weight: Calibration | None = None
    strict: bool = False
    overwrite: bool = False
    max_rows: int = Limits.rows
    max_memory: int | None = None
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class Told:
    """Who is told what during a build.

    Attributes:
        note: In one line what a reader should know.
        progress: How far the work is.
        plan: Before the work starts, what it is predicted to need.
    """

    note: Callable[[str], None]
    progress: Progress
    plan: Callable[[BuildPlan], None]


def build_index(
    root: Path,
    read: Callable[[Callable[[BadRow], None]], Iterator[Example]],
    settings: BuildSettings,
    *,
    log: BadRowLog,
    tell: Told,
) -> Embedder | None:
    """Builds an index, or replaces what one holds; a reader sees the old examples until the new ones are all there.

    Args:
        root: The index directory.
        read: From a sink of bad rows to the examples.
        settings: How.
        log: Where the bad rows are counted.
        tell: Who is told what.

    Returns:
        What embeds queries; None where it is to be loaded as the index says, since the pool was embedded in less
        precision.

    Raises:
        InvalidInput: There is an index and `overwrite` is off, the directory holds something else, or the build is
            over a limit.
        BadRows: A bad row under `strict`, or no usable row among some.
        StorageError: The operating system refuses.
    """
    _check_target(root)
    with writing(root, create=True) as session:
        if session.current is not None and not settings.overwrite:
            raise InvalidInput(
                f"{root} holds an index already", fix="add to it (retriever add), or replace its examples (--overwrite)"
            )
        return _build(session, read, settings, log, tell)


def _build(
    session: Session,
    read: Callable[[Callable[[BadRow], None]], Iterator[Example]],
    settings: BuildSettings,
    log: BadRowLog,
    tell: Told,
) -> Embedder | None:
    generations.collect(session.root, session.current)
    examples = _usable(read(log), log, strict=settings.strict, most=settings.max_rows)
    revision = session.pool.stage(examples, session.revision, replace=session.current is not None)
    key = Key(settings.index.key)
    embedder, about = load_for(key, settings.embedder, session.pool, revision, tell.note)
    _check_plan(session.pool, revision, embedder, settings, tell)
    saved = SavedVectors(session.root, about.space)
    if saved:
        tell.note(f"an interrupted build has left the vectors of {len(saved):,} texts: they are used")
    adapted = _is_adapted(session)
    try:
        published = publish(
            session.root,
            session.pool,
            revision,
            settings=settings.index,
            embedder=lambda: embedder,
            stored_embedder=about,
            weight=settings.weight,
            recipe=settings.recipe.to_dict(),
            known=Reused(_indexed(session, about, settings.index.vectors), saved),
            progress=tell.progress,
        )
    except BaseException:
        if saved:
            tell.note(f"the vectors of {len(saved):,} texts are kept: run the same build again to go on from there")
        raise
    _finish(session, published, revision)
    files.remove(saved_directory(session.root))
    if adapted:
        tell.note("the index was adapted to the examples that it had: adapt it again (retriever adapt)")
    for line in published.notes():
        tell.note(line)
    return None if about.is_rounded else embedder


def _is_adapted(session: Session) -> bool:
    if session.current is None:
        return False
    manifest = generations.read_manifest(session.root, session.current.generation, session.current.manifest)
    embedder = manifest["embedder"]
    return FILE in manifest or (isinstance(embedder, dict) and "tuned" in embedder)


def _check_plan(pool: Pool, revision: Revision, embedder: Embedder, settings: BuildSettings, tell: Told) -> None:
    """Tells what the build will need, and refuses one that may not have it."""
    index = settings.index
    tokens = 0
    if index.token_vectors:
        texts = Texts.of(pool, revision, Key(index.key))
        tokens = predicted_bytes(embedder, texts.texts, texts.number, prefix=prompts_of(embedder).example)
    bare = BuildPlan(*pool.size(revision.number), embedder.dim, index.vectors, token_bytes=tokens)
    first = planned_bytes(index.ann, index.recall, bare.examples, bare.dim, ann_room(bare, index))
    plan = replace(bare, ann_bytes=first)
    tell.plan(plan)
    if settings.max_memory is not None and plan.memory_bytes > settings.max_memory:
        raise InvalidInput(
            f"a build of {plan.examples:,} examples needs about {plan.memory_bytes:,} bytes of memory",
            expected=f"at most {settings.max_memory:,}",
            fix="raise the limit (--max-memory), store the vectors smaller (--vectors float16), or split the pool",
        )
    free = files.free_bytes(pool.path.parent)
    if free < plan.disk_bytes:
        raise OutOfSpace(pool.path.parent, plan.disk_bytes, free)


def check_size(rows: int, most: int) -> None:
    """Refuses a pool with too many examples.

    Raises:
        InvalidInput: There are more than `most`.
    """
    if rows > most:
        raise InvalidInput(
            f"a pool of more than {most:,} examples", expected=f"at most {most:,}", fix="raise the limit"
        )


def _indexed(session: Session, about: StoredEmbedder, vectors: str) -> Snapshot | None:
    """What is indexed already, if its vectors are of the same space to the last bit, and give the type's own."""
    if session.current is None:
        return None
    # They become part of what is published now, so they must be what was published then.
    view = open_snapshot(session.root, session.pool, verify=True, note=lambda line: None)
    same = StoredEmbedder.from_generation(view.base.generation).space == about.space
    return view if same and gives(view.base.settings.vectors, vectors) else None


class Reused:
    """The vectors and tokens of what is indexed already, and the vectors that an interrupted build has saved.

    Args:
        indexed: What is indexed; None for nothing.
        saved: What an interrupted build has saved; None where nothing is, or is to be.
    """

    def __init__(self, indexed: Snapshot | None, saved: SavedVectors | None = None) -> None:
        self._indexed = indexed
        self._places: dict[str, int] = {}
        self._with_tokens: dict[str, int] = {}
        self._tokens = None if indexed is None else indexed.base.tokens
        self._saved = saved
        if indexed is not None:
            present = [(indexed.key.text(example), place) for place, example in indexed.present()]
            self._places = dict(present)
            # What was removed since the generation may be back under another row, with the same text.
            gone = [place for place in indexed.removed if place < len(indexed.base.rows)]
            removed = [indexed.key.text(example) for example in indexed.examples(gone)]
            kept = [(text, place) for text, place in present if place < len(indexed.base.rows)]
            self._with_tokens = dict([*zip(removed, gone, strict=True), *kept])

    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As `Known` says."""
        saved = self._saved.get if self._saved is not None else lambda text: None
        found = {text: vector for text in texts if (vector := saved(text)) is not None}
        here = [text for text in texts if text in self._places]
        if self._indexed is not None and here:
            places = np.array([self._places[text] for text in here], dtype=np.int64)
            found |= zip(here, self._indexed.embedded(places), strict=True)
        return found

    def tokens(self, text: str) -> TextTokens | None:
        """As `Known` says."""
        place = self._with_tokens.get(text)
        return None if self._tokens is None or place is None else self._tokens.text(place)

    def save(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """As `Known` says."""
        if self._saved is not None:
            self._saved.save(texts, vectors)


def _finish(session: Session, published: Published, revision: Revision) -> None:
    """Tidies up after a publication. A crash within it loses nothing: the next writer does the same."""
    session.pool.settle(revision, published.about)
    if session.current is not None:
        before = generations.read_manifest(session.root, session.current.generation, session.current.manifest)
        session.pool.drop_vectors(until=pool_revision(before))
    generations.collect(session.root, published.current)


def _check_target(root: Path) -> None:
    """Refuses a directory that holds something else, before anything in it is touched."""
    if not root.exists():
        return
    # A build that is killed at once leaves its lock, and SQLite's journal, before there is a pool.
    beginnings = {LOCK, *(f"{pool_path(root).name}{suffix}" for suffix in ("", "-journal", "-wal", "-shm"))}
    if not root.is_dir() or not (pool_path(root).is_file() or beginnings.issuperset(files.list_directory(root))):
        raise InvalidInput(f"{root} is there and is no index", expected="a new path, or that of an index")


def _usable(examples: Iterable[Example], log: BadRowLog, *, strict: bool, most: int) -> Iterator[Example]:
    count = 0
    for example in examples:
        count += 1
        check_size(count, most)
        yield example
    if strict:
        log.raise_if_any()
    if not count and log.count:
        raise BadRows(
            log.rows,
            seen=f"no usable row: all {log.count} are bad, first {log.rows[0]}",
            fix="name the fields with input=, output= and so on; a pool without outputs has output=None (--no-output)",
        )


def load_for(
    key: Key, source: EmbedderSource, pool: Pool, revision: Revision, note: Callable[[str], None]
) -> tuple[Embedder, StoredEmbedder]:
    """The embedder for the texts of a revision, fitted on them if it is of that kind, and what the manifest says of it.

    Raises:
        EmbedderError: It cannot be loaded.
    """
    embedder = load_embedder(
        source,
        note=note,
        pool_texts=lambda: (key.text(pool_row.example) for pool_row in pool.examples(revision.number)),
    )
    if not isinstance(source, str | EmbedderSettings):
        return embedder, StoredEmbedder.of(embedder, None)
    asked = EmbedderSettings(source) if isinstance(source, str) else source
    # `auto` may mean another model on another machine or day; what it meant here is what the index needs.
    named = replace(asked, name=embedder.name) if asked.name in ("auto", "static:auto") else asked
    return embedder, StoredEmbedder.of(embedder, named)


@dataclass(frozen=True)
class Searched:
    """How a new generation is searched, where that changes.

    Attributes:
        adaptation: The map that rows and queries go through; None for the embedder's own vectors.
        weight: The fusion weight; None calibrates it.
    """

    adaptation: Adaptation | None
    weight: Calibration | None


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
        searched = Searched(snapshot.base.adaptation, Calibration.from_dict(generation.manifest["fusion"]))
    generations.collect(session.root, session.current)
    published = publish(
        session.root,
        session.pool,
        snapshot.revision,
        settings=snapshot.base.settings,
        embedder=embedder,
        stored_embedder=StoredEmbedder.from_generation(generation),
        weight=searched.weight,
        recipe=snapshot.base.recipe if recipe is None else recipe.to_dict(),
        adaptation=searched.adaptation,
        known=Reused(snapshot),
        progress=lambda stage, done, total: None,
    )
    _finish(session, published, snapshot.revision)


@dataclass(frozen=True)
class Rekeyed:
    """Another key of an index.

    Attributes:
        key: Which text of an example is indexed from now on.
        indexed: The same pool by that key; what of its texts has a vector there is not embedded again.
        recipe: The new default recipe.
    """

    key: str
    indexed: Snapshot
    recipe: Recipe


def embed_again(
    session: Session,
    snapshot: Snapshot,
    embedder: Callable[[], Embedder],
    about: StoredEmbedder,
    weight: Calibration | None,
    progress: Progress,
    rekeyed: Rekeyed | None = None,
) -> None:
    """Publishes a generation whose vectors are another embedder's or of other texts; a map of the former ones goes.

    Args:
        session: The writer.
        snapshot: The newest view, without changes since its generation: the pool's own vectors go first, for from now
            on they would be taken for this embedder's, of these texts.
        embedder: Gives what embeds from now on; not called when nothing needs it.
        about: What is stored of it.
        weight: The fusion weight; None calibrates it.
        progress: Told how far the work is.
        rekeyed: The key that there is from now on, and the recipe; None leaves both as they are.
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
        weight=weight,
        recipe=base.recipe if rekeyed is None else rekeyed.recipe.to_dict(),
        known=Reused(None if rekeyed is None else rekeyed.indexed),
        progress=progress,
    )
    _finish(session, published, snapshot.revision)


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
    with writing(Path(path)) as session:
        return tuple(generations.collect(session.root, session.current))
