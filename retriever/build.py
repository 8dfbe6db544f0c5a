"""Building: from the examples at a revision of the pool to a published generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes import generation as generations
from indexes.analyzers import analyzer
from indexes.dense import AnnIndex, DenseIndex, Segment
from indexes.files import Buffer
from indexes.generation import Generation, npy
from indexes.hybrid import HybridIndex, Query
from indexes.lexical import BM25Index, Postings, RankBM25Index
from retriever.embedders import Embedder, encode_checked, fingerprint, prompts_of
from retriever.embedders.latent_semantic import LatentSemanticEmbedder
from retriever.evaluation.calibration import Calibration, calibrate
from retriever.keys import Key
from retriever.pool import Pool
from retriever.settings import IndexSettings

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_ENCODE_BLOCK = 2048


@dataclass(frozen=True)
class Texts:
    """The key texts of a revision of the pool.

    Attributes:
        rows: The pool's row numbers, ascending, int64, shape (rows,).
        texts: The distinct key texts, in order of first appearance.
        number: For each row the place of its text in `texts`, int64, shape (rows,).
    """

    rows: NDArray[np.int64]
    texts: list[str]
    number: NDArray[np.int64]

    @classmethod
    def of(cls, pool: Pool, revision: int, key: Key) -> Texts:
        """Reads them."""
        numbers: dict[str, int] = {}
        rows, number = [], []
        for pool_row in pool.examples(revision):
            rows.append(pool_row.row)
            number.append(numbers.setdefault(key.text(pool_row.example), len(numbers)))
        return cls(np.array(rows, dtype=np.int64), list(numbers), np.array(number, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)


def embed(
    embedder: Embedder, texts: Sequence[str], *, known: Mapping[str, NDArray[np.float32]], progress: Progress
) -> NDArray[np.float32]:
    """The vectors of distinct texts; those that are known already are not embedded again.

    Texts are taken by length, so that a block holds texts of about equal cost; each vector is the same whatever stands
    beside it.

    Returns:
        float32, shape (texts, dim).
    """
    prefix = prompts_of(embedder).example
    new = sorted((i for i, text in enumerate(texts) if text not in known), key=lambda i: len(texts[i]))
    vectors: NDArray[np.float32] | None = None
    for start in range(0, max(1, len(new)), _ENCODE_BLOCK):
        block = new[start : start + _ENCODE_BLOCK]
        encoded = encode_checked(embedder, [texts[i] for i in block], prefix=prefix)
        if vectors is None:
            vectors = np.empty((len(texts), encoded.shape[1]), dtype=np.float32)
        vectors[block] = encoded
        progress("embedding", start + len(block), len(new))
    assert vectors is not None
    for i, text in enumerate(texts):
        if text in known:
            vectors[i] = known[text]
    return vectors


def publish(
    root: Path,
    pool: Pool,
    revision: int,
    *,
    settings: IndexSettings,
    embedder: Embedder,
    stored_embedder: Mapping[str, object],
    weight: float | Calibration | None,
    known: Mapping[str, NDArray[np.float32]],
    progress: Progress,
) -> Generation:
    """Derives a generation from the pool at a revision and publishes it. The caller holds the lock.

    Args:
        root: The index directory.
        pool: The pool.
        revision: Which of its revisions.
        settings: How examples are indexed.
        embedder: What embeds them.
        stored_embedder: What the manifest says of the embedder; see `describe_embedder`.
        weight: The fusion weight; None calibrates it.
        known: Vectors of key texts that need not be embedded.
        progress: Told how far the work is.
    """
    texts = Texts.of(pool, revision, Key(settings.key))
    vectors = embed(embedder, texts.texts, known=known, progress=progress)
    analyze = analyzer(settings.analyzer)
    terms = [analyze(text) for text in texts.texts]
    postings = Postings.from_documents(terms[i] for i in texts.number)
    segment = Segment.of(vectors[texts.number])
    kind = RankBM25Index if settings.lexical == "rank-bm25" else BM25Index
    # Calibration needs the exact index; whether FAISS proposes the same rows is another question.
    index = HybridIndex(DenseIndex([segment]), kind([postings], settings.scoring()))
    calibration = _weight(weight, index, pool, texts, embedder, terms, progress)
    content = _content(texts, segment, postings)
    if settings.ann is not None:
        progress("building the FAISS index", 0, 1)
        content["ann.faiss"] = [AnnIndex.build(settings.ann, segment.vectors).to_bytes()]
    if isinstance(embedder, LatentSemanticEmbedder):
        content |= {f"embedder_{name}.npy": npy(np.asarray(array)) for name, array in embedder.state().items()}
    about: dict[str, object] = {
        "created_by": f"demonstration-retriever {version('demonstration-retriever')}",
        "pool": {"revision": revision, "rows": len(texts), "texts": len(texts.texts)},
        "settings": settings.to_dict(),
        "embedder": dict(stored_embedder),
        "fusion": calibration.to_dict(),
    }
    return generations.publish(root, content, about)


def _weight(
    weight: float | Calibration | None,
    index: HybridIndex,
    pool: Pool,
    texts: Texts,
    embedder: Embedder,
    terms: list[list[str]],
    progress: Progress,
) -> Calibration:
    """The weight that was given, or the calibrated one."""
    if isinstance(weight, Calibration):
        return weight
    if weight is not None:
        return Calibration(weight, "given")
    prompts = prompts_of(embedder)

    def queries(rows: Sequence[int]) -> list[Query]:
        numbers = texts.number[np.asarray(rows, dtype=np.int64)].tolist()
        if prompts.query == prompts.example:
            vectors = index.dense.vectors(np.asarray(rows, dtype=np.int64))
        else:
            vectors = encode_checked(embedder, [texts.texts[i] for i in numbers], prefix=prompts.query)
        return [Query(vector, tuple(terms[i])) for vector, i in zip(vectors, numbers, strict=True)]

    return calibrate(
        index,
        examples=lambda rows: pool.fetch(texts.rows[np.asarray(rows, dtype=np.int64)].tolist()),
        queries=queries,
        copies=texts.number,
        progress=lambda done, total: progress("calibrating", done, total),
    )


def _content(texts: Texts, segment: Segment, postings: Postings) -> dict[str, Sequence[Buffer]]:
    arrays: dict[str, NDArray[np.generic]] = {
        "rows": texts.rows,
        "vectors": segment.vectors,
        "terms": postings.vocabulary.blob,
        "term_offsets": postings.vocabulary.offsets,
        "posting_offsets": postings.offsets,
        "posting_rows": postings.rows,
        "posting_counts": postings.counts,
        "lengths": postings.lengths,
    }
    return {f"{name}.npy": npy(array) for name, array in arrays.items()}


def describe_embedder(embedder: Embedder, settings: Mapping[str, object] | None) -> dict[str, object]:
    """What the manifest says of an embedder: enough to load it again, and to refuse another one.

    Args:
        embedder: The embedder.
        settings: The settings it was loaded from; None for an object of the caller's, who must bring it again.
    """
    prompts = prompts_of(embedder)
    mark = fingerprint(embedder)
    return {
        "name": embedder.name,
        "dim": embedder.dim,
        "fingerprint": mark,
        "prompts": {"query": prompts.query, "example": prompts.example},
        "settings": None if settings is None else dict(settings),
    }
