"""The pieces of `search`: seeded texts and vectors, the peers, and how they take turns. No benchmark of its own.

`texts` are for counting postings: numbered words with the frequencies of Zipf's law, as in English, where the most
frequent word makes up 9 % of a text. Their vectors are sums of the words' own, rare words counting for more, so that
both channels find the same kind of neighbour. `sentences` are for a language model: English of one length.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.embedders.packaged import packaged_folder

Call: TypeAlias = Callable[[int], object]
Calls: TypeAlias = dict[str, Call]
Rows: TypeAlias = NDArray[np.int64]
Vectors: TypeAlias = NDArray[np.float32]

OURS = "ours"
BM25S, RANK_BM25, NUMPY, FAISS = "bm25s with numba", "rank-bm25", "NumPy", "FAISS, flat"
RAW, LANGCHAIN, DSPY = "the two bare searches", "LangChain, in memory", "DSPy Embeddings"
SBERT = "sentence-transformers"
PACKAGES = {
    BM25S: ("bm25s", "numba"),
    RANK_BM25: ("rank-bm25",),
    FAISS: ("faiss-cpu",),
    LANGCHAIN: ("langchain-core",),
    DSPY: ("dspy",),
    SBERT: ("sentence-transformers", "torch"),
}
"""What a peer needs to be installed, with the names of distributions."""
_MODULES = {"rank-bm25": "rank_bm25", "faiss-cpu": "faiss"}

CANDIDATES = 100
"""What MMR chooses from; the library's default."""

SETTLED = 0.02
"""Seconds between the calls of two libraries whose idle threads go on spinning for a while."""

VOCABULARY = 50_000
_DIRECTIONS = 1 << 13
_BLOCK = 4096

_WHO = (
    "my sister|the customer|our teacher|a driver|the nurse|his neighbour|the lawyer|their manager|a student|the pilot|"
    "our baker|the farmer"
)
_DID = (
    "sent back|asked about|paid for|looked at|wrote about|picked up|forgot about|gave away|talked about|waited for|"
    "complained about|searched for"
)
_WHAT = (
    "the blue card|a broken phone|an old letter|the last message|a second ticket|the wrong parcel|a new passport|"
    "the red bicycle|an empty bottle|the train schedule|a small loan|the garden chair|a warm coat|the missing key|"
    "an expensive watch|the final report"
)
_WHERE = (
    "at the station|in the shop|near the river|behind the school|at the bank|in the office|on the phone|"
    "in the kitchen|at the airport|by the church|on the train|in the hospital"
)
_WHEN = "yesterday|today|again|twice|early|tonight|tomorrow|alone"
SENTENCE_TOKENS = 13
"""Tokens of a sentence for a model of BERT's vocabulary: eleven words and the two marks around them."""
PARAGRAPH_TOKENS = 57


def texts(count: int, *, words: int = 12, seed: int = 0) -> list[str]:
    """Texts of numbered words; word i has a frequency in proportion to 1 / i."""
    shares = np.cumsum(1.0 / np.arange(1, VOCABULARY + 1))
    drawn = np.random.default_rng(seed).random((count, words)) * shares[-1]
    numbers = np.searchsorted(shares, drawn).tolist()
    return [" ".join(f"w{number}" for number in row) for row in numbers]


class Embedder:
    """From texts of numbered words to unit vectors; the same text always gives the same vector.

    Args:
        dim: Components of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._of_words = np.random.default_rng(1).standard_normal((_DIRECTIONS, dim), dtype=np.float32)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32, shape (texts, dim)."""
        blocks = [self._block(texts[start : start + _BLOCK]) for start in range(0, len(texts), _BLOCK)]
        return np.concatenate([np.empty((0, self._of_words.shape[1]), np.float32), *blocks])

    def _block(self, texts: Sequence[str]) -> NDArray[np.float32]:
        numbers = [[_number(word) for word in text.split()] for text in texts]
        flat = np.array([number for row in numbers for number in row], dtype=np.int64)
        starts = np.cumsum([0, *map(len, numbers)])[:-1]
        words = self._of_words[flat % _DIRECTIONS] * np.log2(2.0 + flat).astype(np.float32)[:, np.newaxis]
        rows = np.add.reduceat(words, starts, axis=0)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _number(word: str) -> int:
    """Of a numbered word; any other gets one by its bytes, as what an index asks of its embedder is in English."""
    return int(word[1:]) if word[:1] == "w" and word[1:].isdecimal() else sum(word.encode())


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """English sentences, all different, each of `SENTENCE_TOKENS` tokens."""
    slots = [slot.split("|") for slot in (_WHO, _DID, _WHAT, _WHERE, _WHEN)]
    sizes = [len(slot) for slot in slots]
    chosen = np.random.default_rng(seed).choice(int(np.prod(sizes)), size=count, replace=False)
    places = zip(*(one.tolist() for one in np.unravel_index(chosen, sizes)), strict=True)
    return [" ".join(slot[i] for slot, i in zip(slots, row, strict=True)) for row in places]


def paragraphs(count: int) -> list[str]:
    """English texts, all different, each of five sentences, `PARAGRAPH_TOKENS` tokens."""
    lines = sentences(5 * count, seed=1)
    return [" ".join(lines[start : start + 5]) for start in range(0, len(lines), 5)]


def tokenized(count: int, seed: int = 0) -> list[list[str]]:
    """The terms of `texts`."""
    return [text.split() for text in texts(count, seed=seed)]


@dataclass(frozen=True)
class Row:
    """What was measured of one work.

    Attributes:
        work: What was done, with its size.
        times: Milliseconds of each call, by who did it; ours first.
        aims: The largest ratio of ours to a peer's that is aimed at, by peer; under `OURS` the most milliseconds.
        checks: What must hold besides, in words, and whether it does.
    """

    work: str
    times: Mapping[str, Sequence[float]]
    aims: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, bool | None] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        """Ours to a peer's, of medians."""
        return median(self.times[OURS]) / median(self.times[peer])

    def verdict(self, name: str) -> str:
        """`met` or `missed`; nothing where nothing is aimed at, or the peer is not installed."""
        if name not in self.aims or name not in self.times:
            return ""
        seen = median(self.times[OURS]) if name == OURS else self.ratio(name)
        return "met" if seen <= self.aims[name] else "missed"


def alternate(
    calls: Mapping[str, Call], numbers: Sequence[int], *, warm: bool = True, pause: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of every call, the callers taking turns.

    Args:
        calls: What is timed, by name.
        numbers: What each is called with, one turn after the other.
        warm: Whether each is called once before.
        pause: Seconds of rest before each turn of a caller.
    """
    order = list(calls)
    times: dict[str, list[float]] = {name: [] for name in order}
    if warm:
        for call in calls.values():
            call(0)
    gc.collect()
    gc.disable()
    try:
        for number in numbers:
            for name in order:
                time.sleep(pause)
                started = time.perf_counter()
                calls[name](number)
                times[name].append(1e3 * (time.perf_counter() - started))
            order.reverse()
    finally:
        gc.enable()
    return times


LINE = "{:<58}{:>10}{:>10}{:>10}{:>8}  {:<12}{}"


def printed(row: Row) -> Iterator[str]:
    """A line for ours, one for each peer, one for what must hold besides."""
    for name, times in row.times.items():
        mine = name == OURS
        cells = [f"{value:.2f}" for value in (median(times), min(times), max(times))]
        aim = "" if name not in row.aims else f"≤ {row.aims[name]:g}{' ms' if mine else ' ×'}"
        ratio = "" if mine else f"{row.ratio(name):.3g}"
        yield LINE.format(row.work if mine else f"    {name}", *cells, ratio, aim, row.verdict(name)).rstrip()
    for check, holds in row.checks.items():
        yield f"    {check}" + ("" if holds is None else ": met" if holds else ": missed")


def installed(peer: str) -> bool:
    """Whether a peer is there to be measured."""
    modules = [_MODULES.get(package, package.replace("-", "_")) for package in PACKAGES[peer]]
    return all(find_spec(module) is not None for module in modules)


def bm25s_index(tokens: list[list[str]]) -> Any:  # noqa: ANN401
    """The peer's index, set to its fastest way to search."""
    import bm25s

    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numba")
    index.index(tokens, show_progress=False)
    return index


def bm25s_top(index: Any, terms: list[str], k: int) -> Rows:  # noqa: ANN401
    """The rows of the k best by the peer."""
    rows: Rows = index.retrieve([terms], k=k, show_progress=False).documents[0]
    return rows


def numpy_top(vectors: Vectors, query: Vectors, k: int) -> Rows:
    """The rows of the k best by a product, sorted."""
    scores = vectors @ query
    rows = np.argpartition(scores, len(scores) - k)[-k:]
    return rows[np.argsort(-scores[rows])]


def langchain_mmr(texts: Sequence[str], vectors: Vectors, asked: Vectors) -> Call:
    """MMR over LangChain's store in memory, filled with vectors that are known."""
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    class Known(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return vectors.tolist()

        def embed_query(self, text: str) -> list[float]:
            raise AssertionError("the store is asked with vectors")

    store = InMemoryVectorStore(Known())
    store.add_texts(texts)
    search = store.max_marginal_relevance_search_by_vector
    return lambda n: search(asked[n].tolist(), k=8, fetch_k=CANDIDATES)


def dspy_search(
    texts: Sequence[str], vectors: Vectors, queries: Sequence[str], asked: Vectors
) -> Callable[[int], Rows]:
    """The rows that DSPy's exact retriever finds, filled with vectors that are known; it knows no other channel."""
    from dspy.retrievers.embeddings import Embeddings

    known = dict(zip(queries, asked, strict=True))

    def embed(given: Sequence[str]) -> Vectors:
        return vectors if given is texts else np.stack([known[text] for text in given])

    search = Embeddings(texts, embed, k=8, brute_force_threshold=len(texts) + 1)
    return lambda n: np.array(search(queries[n]).indices)


OPENING = """
import json, sys, time
from retriever import Retriever

times = []
for trust in (False, False, True):
    started = time.perf_counter()
    index = Retriever.open(sys.argv[1], trust=trust)
    times.append(1e3 * (time.perf_counter() - started))
    index.close()
print(json.dumps(times))
"""
LOADING = "import sys; from sentence_transformers import SentenceTransformer as S; S(sys.argv[1], device='cpu')"


def model() -> str:
    """The default model as sentence-transformers loads it."""
    return str(packaged_folder() or "sentence-transformers/all-MiniLM-L6-v2")


def sbert() -> Callable[[list[str]], Vectors]:
    """The default model run by sentence-transformers, with the defaults of its `encode`."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = SentenceTransformer(model(), device="cpu")
    return lambda texts: loaded.encode(texts, show_progress_bar=False)
