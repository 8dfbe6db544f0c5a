"""Building: from a source of examples to an index, or to other examples in one that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from indexes import files
from indexes import generation as generations
from indexes.ann_choice import planned_bytes
from indexes.vector_storage import gives
from retriever.adaptation.stored import is_adapted
from retriever.embedders import Embedder, EmbedderSource, prompts_of
from retriever.errors import BadRows, InvalidInput, OutOfSpace
from retriever.evaluation.calibration import Calibration
from retriever.example import Example
from retriever.formats import BadRow, BadRowLog, Limits
from retriever.keys import Key
from retriever.listening import Note, Progress
from retriever.opening import open_snapshot, pool_path
from retriever.plan import BuildPlan
from retriever.pool import Pool
from retriever.publishing import ann_room, publish
from retriever.ranking.recipe import Recipe
from retriever.recipes import check_tokens
from retriever.reused import Reused
from retriever.revisions import Revision
from retriever.saved_vectors import SavedVectors, saved_directory
from retriever.settings import IndexSettings
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder, load_for
from retriever.texts import Texts
from retriever.token_storage import predicted_bytes
from retriever.writing import LOCK, Session, finish, writing


@dataclass(frozen=True)
class BuildSettings:
    """What `build` is asked for beside the examples.

    Attributes:
        index: How examples are indexed.
        embedder: What embeds them.
        calibration: The fusion weight; None calibrates it.
        strict: Whether a bad row fails the build instead of being set aside.
        overwrite: Whether the examples may take the place of those of an index that is there.
        max_rows: The most examples that are taken.
        max_memory: The most bytes of memory that the build may be predicted to need; None for any.
        recipe: How demonstrations are selected where nobody says otherwise.
    """

    index: IndexSettings
    embedder: EmbedderSource = "auto"
    calibration: Calibration | None = None
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

    note: Note
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
    check_tokens(settings.recipe, lambda: embedder)
    _check_plan(session.pool, revision, embedder, about.bytes, settings, tell)
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
            calibration=settings.calibration,
            recipe=settings.recipe.to_dict(),
            known=Reused(_indexed(session, about, settings.index.vectors, tell.note), saved),
            progress=tell.progress,
        )
    except BaseException:
        if saved:
            tell.note(f"the vectors of {len(saved):,} texts are kept: run the same build again to go on from there")
        raise
    finish(session, published, revision)
    files.remove(saved_directory(session.root))
    if adapted:
        tell.note("the index was adapted to the examples that it had: adapt it again (retriever adapt)")
    for line in published.notes():
        tell.note(line)
    return None if about.is_rounded else embedder


def _is_adapted(session: Session) -> bool:
    if session.current is None:
        return False
    return is_adapted(generations.read_manifest(session.root, session.current.generation, session.current.manifest))


def _check_plan(
    pool: Pool, revision: Revision, embedder: Embedder, stored: int, settings: BuildSettings, tell: Told
) -> None:
    """Tells what the build will need, and refuses one that may not have it."""
    index = settings.index
    tokens = 0
    if index.token_vectors:
        texts = Texts.of(pool, revision, Key(index.key))
        tokens = predicted_bytes(embedder, texts.texts, texts.number, prefix=prompts_of(embedder).example)
    bare = BuildPlan(
        *pool.size(revision.number), embedder.dim, index.vectors, token_bytes=tokens, embedder_bytes=stored
    )
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


def _indexed(session: Session, about: StoredEmbedder, vectors: str, note: Note) -> Snapshot | None:
    """What is indexed already, if its vectors are of the same space to the last bit, and give the type's own."""
    if session.current is None:
        return None
    # They become part of what is published now, so they must be what was published then.
    view = open_snapshot(session.root, session.pool, verify=True, note=note)
    same = StoredEmbedder.from_generation(view.base.generation).space == about.space
    return view if same and gives(view.base.settings.vectors, vectors) else None


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
