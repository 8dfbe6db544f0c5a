"""Adapting in full: the embedder's own model is fine-tuned, and kept where it is better on what it has not seen.

A map that is learned from the same takes seconds where this takes minutes: where it does better, it is to be preferred.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.adapt import (
    FEWEST,
    Adapted,
    Supervision,
    Teacher,
    Tuned,
    about_learned,
    reason,
    supervision_of,
    too_few,
)
from retriever.adaptation.finetune import check_packages, fine_tune
from retriever.adaptation.learner import LearnerSettings, learn
from retriever.adaptation.linear_map import Vectors
from retriever.adaptation.spaces import Frozen, Mapped
from retriever.adaptation.training import FinetuneSettings
from retriever.adaptation.validation import TOLERATED, Learn
from retriever.embedders import TunedModel, encode_checked, load_embedder
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder
from retriever.errors import InvalidInput
from retriever.listening import Note, Progress
from retriever.query_encoder import QueryEncoder
from retriever.quiet import quiet
from retriever.snapshot import Snapshot
from retriever.stored_embedder import StoredEmbedder

TRIED = 1
"""Folds that are held out: each costs as much as the model that is kept in the end."""


def adapt_fully(
    snapshot: Snapshot,
    encoder: QueryEncoder,
    settings: FinetuneSettings,
    progress: Progress,
    note: Note,
    teacher: Teacher = None,
) -> Adapted:
    """Fine-tunes the model that embeds, from the examples themselves or from a log.

    Args:
        snapshot: The view of the index.
        encoder: What embeds.
        settings: How it is fine-tuned.
        progress: Told how far the work is.
        note: Told in one line what a reader should know.
        teacher: A log, or what of the pool.

    Raises:
        InvalidInput: The embedder is no sentence-transformers model that is loaded by name, the index is adapted
            already, or as `supervision_of`.
        MissingDependency: A package of the extra `finetune` is not installed.
    """
    check_packages()
    stored = encoder.stored
    _check(stored, snapshot)
    supervision = supervision_of(snapshot, encoder, teacher)
    items = supervision.items
    if len(items) < FEWEST:
        return Adapted(False, too_few(supervision), supervision.source, len(items))
    learned = _Learner(stored, supervision, settings, progress, note)
    fixed = snapshot.base.calibration.if_given()
    verdict = supervision.judge(learned.space, fixed=fixed, tried=TRIED, shares=(1.0,))
    found = Adapted(
        kept=verdict.kept,
        reason=reason(verdict),
        source=supervision.source,
        examples=len(items),
        compared=verdict.compared,
        share=float(verdict.kept),
    )
    if not verdict.kept:
        return found
    by_map = supervision.judge(_map_learner(supervision, stored.dim, progress), fixed=fixed, tried=TRIED)
    if by_map.kept and by_map.compared[1].after > verdict.compared[1].after + TOLERATED:
        better = f"a map does better for less, {by_map.compared[1].after:.4f}: retriever adapt without --full"
        return replace(found, kept=False, share=0.0, reason=f"{reason(verdict)}, but {better}")
    about = {**about_learned(supervision, verdict, teacher), "settings": asdict(settings), "base": stored.manifest}
    model = _files(learned.model(items), stored.name)
    return replace(found, tuned=Tuned(model, about), calibration=verdict.calibration)


def _check(stored: StoredEmbedder, snapshot: Snapshot) -> None:
    if snapshot.is_adapted:
        raise InvalidInput(
            "an index that is adapted already",
            expected="one that searches the vectors of its first embedder",
            fix="retriever adapt INDEX --undo, and then again with --full",
        )
    if stored.manifest["settings"] is None or stored.is_fitted or stored.manifest["engine"] is None:
        raise InvalidInput(
            f"embedder {stored.name}, which cannot be fine-tuned",
            expected="a sentence-transformers model that is loaded by its name or from its folder",
        )


def _map_learner(supervision: Supervision, dim: int, progress: Progress) -> Learn:
    """What learns a map from the same items, for comparison."""
    settings = LearnerSettings()

    def space(items: NDArray[np.int64]) -> Mapped:
        batches = supervision.batches(items)
        matrix = learn(batches, dim, settings, lambda done, total: progress("learning a map", done, total))
        return Mapped(supervision.sample.frozen, matrix)

    return space


class _Learner:
    """Fine-tunes the model anew for each set of items; counts the runs for whoever watches."""

    def __init__(
        self,
        stored: StoredEmbedder,
        supervision: Supervision,
        settings: FinetuneSettings,
        progress: Progress,
        note: Note,
    ) -> None:
        self._stored = stored
        self._supervision = supervision
        self._settings = settings
        self._progress = progress
        self._note = note
        self._runs = 0

    def model(self, items: NDArray[np.int64]) -> SentenceTransformerEmbedder:
        """The model after it has learned from the items."""
        source = replace(self._stored.source, engine="torch")
        embedder = load_embedder(source, note=self._note)
        if not isinstance(embedder, SentenceTransformerEmbedder):
            raise InvalidInput(f"embedder {embedder.name}, which cannot be fine-tuned")
        training = self._supervision.training(items, self._settings)
        run, self._runs = self._runs, self._runs + 1

        def told(done: int, steps: int) -> None:
            self._progress("fine-tuning", run * steps + done, (TRIED + 1) * steps)

        fine_tune(embedder.model, training, self._stored.prompts, self._settings, told)
        return embedder

    def space(self, items: NDArray[np.int64]) -> Frozen:
        """Where that model puts the pool and queries."""
        embedder, prompts = self.model(items), self._stored.prompts

        def queries(texts: Sequence[str]) -> Vectors:
            return encode_checked(embedder, texts, prefix=prompts.query)

        vectors = encode_checked(embedder, self._supervision.sample.texts, prefix=prompts.example)
        return Frozen(vectors, queries, {})


def _files(embedder: SentenceTransformerEmbedder, name: str) -> TunedModel:
    with tempfile.TemporaryDirectory() as folder, quiet():
        embedder.model.save(folder, create_model_card=False)
        return TunedModel.from_folder(Path(folder), name)
