"""Applying: an index on disk is searched by what was learned, or again by what it was before.

A fusion weight in the default recipe, as `tune` leaves it, was chosen for the former vectors and would win over the one
that is calibrated for what was learned. It gives way, stands in the manifest, and comes back when the index does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from retriever import writing
from retriever.adaptation.adapt import Adapted, Teacher, Tuned, adapt
from retriever.adaptation.feedback import known_ids, read_feedback
from retriever.adaptation.full import adapt_fully
from retriever.adaptation.learner import LearnerSettings
from retriever.adaptation.stored import FILE, RECIPE_WEIGHT
from retriever.adaptation.supervision import SOURCES
from retriever.adaptation.training import FinetuneSettings
from retriever.embedders import Embedder, same_space
from retriever.errors import Incompatible, InvalidInput
from retriever.formats import BadRow, Limits, Source
from retriever.listening import Note, Progress, silent
from retriever.live import LiveIndex
from retriever.ranking.recipe import Recipe
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder, load_for


def teacher_of(
    source: Source | None,
    snapshot: Snapshot,
    limits: Limits,
    note: Note,
    *,
    strict: bool,
    on_bad: Callable[[BadRow], None] | None,
) -> Teacher:
    """What of the pool is learned from, or a log of outcomes, what cannot be used of it told; see `Retriever.adapt`."""
    if source is None or (isinstance(source, str) and source in SOURCES):
        return source
    log = read_feedback(source, usable=snapshot.key.text, limits=limits, strict=strict, on_bad=on_bad or silent)
    if log.bad and on_bad is None:
        note(f"{log.bad} bad lines of {log.name} were set aside, first {log.first_bad}")
    known, unknown = known_ids(log, snapshot.places_of)
    if unknown:
        note(f"{log.name} names {unknown:,} examples that are not in the pool, and {len(known):,} that are")
    return log


def adapt_index(live: LiveIndex, settings: LearnerSettings, teacher: Teacher, progress: Progress) -> Adapted:
    """Learns a map and publishes it where it helps; see `Retriever.adapt`."""
    # Learning takes a while: others may write meanwhile. A map fits whatever examples there are by then.
    embedder = live.encoder.stored.manifest
    found = adapt(live.snapshot, live.encoder, settings, progress, teacher)
    if found.adaptation is not None:
        with live.session() as session:
            _check_same(live, embedder)
            adaptation = replace(found.adaptation, about=_noted(found.adaptation.about, live.snapshot))
            searched = writing.Searched(adaptation, found.calibration)
            found = replace(found, recipe_weight=_recipe_weight(live.snapshot))
            live.compact(session, _weighing(live, None), searched)
    return found


def fine_tune_index(
    live: LiveIndex, settings: FinetuneSettings, teacher: Teacher, progress: Progress, note: Note
) -> Adapted:
    """Fine-tunes the model and embeds the pool with it where that helps; see `Retriever.fine_tune`."""
    before = live.encoder.stored
    found = adapt_fully(live.snapshot, live.encoder, settings, progress, note, teacher)
    if found.tuned is not None:
        tuned = found.tuned
        embedder, about = _loaded(tuned, before, note)
        with live.session() as session:
            _check_same(live, before.manifest)
            found = replace(found, recipe_weight=_recipe_weight(live.snapshot))
            about = replace(about, manifest={**about.manifest, "tuned": _noted(tuned.about, live.snapshot)})
            live.embed_again(
                session, lambda: embedder, about, found.calibration, progress, recipe=_weighing(live, None)
            )
    return found


def _recipe_weight(snapshot: Snapshot) -> float | None:
    """The fusion weight that the index's default recipe sets."""
    return _number(snapshot.base.recipe.get("retrieve"), "weight")


def _weighing(live: LiveIndex, weight: float | None) -> Recipe | None:
    """The index's default recipe with another fusion weight, None for the calibrated one; None where it has that."""
    if _recipe_weight(live.snapshot) == weight:
        return None
    recipe = live.selector.recipe
    return replace(recipe, retrieve=replace(recipe.retrieve, weight=weight))


def _put_aside(snapshot: Snapshot) -> float | None:
    """The weight that comes back when the adaptation is undone: the recipe's, or what an earlier one put aside."""
    weight = _recipe_weight(snapshot)
    if weight is None:
        tuned = StoredEmbedder.from_generation(snapshot.base.generation).manifest.get("tuned")
        weight = _number(snapshot.base.generation.manifest.get(FILE) or tuned, RECIPE_WEIGHT)
    return weight


def _noted(about: Mapping[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    """What a manifest says of what was learned, with the weight that is put aside for it."""
    weight = _put_aside(snapshot)
    return {**about} if weight is None else {**about, RECIPE_WEIGHT: weight}


def _number(stored: object, name: str) -> float | None:
    """A number in a part of a manifest; None where there is none."""
    number = stored.get(name) if isinstance(stored, Mapping) else None
    return float(number) if isinstance(number, float | int) else None


def _check_same(live: LiveIndex, embedder: object) -> None:
    if live.encoder.stored.manifest != embedder:
        raise InvalidInput("the index was built with another embedder meanwhile", fix="adapt it again")


def _loaded(tuned: Tuned, before: StoredEmbedder, note: Note) -> tuple[Embedder, StoredEmbedder]:
    """The model as queries will be embedded by it, and what the index stores of it."""
    prompts = before.prompts
    named = replace(before.source, name=tuned.model.name, revision=None)
    settings = replace(named, query_prompt=prompts.query, example_prompt=prompts.example)
    embedder = tuned.model.load(settings, note)
    stored = StoredEmbedder.of(embedder, settings, tuned.model)
    return embedder, stored


def undo(live: LiveIndex, progress: Progress, note: Note) -> None:
    """Goes back to what the index searched before it was adapted; see `Retriever.undo_adaptation`.

    Args:
        live: The index.
        progress: Told how far the work is.
        note: Told in one line what a reader should know.

    Raises:
        InvalidInput: The index is not adapted.
        Incompatible: The former embedder is not the one it was, or is not at hand.
        EmbedderError: It cannot be loaded.
        IndexLocked: Another process is writing.
        StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
    """
    with live.session() as session:
        snapshot, base = live.snapshot, live.encoder.stored.base
        calibration = snapshot.base.calibration.if_given()
        recipe = _weighing(live, _put_aside(live.snapshot))
        if snapshot.base.adaptation is not None:
            live.compact(session, recipe, writing.Searched(None, calibration))
        elif base is not None:
            embedder, about = _former(base, live, session, note)
            live.embed_again(session, lambda: embedder, about, calibration, progress, recipe=recipe)
        else:
            raise InvalidInput("an index that is not adapted", expected="one that is, to undo it")


def _former(
    base: StoredEmbedder, live: LiveIndex, session: writing.Session, note: Note
) -> tuple[Embedder, StoredEmbedder]:
    """The embedder from before, as it can embed the pool here and now, and what the index stores of that."""
    embedder, about = load_for(live.snapshot.key, base.pool_source, session.pool, session.revision, note)
    if not same_space(about.fingerprint, base.fingerprint):
        raise Incompatible(
            f"embedder {about.name}, which gives other vectors than it did",
            expected="the one that the index was built with",
            fix="bring back that version of the model, or build the index again",
        )
    # Another engine, or float32 where bfloat16 is not to be had, gives vectors that are not its to the bit.
    return embedder, base if about.space == base.space else about
