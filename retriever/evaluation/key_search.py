"""Other keys of an index, to try: the same pool by another text of each example, in a temporary directory.

What is tried is what would be built: the same embedder, prompts, analyzer, BM25 and types, the fusion weight calibrated
unless it was given. Its rows are the pool's own, so that selections by two keys are of the same examples. A key that is
kept becomes a generation of the index, and takes its vectors from here: no text is embedded twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from indexes import generation as generations
from retriever.base import Base
from retriever.embedders import Embedder
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import QueryLike
from retriever.formats import Limits
from retriever.keys import Key
from retriever.listening import Note, Progress, silent
from retriever.live import LiveIndex
from retriever.publishing import publish
from retriever.query_encoder import QueryEncoder
from retriever.ranking.recipe import Recipe
from retriever.recipes import RecipeLike, select_each
from retriever.reused import Reused
from retriever.selection import Selection
from retriever.selector import Selector
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder, load_for
from retriever.writing import Rekeyed


@dataclass(frozen=True)
class Trial:
    """An index by another key, as long as its directory is there.

    Attributes:
        key: Which text of an example is indexed.
        own: The view of the index that it was made from.
        selector: Answers queries by this key.
        calibration: The fusion weight.
    """

    key: str
    own: Snapshot
    selector: Selector
    calibration: Calibration
    _live: LiveIndex
    _limits: Limits
    _embedder: Callable[[], Embedder]
    _about: StoredEmbedder

    @property
    def snapshot(self) -> Snapshot:
        """The view that answers."""
        return self.selector.snapshot

    def select_each(
        self, queries: Iterable[QueryLike], recipes: Sequence[RecipeLike]
    ) -> Iterator[tuple[Selection, ...]]:
        """As `Retriever.select_each`, by this key."""
        return select_each(self.selector, queries, recipes, self._limits)

    def keep(self, recipe: Recipe, progress: Progress = silent) -> str:
        """Makes the key and a recipe those of the index; durable when it returns.

        A generation is published, with what was added and removed meanwhile. Nothing is embedded but texts that were
        added.

        Args:
            recipe: The new default recipe; without a weight it has the one calibrated for this key.
            progress: Told how far the work is.

        Returns:
            The generation that answers now.

        Raises:
            InvalidInput: The index has other settings or another embedder meanwhile, lacks an example that the recipe
                fixes, or has one that lacks a field of the key.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        live = self._live
        with live.session() as session:
            before, now = self.own.base, live.snapshot.base
            embedder, other = (base.generation.manifest["embedder"] for base in (before, now))
            if (before.settings, embedder) != (now.settings, other) or now.adaptation is not None:
                raise InvalidInput("the index was built or adapted in another way meanwhile", fix="try the key again")
            if recipe.select.fixed:
                live.selector.check_ids(recipe.select.fixed)
            rekeyed = Rekeyed(self.key, self.snapshot)
            live.embed_again(
                session, self._embedder, self._about, self.calibration, progress, recipe=recipe, rekeyed=rekeyed
            )
        return live.snapshot.base.generation.name


@contextmanager
def trials(
    live: LiveIndex, keys: Sequence[str], limits: Limits, note: Note, progress: Progress
) -> Iterator[Mapping[str, Trial]]:
    """Indexes the pool by other keys; see `Retriever.try_keys`."""
    snapshot = live.snapshot
    for place, key in enumerate(keys):
        _check(Key(key), snapshot, keys[:place])
    if keys and snapshot.is_adapted:
        raise InvalidInput(
            "other keys of an index that is adapted to the texts of its own",
            expected="one that is not adapted",
            fix=f"undo that first (retriever adapt {live.path} --undo), and adapt it again afterwards",
        )
    with tempfile.TemporaryDirectory(prefix="retriever-") as directory, ExitStack() as held:
        found: dict[str, Trial] = {}
        for number, key in enumerate(keys):
            root = Path(directory) / str(number)
            root.mkdir()
            found[key] = _tried(key, snapshot, live, root, limits, note, progress)
            held.callback(found[key].snapshot.base.generation.close)
        yield found


def _check(key: Key, snapshot: Snapshot, before: Sequence[str]) -> None:
    """Refuses a key that cannot be compared with the index's own."""
    if key == snapshot.key or key.spec in before:
        raise InvalidInput(
            f"the key {key.spec!r}, which {'is tried already' if key.spec in before else 'is that of the index'}",
            expected="other keys, each once",
        )
    if not key.is_askable:
        raise InvalidInput(
            f"the key {key.spec!r}, which needs the answer: a query has none",
            expected="a key that leaves out what a query does not have, such as input+output",
            fix="join fields by +, with the input among them",
        )


def _tried(
    key: str, snapshot: Snapshot, live: LiveIndex, root: Path, limits: Limits, note: Note, progress: Progress
) -> Trial:
    """The pool of a view by another key."""
    own = live.encoder.stored
    embedder, about = _embedder(key, snapshot, live, note)
    published = publish(
        root,
        snapshot.pool,
        snapshot.revision,
        settings=replace(snapshot.base.settings, key=key),
        embedder=embedder,
        stored_embedder=about,
        calibration=snapshot.base.calibration.if_given(),
        recipe=snapshot.base.recipe,
        known=Reused(snapshot if about.space == own.space else None),
        progress=lambda stage, done, total: progress(f"{key}: {stage}", done, total),
    )
    generation = generations.open_current(root, published.current, verify=False)
    view = Snapshot.of(Base.load(generation, verify=False), snapshot.pool)
    if np.array_equal(view.text_hashes, snapshot.text_hashes[snapshot.live]):
        generation.close()
        raise InvalidInput(
            f"the key {key!r}, by which every example has the text that it has by {snapshot.key.spec!r}",
            expected="a key that names a field which some example has",
        )
    encoder = None
    if about.manifest != own.manifest:
        encoder = QueryEncoder(about, None if about.is_rounded else embedder(), note)
    selector = live.selector_of(view, encoder)
    return Trial(
        key=key,
        own=snapshot,
        selector=selector,
        calibration=published.calibration,
        _live=live,
        _limits=limits,
        _embedder=embedder,
        _about=about,
    )


def _embedder(
    key: str, snapshot: Snapshot, live: LiveIndex, note: Note
) -> tuple[Callable[[], Embedder], StoredEmbedder]:
    """What embeds the pool by a key, and what is stored of it: as in the index, but what is fitted is fitted anew."""
    stored = live.encoder.stored
    if stored.manifest["settings"] is not None and (stored.is_fitted or stored.is_rounded):
        made, about = load_for(Key(key), stored.pool_source, snapshot.pool, snapshot.revision, note)
        return lambda: made, about
    return lambda: live.encoder.embedder, stored
