"""Seeded permutations that are the same in every process and NumPy version."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def permutation(count: int, seed: int, query_id: str, purpose: str) -> NDArray[np.int64]:
    """A permutation of range(count) for a seed, a query and a purpose.

    It sorts the raw output of PCG64, whose stream NumPy guarantees; `Generator` methods may change between versions.
    """
    digest = hashlib.blake2b(f"{seed}\x1f{query_id}\x1f{purpose}".encode(), digest_size=16).digest()
    keys = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
