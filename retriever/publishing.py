"""Publishing: from the examples at a revision of the pool to a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexes import generation as generations
from indexes.analyzers import Analyzer, analyzer
from indexes.ann_choice import AnnReport, choose
from indexes.arrays import npy
from indexes.channels import Query
from indexes.current import Current
from indexes.dense import DenseIndex, Segment
from indexes.files import Buffer
from indexes.generation import Manifest
from indexes.hybrid import HybridIndex
from indexes.postings import Postings
from indexes.vector_storage import VectorRows
from indexes.vocabulary import Vocabulary
from retriever.adaptation.stored import Adaptation
from retriever.embedders import (
    Embedder,
    Prompts,
    encode_checked,
    prompts_of,
)
from retriever.evaluation.calibration import UNCALIBRATED, Calibration, calibrate
from retriever.example import Example, Json
from retriever.keys import Key
from retriever.listening import Progress
from retriever.plan import BuildPlan
from retriever.pool import Pool
from retriever.revisions import Revision
from retriever.settings import IndexSettings
from retriever.stored_embedder import StoredEmbedder
from retriever.texts import Texts
from retriever.token_storage import TextTokens, token_files

_ABOUT = ("settings", "embedder", "fusion", "recipe")
_IF_ADAPTED = "adaptation"

_ENCODE_BLOCK = 512


class Known(Protocol):
    """Where vectors of texts may be had without embedding them, and kept."""

    def vectors(self, texts: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """The vectors of those texts that need not be embedded, each of shape (dim,)."""

    def save(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Told of what was embedded; durable when it returns."""

    def tokens(self, text: str) -> TextTokens | None:
        """The tokens of a text; None when it has to be embedded."""


def embed(
    embedder: Callable[[], Embedder],
    texts: Sequence[str],
    dim: int,
    kind: str = "float32",
    *,
    known: Known,
    progress: Progress,
) -> VectorRows:
    """The vectors of distinct texts; those that are known already are not embedded again.

    Texts are taken by length, so that a block holds texts of about equal cost. Where a block ends depends on the texts
    alone and not on what is known, so that a build which goes on after an interruption asks the embedder for the same
    blocks.

    Args:
        embedder: Gives what embeds; not called when every text is known.
        texts: Distinct key texts.
        dim: Components of a vector.
        kind: The type that vectors are stored in; no more than a block is in memory as float32.
        known: Where vectors may be had without embedding, and are kept.
        progress: Told how far the work is.

    Returns:
        A row for each text.
    """
    order = np.argsort(np.fromiter(map(len, texts), np.int64, len(texts)), kind="stable")
    rows = VectorRows.empty(len(texts), dim, kind)
    for start in range(0, len(order), _ENCODE_BLOCK):
        block = {texts[i]: i for i in order[start : start + _ENCODE_BLOCK].tolist()}
        found = known.vectors(list(block))
        new = [text for text in block if text not in found]
        if found:
            rows.put([block[text] for text in found], np.stack(list(found.values())))
        if new:
            progress("embedding", start, len(order))
            vectors = encode_checked(embedder(), new, prefix=prompts_of(embedder()).example)
            known.save(new, vectors)
            rows.put([block[text] for text in new], vectors)
            progress("embedding", start + len(block), len(order))
    return rows


def publish(
    root: Path,
    pool: Pool,
    revision: Revision,
    *,
    settings: IndexSettings,
    embedder: Callable[[], Embedder],
    stored_embedder: StoredEmbedder,
    calibration: Calibration | None,
    recipe: Mapping[str, Json],
    adaptation: Adaptation | None = None,
    known: Known,
    progress: Progress,
) -> Published:
    """Derives a generation from the pool at a revision and publishes it. The caller holds the lock.

    Args:
        root: The index directory.
        pool: The pool.
        revision: Which of its revisions; readers see it from now on.
        settings: How examples are indexed.
        embedder: Gives what embeds them; not called when nothing needs it.
        stored_embedder: What is stored of the embedder.
        calibration: The fusion weight; None calibrates it.
        recipe: How demonstrations are selected where nobody says otherwise; see `Recipe.to_dict`.
        adaptation: The map that rows and queries go through; None for none.
        known: Where vectors may be had without embedding.
        progress: Told how far the work is.
    """
    key = Key(settings.key)
    texts = Texts.of(pool, revision, key)
    rows = embed(embedder, texts.texts, stored_embedder.dim, settings.vectors, known=known, progress=progress)
    analyze = analyzer(settings.analyzer)
    postings = Postings.from_documents(analyze(texts.texts[i]) for i in texts.number)
    if len(texts.texts) < len(texts):
        rows = rows.stored(texts.number)
    searched = rows if adaptation is None else adaptation.moved_rows(rows)
    segment = Segment(searched)
    # Calibration needs the exact index; whether FAISS proposes the same rows is another question.
    index = HybridIndex(DenseIndex([segment]), settings.lexical_index([postings]))
    fusion = _fusion(
        calibration, index, pool, key, texts, embedder, stored_embedder.prompts, adaptation, analyze, progress
    )
    content = _content(texts, rows, postings)
    if adaptation is not None:
        content |= {f"{name}.npy": npy(array) for name, array in adaptation.arrays(searched).items()}
    if settings.token_vectors:
        prefix = stored_embedder.prompts.example
        content |= token_files(
            embedder, texts.texts, texts.number, prefix=prefix, known=known.tokens, progress=progress
        )
    report = None
    if settings.ann is not None or settings.recall is not None:
        progress("building the FAISS index", 0, 1)
        plan = BuildPlan(*pool.size(revision.number), rows.dim, settings.vectors, token_bytes=_token_bytes(content))
        ann, report = choose(searched, factory=settings.ann, target=settings.recall, room=ann_room(plan, settings))
        if ann is not None:
            content["ann.faiss"] = [ann.to_bytes()]
    content |= stored_embedder.files
    about = about_index(settings, stored_embedder, fusion, recipe, adaptation)
    state = {
        "revision": revision.number,
        "chain": revision.chain,
        "last_row": pool.last_row(),
        "rows": len(texts),
        "texts": len(texts.texts),
    }
    current = generations.publish(
        root,
        content,
        {
            "created_by": _program(),
            "pool": state,
            **({} if report is None else {"ann": report.to_dict()}),
            **about,
        },
        revision=revision.number,
        chain=revision.chain,
    )
    return Published(current=current, about=about, calibration=fusion, key=key, ann=report)


def ann_room(plan: BuildPlan, settings: IndexSettings) -> int | None:
    """The most bytes that a FAISS index may take; None for any."""
    return None if settings.max_memory is None else plan.ann_room(settings.max_memory)


def _token_bytes(content: Mapping[str, Sequence[Buffer]]) -> int:
    return sum(len(chunk) for name in content if name.startswith("token_") for chunk in content[name])


@dataclass(frozen=True)
class Published:
    """A generation that was just published.

    Attributes:
        current: What CURRENT says now.
        about: See `about_index`.
        calibration: The fusion weight, and where it comes from.
        key: Which text is indexed.
        ann: How dense search finds its rows; None where it is exact and nothing else was asked for.
    """

    current: Current
    about: dict[str, object]
    calibration: Calibration
    key: Key
    ann: AnnReport | None = None

    def notes(self) -> Iterator[str]:
        """What a reader should know of it."""
        if self.ann is not None and (line := self.ann.note()):
            yield line
        if self.calibration.objective == "none" and not self.key.is_askable:
            yield f"the key {self.key.spec!r} needs the answer of a query: the fusion weight is 0.5, uncalibrated"
        elif self.calibration.objective == "none":
            yield "the pool has neither labels nor outputs to calibrate the fusion weight by: it is 0.5"


@cache
def _program() -> str:
    """What writes an index; looking up the version takes as long as much of a small one."""
    return f"demonstration-retriever {version('demonstration-retriever')}"


def about_index(
    settings: IndexSettings,
    embedder: StoredEmbedder,
    calibration: Calibration,
    recipe: Mapping[str, Json],
    adaptation: Adaptation | None = None,
) -> dict[str, object]:
    """What the manifest says of how an index is built: enough to build it again from its pool."""
    return {
        "settings": settings.to_dict(),
        "embedder": dict(embedder.manifest),
        "fusion": calibration.to_dict(),
        "recipe": dict(recipe),
        **({} if adaptation is None else {_IF_ADAPTED: dict(adaptation.about)}),
    }


def about_of(manifest: Manifest) -> dict[str, object]:
    """The same from a manifest; one from before there were recipes has none, which means the defaults."""
    adapted = {_IF_ADAPTED: manifest[_IF_ADAPTED]} if _IF_ADAPTED in manifest else {}
    return {name: manifest.get(name, {}) for name in _ABOUT} | adapted


def _fusion(
    calibration: Calibration | None,
    index: HybridIndex,
    pool: Pool,
    key: Key,
    texts: Texts,
    embedder: Callable[[], Embedder],
    prompts: Prompts,
    adaptation: Adaptation | None,
    analyze: Analyzer,
    progress: Progress,
) -> Calibration:
    """The weight that was given, or the calibrated one."""
    if calibration is not None:
        return calibration
    if not key.is_askable:
        return Calibration(UNCALIBRATED, "none")

    def examples(rows: Sequence[int]) -> list[Example]:
        return pool.fetch(texts.rows[np.asarray(rows, dtype=np.int64)].tolist())

    def queries(rows: Sequence[int]) -> list[Query]:
        if key.names_answer:
            asked = [key.asked_text(example) for example in examples(rows)]
        else:
            asked = [texts.texts[i] for i in texts.number[np.asarray(rows, dtype=np.int64)].tolist()]
        if prompts.query == prompts.example and not key.names_answer:
            vectors = index.dense.vectors(np.asarray(rows, dtype=np.int64))
        else:
            vectors = encode_checked(embedder(), asked, prefix=prompts.query)
            vectors = vectors if adaptation is None else adaptation.moved(vectors)
        return [Query(vector, tuple(analyze(text))) for vector, text in zip(vectors, asked, strict=True)]

    return calibrate(
        index,
        examples=examples,
        queries=queries,
        copies=texts.number,
        progress=lambda done, total: progress("calibrating", done, total),
    )


def _content(texts: Texts, rows: VectorRows, postings: Postings) -> dict[str, Sequence[Buffer]]:
    order = sorted(range(len(texts)), key=texts.ids.encoded)
    ids = Vocabulary.from_terms(texts.ids[row] for row in order)
    arrays: dict[str, NDArray[np.generic]] = {
        "rows": texts.rows,
        "ids": ids.blob,
        "id_offsets": ids.offsets,
        "id_rows": np.array(order, dtype=np.int64),
        "text_hashes": texts.hashes,
        "vectors": rows.values,
        **({} if rows.scales is None else {"vector_scales": rows.scales}),
        "terms": postings.vocabulary.blob,
        "term_offsets": postings.vocabulary.offsets,
        "posting_offsets": postings.offsets,
        "posting_rows": postings.rows,
        "posting_counts": postings.counts,
        "lengths": postings.lengths,
    }
    return {f"{name}.npy": npy(array) for name, array in arrays.items()}
