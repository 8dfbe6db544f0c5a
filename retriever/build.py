"""Building: from the examples at a revision of the pool to a published generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from retriever.embedders import (
    Embedder,
    EmbedderSettings,
    LatentSemanticEmbedder,
    encode_checked,
    fingerprint,
    prompts_of,
)
from retriever.evaluation.calibration import Calibration, calibrate
from retriever.keys import Key
from retriever.pool import Pool
from retriever.settings import IndexSettings

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_ENCODE_BLOCK = 512
_EMBEDDER_FILE = "embedder_"


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
    embedder: Callable[[], Embedder],
    texts: Sequence[str],
    *,
    known: Mapping[str, NDArray[np.float32]],
    progress: Progress,
) -> NDArray[np.float32]:
    """The vectors of distinct texts; those that are known already are not embedded again.

    Texts are taken by length, so that a block holds texts of about equal cost; each vector is the same whatever stands
    beside it.

    Returns:
        float32, shape (texts, dim).
    """
    new = sorted((i for i, text in enumerate(texts) if text not in known), key=lambda i: len(texts[i]))
    encoded: list[NDArray[np.float32]] = []
    if new:
        progress("embedding", 0, len(new))
    for start in range(0, len(new), _ENCODE_BLOCK):
        block = [texts[i] for i in new[start : start + _ENCODE_BLOCK]]
        encoded.append(encode_checked(embedder(), block, prefix=prompts_of(embedder()).example))
        progress("embedding", start + len(block), len(new))
    dim = len(next(iter(known.values()))) if known else embedder().dim
    vectors = np.empty((len(texts), dim), dtype=np.float32)
    for i, text in enumerate(texts):
        if text in known:
            vectors[i] = known[text]
    if new:
        vectors[new] = np.concatenate(encoded)
    return vectors


def publish(
    root: Path,
    pool: Pool,
    revision: int,
    *,
    settings: IndexSettings,
    embedder: Callable[[], Embedder],
    about_embedder: AboutEmbedder,
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
        embedder: Gives what embeds them; not called when nothing needs it.
        about_embedder: What is stored of the embedder.
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
    content |= about_embedder.files
    about: dict[str, object] = {
        "created_by": f"demonstration-retriever {version('demonstration-retriever')}",
        "pool": {"revision": revision, "rows": len(texts), "texts": len(texts.texts)},
        "settings": settings.to_dict(),
        "embedder": dict(about_embedder.manifest),
        "fusion": calibration.to_dict(),
    }
    return generations.publish(root, content, about)


def _weight(
    weight: float | Calibration | None,
    index: HybridIndex,
    pool: Pool,
    texts: Texts,
    embedder: Callable[[], Embedder],
    terms: list[list[str]],
    progress: Progress,
) -> Calibration:
    """The weight that was given, or the calibrated one."""
    if isinstance(weight, Calibration):
        return weight
    if weight is not None:
        return Calibration(weight, "given")
    prompts = prompts_of(embedder())

    def queries(rows: Sequence[int]) -> list[Query]:
        numbers = texts.number[np.asarray(rows, dtype=np.int64)].tolist()
        if prompts.query == prompts.example:
            vectors = index.dense.vectors(np.asarray(rows, dtype=np.int64))
        else:
            vectors = encode_checked(embedder(), [texts.texts[i] for i in numbers], prefix=prompts.query)
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


@dataclass(frozen=True)
class AboutEmbedder:
    """What a generation stores of its embedder: enough to load it again, and to refuse another one.

    Attributes:
        manifest: Name, dimension, fingerprint, prompts, and the settings it was loaded from; the settings are None for
            an object of the caller's, who must bring it again.
        files: What an embedder that was fitted on the pool has learned, by file name.
    """

    manifest: Mapping[str, object]
    files: Mapping[str, Sequence[Buffer]]

    @classmethod
    def of(cls, embedder: Embedder, settings: EmbedderSettings | None) -> AboutEmbedder:
        """For an embedder that was just loaded from these settings."""
        manifest = {
            "name": embedder.name,
            "fingerprint": fingerprint(embedder),
            "dim": embedder.dim,
            "prompts": asdict(prompts_of(embedder)),
            "settings": None if settings is None else asdict(settings),
        }
        state = embedder.state() if isinstance(embedder, LatentSemanticEmbedder) else {}
        return cls(manifest, {f"{_EMBEDDER_FILE}{name}.npy": npy(array) for name, array in state.items()})

    @classmethod
    def from_generation(cls, generation: Generation) -> AboutEmbedder:
        """As a generation stores it."""
        manifest = generation.manifest["embedder"]
        assert isinstance(manifest, dict)
        return cls(
            manifest,
            {name: [buffer] for name, buffer in generation.buffers.items() if name.startswith(_EMBEDDER_FILE)},
        )
