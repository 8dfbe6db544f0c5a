"""Helpers that several test files share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.late_interaction import TokenVectors
from retriever import Retriever
from retriever.adaptation.linear_map import on_grid
from retriever.adaptation.stored import Adaptation
from retriever.writing import Searched

WORD_DIM = 8


def embed(texts: list[str]) -> NDArray[np.float32]:
    """A deterministic embedder without a model: hashed character trigrams in 32 dimensions."""
    vectors = np.zeros((len(texts), 32), dtype=np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.lower()} "
        for i in range(len(padded) - 2):
            digest = hashlib.blake2b(padded[i : i + 3].encode("utf-8", "replace"), digest_size=2).digest()
            vectors[row, digest[0] % 32] += 1.0 if digest[1] % 2 else -1.0
    return vectors


def word_vector(word: str) -> NDArray[np.float32]:
    """The vector of a word: a direction of its own, exact in float16."""
    digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
    vector = np.zeros(WORD_DIM, dtype=np.float32)
    vector[digest[0] % WORD_DIM] = 0.6
    vector[(digest[0] + 1 + digest[1] % (WORD_DIM - 1)) % WORD_DIM] = 0.8
    return vector


class Words:
    """An embedder whose tokens are words; counts what it is asked for."""

    name = "callable:words"
    dim = 32
    has_tokens = True
    token_dim = WORD_DIM

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts):
        return embed(texts)

    def token_vectors(self, texts):
        self.asked.extend(texts)
        return TokenVectors.of(
            [np.array([word_vector(w) for w in t.split()]).reshape(-1, WORD_DIM) for t in texts], WORD_DIM
        )

    def token_ids(self, texts):
        return [
            np.array([int.from_bytes(hashlib.blake2b(w.encode(), digest_size=2).digest()) for w in t.split()], np.int64)
            for t in texts
        ]


def fail(line: str) -> None:
    """A note sink for tests in which nothing is to be noted."""
    raise AssertionError(f"unexpected note: {line}")


def build(source: object, path: Path, **options: object) -> Retriever:
    """An index over the deterministic embedder; any note is a failure unless a sink is given."""
    options.setdefault("embedder", embed)
    options.setdefault("note", fail)
    return Retriever.build(source, path, **options)


def adapted_by(index: Retriever, seed: int = 0) -> None:
    """Publishes some map, learned or not."""
    dim = index.snapshot.dim
    matrix = on_grid(np.eye(dim) + 0.5 * np.random.default_rng(seed).standard_normal((dim, dim)))
    with index._live.session() as session:
        index._live.compact(session, searched=Searched(Adaptation.learned(matrix, {"source": "chance"}), None))
