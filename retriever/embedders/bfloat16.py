"""A transformer in bfloat16: a pool is embedded in two thirds of the time, where that changes little of what is found.

bfloat16 has the range of float32 and 8 bits for the digits. Processors that compute in it do twice as many products at
once, and read half as many bytes. The transformer alone is rounded; pooling and what comes after stay in float32.

It is asked for, never chosen. On one machine the bytes of a row depend on its text alone, as in float32; but processors
add up products of bfloat16 in ways of their own, so that those of another kind differ by about what the rounding itself
changes, one hundredth of a vector's length, and not by the 1e-7 of float32.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from retriever.embedders.base import Vectors, encode_checked, prompts_of
from retriever.embedders.sentence_transformer import SentenceTransformerEmbedder

LEAST_OVERLAP = 0.98
"""Of the ten nearest of a sample's texts, the least share that must stay."""
_NEAREST = 10
_SAMPLE, _LOOKED_AT = 256, 10_000
_PROCESSOR = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names what multiplies bfloat16: on x86 two, the last on ARM."""


def why_not_in_bfloat16(embedder: SentenceTransformerEmbedder, texts: Iterable[str]) -> str | None:
    """Rounds a model, in place, and measures on some texts of the pool what that changes.

    Args:
        embedder: The model, on the CPU.
        texts: The pool's; 256 of the first 10,000 are drawn.

    Returns:
        Why it should not be used; None when it may.
    """
    if not has_bfloat16():
        return "the processor does not compute in bfloat16"
    if type(embedder.model[0]).__name__ != "Transformer":
        return "only a transformer gains by bfloat16"
    sample, prefix = _sample(texts), prompts_of(embedder).example
    exact = encode_checked(embedder, sample, prefix=prefix)
    embedder.round_to_bfloat16()
    kept = overlap(exact, encode_checked(embedder, sample, prefix=prefix), _NEAREST)
    if kept < LEAST_OVERLAP:
        return f"bfloat16 keeps {kept:.3f} of the {_NEAREST} nearest, less than {LEAST_OVERLAP}"
    return None


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16, as far as Linux tells; elsewhere it is not known to."""
    try:
        lines = _PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    features = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return not _INSTRUCTIONS.isdisjoint(next(features, []))


def overlap(first: Vectors, second: Vectors, k: int) -> float:
    """The share of every row's k nearest others that are the same by two embeddings of the same texts.

    Where there are k others or fewer, they are the nearest by any embedding.
    """
    if len(first) <= k + 1:
        return 1.0
    nearest = []
    for vectors in (first, second):
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k])
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(*nearest, strict=True)]))


def _sample(texts: Iterable[str]) -> list[str]:
    distinct = list(dict.fromkeys(text for text in islice(texts, _LOOKED_AT) if text.strip()))
    return random.Random(0).sample(distinct, min(_SAMPLE, len(distinct)))
