"""Helpers that several test files share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever import Retriever


def embed(texts: list[str]) -> NDArray[np.float32]:
    """A deterministic embedder without a model: hashed character trigrams in 32 dimensions."""
    vectors = np.zeros((len(texts), 32), dtype=np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.lower()} "
        for i in range(len(padded) - 2):
            digest = hashlib.blake2b(padded[i : i + 3].encode("utf-8", "replace"), digest_size=2).digest()
            vectors[row, digest[0] % 32] += 1.0 if digest[1] % 2 else -1.0
    return vectors


def fail(line: str) -> None:
    """A note sink for tests in which nothing is to be noted."""
    raise AssertionError(f"unexpected note: {line}")


def build(source: object, path: Path, **options: object) -> Retriever:
    """An index over the deterministic embedder; any note is a failure unless a sink is given."""
    options.setdefault("embedder", embed)
    options.setdefault("note", fail)
    return Retriever.build(source, path, **options)
