"""Latent semantic analysis: TF-IDF and a truncated SVD fitted on the pool itself.

The embedder for when no model can be had. It knows only the words of the pool.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import analyzer
from indexes.strings import Strings
from retriever.embedders.base import Prompts, Vectors, sendable, unit_rows
from retriever.errors import EmbedderError

State: TypeAlias = dict[str, NDArray[np.generic]]

# A direction that carries less than this share of the strongest one is rounding noise, different on every machine.
_NOISE = 1e-6


class LatentSemanticEmbedder:
    """TF-IDF vectors projected on the strongest directions of a pool (Deerwester et al. 1990).

    A text with the term counts c gets sum over its known terms t of (1 + ln c_t) * idf_t * V_t, where V_t is the row
    of t in the right singular vectors of the pool's TF-IDF matrix and idf_t = ln((1 + n) / (1 + n_t)) + 1. Only the
    direction counts, so that the vector is scaled to unit length. A text without a known term is all zero.

    Make one with `fit` or `from_state`. Encoding needs numpy alone, and a row does not depend on the other texts.

    Attributes:
        name: `latent-semantic`.
        prompts: None on either side.
    """

    NAME = "latent-semantic"

    def __init__(self, vocabulary: list[str], idf: NDArray[np.float64], components: NDArray[np.float32]) -> None:
        self.name = self.NAME
        self.prompts = Prompts()
        self._vocabulary = vocabulary
        self._place = {term: place for place, term in enumerate(vocabulary)}
        self._idf = idf
        self._term_vectors = np.ascontiguousarray(components.T)
        self._analyze = analyzer("default")

    @property
    def dim(self) -> int:
        """Components of a vector; at least 1, at most what `fit` was asked for."""
        return int(self._term_vectors.shape[1])

    @classmethod
    def fit(
        cls, texts: Iterable[str], *, dimensions: int = 256, max_terms: int = 65_536, seed: int = 0
    ) -> LatentSemanticEmbedder:
        """Learn the directions of a pool.

        A small or repetitive pool has fewer directions than asked for, and the embedder then has fewer dimensions. A
        pool without any term gives one dimension, and every vector is zero.

        Args:
            texts: The texts of the pool, read once.
            dimensions: The most dimensions to keep.
            max_terms: The most terms to keep, the most frequent first; bounds memory to max_terms * dimensions * 4
                bytes.
            seed: Of the randomised SVD (Halko et al. 2011). The same pool and seed give the same bytes.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        analyze = analyzer("default")
        seen = False

        def terms(text: str) -> list[str]:
            nonlocal seen
            found = analyze(sendable(text))
            seen = seen or bool(found)
            return found

        vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True, max_features=max_terms)
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError:
            if seen:
                raise
            return cls([], np.zeros(0), np.zeros((1, 0), dtype=np.float32))  # scikit-learn refuses an empty vocabulary
        components = _directions(matrix, min(dimensions, *matrix.shape), seed)
        vocabulary = [str(term) for term in vectorizer.get_feature_names_out()]
        return cls(vocabulary, np.asarray(vectorizer.idf_, dtype=np.float64), components.astype(np.float32))

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, (n, dim) float32, of unit length; all zero when the text has no known term."""
        projected = np.zeros((len(texts), self.dim))
        for row, text in enumerate(texts):
            counts = Counter(place for term in self._analyze(text) if (place := self._place.get(term)) is not None)
            if counts:
                places = sorted(counts)
                weights = np.array([1.0 + math.log(counts[place]) for place in places]) * self._idf[places]
                # A sum in a fixed order instead of a product by BLAS, whose last bits may depend on its threads.
                projected[row] = (weights[:, None] * self._term_vectors[places]).sum(axis=0)
        return unit_rows(projected)

    def state(self) -> State:
        """What was learned, as plain arrays.

        Returns:
            `vocabulary`: the terms in UTF-8, one after the other, uint8; `offsets`: (terms + 1,) int64, where each
            begins and the last ends; `idf`: (terms,) float64; `components`: (dim, terms) float32.
        """
        terms = Strings.of(self._vocabulary)
        return {
            "vocabulary": terms.blob,
            "offsets": terms.offsets,
            "idf": self._idf.copy(),
            "components": np.ascontiguousarray(self._term_vectors.T),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> LatentSemanticEmbedder:
        """The embedder that `state` was taken from; it gives the same bytes.

        Raises:
            EmbedderError: A part is missing, or the parts do not belong together.
        """
        missing = {"vocabulary", "offsets", "idf", "components"} - state.keys()
        if missing:
            raise EmbedderError(f"a latent-semantic state without {', '.join(sorted(missing))}", fix="build again")
        blob = np.frombuffer(state["vocabulary"].tobytes(), dtype=np.uint8)
        offsets = np.asarray(state["offsets"], dtype=np.int64)
        idf = np.asarray(state["idf"], dtype=np.float64)
        components = np.asarray(state["components"], dtype=np.float32)
        if not _belong_together(blob, offsets, idf, components):
            raise EmbedderError(
                f"a latent-semantic state of {len(blob)} bytes of vocabulary, offsets {offsets.shape}, "
                f"idf {idf.shape} and components {components.shape}",
                expected="finite parts that belong together",
                fix="build again",
            )
        try:
            vocabulary = list(Strings(blob, offsets))
        except UnicodeDecodeError as error:
            raise EmbedderError("a latent-semantic vocabulary that is not UTF-8", fix="build again") from error
        return cls(vocabulary, idf, components)

    def __repr__(self) -> str:
        return f"LatentSemanticEmbedder(dim={self.dim}, terms={len(self._vocabulary)})"


def _belong_together(
    blob: NDArray[np.uint8], offsets: NDArray[np.int64], idf: NDArray[np.float64], components: NDArray[np.float32]
) -> bool:
    if offsets.ndim != 1 or components.ndim != 2 or not offsets.size or not len(components):
        return False
    cut = offsets[0] == 0 and offsets[-1] == len(blob) and bool((np.diff(offsets) > 0).all())
    sized = idf.shape == (offsets.size - 1,) and components.shape[1] == offsets.size - 1
    return bool(cut and sized and np.isfinite(idf).all() and np.isfinite(components).all())


def _directions(matrix: object, dimensions: int, seed: int) -> NDArray[np.float64]:
    """The strongest right singular vectors, (at most dimensions, terms), each with its largest component positive."""
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        _, strengths, components = randomized_svd(matrix, n_components=dimensions, n_iter=5, random_state=seed)
    kept = np.asarray(components, dtype=np.float64)[: max(1, int((strengths > strengths[0] * _NOISE).sum()))]
    # Rounded, so that of components equal but for their last bits the first one decides the sign on every machine.
    largest = np.abs(kept).round(9).argmax(axis=1)
    return kept * np.where(kept[np.arange(len(kept)), largest] < 0, -1.0, 1.0)[:, None]
