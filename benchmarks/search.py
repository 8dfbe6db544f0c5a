"""How long search takes, from one query to a whole process, each time beside a peer that does the same work.

    scripts/bench search [--examples 100000] [--dim 384] [--queries 20] [--repeats 5] [--only ROW...] [--json OUT]

Ours and the peers take turns on the same input, in an order that is reversed every time, after a call that does not
count, save where a first one is meant. Each name below has a process of its own. Cyclic garbage is not collected
meanwhile; threads are as each library has them. Of the times the median, the least and the most are shown; ratios are
ours to the peer's, of medians.

    bm25      BM25 top-10 of 12 terms beside bm25s with numba, by NumPy and compiled: of an index that was not asked
              before, of one that was asked 200 others, of one that was asked the same, and all queries at once; on at
              most 20,000 examples beside rank-bm25
    build     postings of tokenized texts beside the index of bm25s
    dense     exact top-50 of one query, beside a product in NumPy and, after a rest each time, beside FAISS; then over
              rows of float16 and int8
    select    hybrid and MMR, k = 8, vector given, on at most 50,000 examples, beside the two bare searches; and on at
              most 20,000 beside LangChain's store in memory, and by vectors alone beside DSPy's
    open      that index, in a process of its own: first, again, and trusted
    query     one query embedded beside sentence-transformers, in a process that has embedded others
    cold      whole processes: `retriever select`, `import retriever`
    pool      1,000 texts of 13 tokens and 250 of 57 embedded beside sentence-transformers, in float32 and in bfloat16
              where the processor has it, and whether neighbours stay the same
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import _synthetic as synthetic
from _synthetic import (
    BM25S,
    DSPY,
    FAISS,
    LANGCHAIN,
    NUMPY,
    OURS,
    RANK_BM25,
    RAW,
    SBERT,
    Call,
    Calls,
    Row,
    Rows,
    Vectors,
    alternate,
    bm25s_top,
    installed,
    numpy_top,
    tokenized,
)
from quality import machine

from indexes import kernels
from indexes.channels import Fusion, Query
from indexes.dense import DenseIndex, Segment
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25, BM25Index
from indexes.postings import Postings
from indexes.topk import top
from retriever import Example, Retriever, Selection
from retriever.embedders import EmbedderSettings, encode_checked, load_embedder
from retriever.embedders.bfloat16 import has_bfloat16, overlap

BLOCK_BYTES = 16 << 20
"""Of BM25 scores that are held at once, as `select_many` does."""

BEFORE, OPENED = 50, 2.0
"""Queries that a process has embedded before, and seconds for what opens beside them."""

FOR_RANK_BM25, FOR_STORES, FOR_SELECT, FOR_COLD, FOR_POOL = 20_000, 20_000, 50_000, 2_000, 1_000


@dataclass(frozen=True)
class Size:
    """How large it all is: examples, components of a vector, queries, and how often each is asked."""

    examples: int
    dim: int
    queries: int
    repeats: int


def our_top(index: BM25Index, terms: list[str], k: int, rows: Rows | None = None) -> Rows:
    """The rows of the k best by ours; who asks often holds the numbers of all rows."""
    return top(np.arange(len(index)) if rows is None else rows, index.scores(terms), k)


def bm25_rows(size: Size, folder: Path) -> Iterator[Row]:
    """Queries beside bm25s, by NumPy and compiled; a block at once; then the same scores as rank-bm25."""
    tokens, asked = tokenized(size.examples), tokenized(size.queries, 1)
    postings = Postings.from_documents(tokens)
    peer = synthetic.bm25s_index(tokens) if installed(BM25S) else None
    for how in loops():
        yield from single_rows(postings, asked, peer, size.repeats, how)
        yield block_row(postings, asked, peer, size.repeats, how)
    if installed(RANK_BM25):
        yield rank_bm25_row(tokens[:FOR_RANK_BM25], asked)


def loops() -> Iterator[str]:
    """With NumPy alone, as a process begins; then compiled, where there is numba, as it goes on."""
    for how, enough in {"NumPy": math.inf, "compiled": 0}.items():
        with kernels.using(kernels.Loader(enough)):
            if enough or kernels.load() is not None:
                yield how


def single_rows(postings: Postings, asked: list[list[str]], peer: Any, repeats: int, how: str) -> Iterator[Row]:  # noqa: ANN401
    """A first query, one after 200 others, and known ones."""
    fresh, used, known = [BM25Index([postings]) for _ in asked], BM25Index([postings]), BM25Index([postings])
    for index, before in ((used, tokenized(200, 2)), (known, asked), (known, asked)):
        for terms in before:
            index.scores(terms)
    theirs: Calls = {BM25S: lambda n: bm25s_top(peer, asked[n], 10)} if peer else {}
    once, often, rows = range(len(asked)), [*range(len(asked))] * repeats, np.arange(len(known))
    checks = same_best(known, peer, asked)
    ways: Mapping[str, tuple[Call, Sequence[int]]] = {
        "a first query": (lambda n: our_top(fresh[n], asked[n], 10, rows), once),
        "a new query": (lambda n: our_top(used, asked[n], 10, rows), once),
        "asked before": (lambda n: our_top(known, asked[n], 10, rows), often),
    }
    for name, (ours, numbers) in ways.items():
        times, work = alternate({OURS: ours, **theirs}, numbers, warm=False), f"BM25 top-10, {how}, {len(known):,}"
        yield Row(f"{work}: {name}", times, {BM25S: 1.1}, checks if numbers is often else {})


def block_row(postings: Postings, asked: list[list[str]], peer: Any, repeats: int, how: str) -> Row:  # noqa: ANN401
    """All queries at once, ours and the peer's on all cores."""
    index, rows = BM25Index([postings]), np.arange(len(postings))
    per_block = max(1, min(len(asked), BLOCK_BYTES // (8 * max(1, len(postings)))))

    def ours(n: int) -> None:
        for start in range(0, len(asked), per_block):
            for scores in index.block(asked[start : start + per_block]):
                top(rows, scores, 10)

    calls: Calls = {OURS: ours}
    if peer is not None:
        calls[BM25S] = lambda n: peer.retrieve(asked, k=10, show_progress=False, n_threads=-1)
    times = alternate(calls, range(repeats))
    return Row(f"BM25 top-10, {how}, {len(postings):,}: a block of {len(asked)}", times, {BM25S: 1.1})


def same_best(index: BM25Index, peer: Any, asked: Sequence[list[str]]) -> dict[str, bool]:  # noqa: ANN401
    """Whether the peer's best have, by our scores, those of our best: ties may be broken otherwise."""
    if peer is None:
        return {}
    pairs = [(index.scores(terms), our_top(index, terms, 10), bm25s_top(peer, terms, 10)) for terms in asked]
    return {"same best": all(np.allclose(scores[ours], scores[theirs], rtol=1e-5) for scores, ours, theirs in pairs)}


def rank_bm25_row(tokens: list[list[str]], asked: Sequence[list[str]]) -> Row:
    """All scores of a query by the Okapi variant."""
    from rank_bm25 import BM25Okapi

    index, peer = BM25Index([Postings.from_documents(tokens)], BM25("okapi")), BM25Okapi(tokens)
    calls: Calls = {OURS: lambda n: index.scores(asked[n]), RANK_BM25: lambda n: peer.get_scores(asked[n])}
    off = max(float(np.abs(index.scores(terms) - peer.get_scores(terms)).max()) for terms in asked)
    work = f"BM25 scores (Okapi), 12 terms, {len(tokens):,}"
    return Row(work, alternate(calls, range(min(5, len(asked)))), {}, {f"same scores within {off:.0e}": off <= 1e-6})


def build_rows(size: Size, folder: Path) -> Iterator[Row]:
    """Postings, and what the index works out when it is made."""
    tokens = tokenized(size.examples)
    calls: Calls = {OURS: lambda n: BM25Index([Postings.from_documents(tokens)])}
    if installed(BM25S):
        synthetic.bm25s_index(tokens[:100])
        calls[BM25S] = lambda n: synthetic.bm25s_index(tokens)
    times = alternate(calls, range(size.repeats), warm=False)
    yield Row(f"BM25 build, {size.examples:,} texts of 12 terms", times, {BM25S: 0.6})


def dense_rows(size: Size, folder: Path) -> Iterator[Row]:
    """One query at a time against all rows, in each of the types that they may be stored in."""
    embed, k = synthetic.Embedder(size.dim), min(50, size.examples)
    vectors, asked = embed(synthetic.texts(size.examples)), embed(synthetic.texts(size.queries, seed=1))
    work = f"exact dense top-{k}, {size.examples:,} × {size.dim}"
    peers: dict[str, Callable[[int], Rows]] = {NUMPY: lambda n: numpy_top(vectors, asked[n], k)}
    ours = dense_top(vectors, asked, k, "float32")
    if installed(FAISS):
        import faiss

        flat = faiss.IndexFlatIP(size.dim)
        flat.add(vectors)
        peers[FAISS] = lambda n: flat.search(asked[n : n + 1], k)[1][0]
    turns = [*range(len(asked))] * size.repeats
    for peer, search in peers.items():
        same = [set(ours(n).tolist()) == set(search(n).tolist()) for n in range(len(asked))]
        # After a search, threads of FAISS keep a core busy for a while, whoever comes next.
        times = alternate({OURS: ours, peer: search}, turns, pause=synthetic.SETTLED if peer == FAISS else 0.0)
        yield Row(
            f"{work}, beside {peer}", times, {NUMPY: 1.1}, {f"same rows for {sum(same)} of {len(same)}": all(same)}
        )
    for kind in ("float16", "int8"):
        rounded = dense_top(vectors, asked, k, kind)
        kept = [len(np.intersect1d(rounded(n)[:10], ours(n)[:10])) / min(10, k) for n in range(len(asked))]
        times = alternate({OURS: rounded, NUMPY: peers[NUMPY]}, turns)
        yield Row(f"{work}, {kind}", times, {}, {f"top-10 overlap with float32 {np.mean(kept):.3f}": None})


def dense_top(vectors: Vectors, asked: Vectors, k: int, kind: str) -> Callable[[int], Rows]:
    """The rows of the k best by ours, over rows of a type."""
    without_terms = BM25Index([Postings.from_documents([()] * len(vectors))])
    index = HybridIndex(DenseIndex([Segment.of(vectors, kind)]), without_terms)
    return lambda n: index.rank(next(index.score([Query(asked[n])])), k, Fusion("dense")).rows


def synthetic_index(size: Size, folder: Path, most: int) -> tuple[Retriever, list[str]]:
    """An index of at most so many synthetic examples, made where it is not there, and its texts."""
    count = min(size.examples, most)
    path, texts = folder / f"{count}.index", synthetic.texts(count)
    if not path.exists():
        pool = (Example(f"e{i}", text, output=f"o{i % 77}") for i, text in enumerate(texts))
        Retriever.build(pool, path, embedder=synthetic.Embedder(size.dim), weight=0.5, note=print).close()
    return Retriever.open(path, trust=True), texts


def select_rows(size: Size, folder: Path) -> Iterator[Row]:
    """The whole of `select` beside what it cannot do without, and beside a store of another library."""
    embed, queries = synthetic.Embedder(size.dim), synthetic.texts(size.queries, seed=1)
    asked, terms = embed(queries), [text.split() for text in queries]

    def ours(index: Retriever) -> Call:
        return lambda n: index.select(queries[n], vector=asked[n], mode="hybrid", strategy="mmr", k=8)

    index, texts = synthetic_index(size, folder, FOR_SELECT)
    with index:
        calls: Calls = {OURS: ours(index)}
        if installed(BM25S):
            vectors, peer, k = (
                embed(texts),
                synthetic.bm25s_index([text.split() for text in texts]),
                min(synthetic.CANDIDATES, len(texts)),
            )
            calls[RAW] = lambda n: (numpy_top(vectors, asked[n], k), bm25s_top(peer, terms[n], k))
        for how in loops():
            times = alternate(calls, [*range(len(queries))] * size.repeats)
            yield Row(f"select, hybrid and MMR, {how}, k = 8, {len(texts):,} × {size.dim}", times, {RAW: 1.3})
    index, texts = synthetic_index(size, folder, FOR_STORES)
    with index:
        vectors, few = embed(texts), range(min(5, len(queries)))
        if installed(LANGCHAIN):
            calls = {OURS: ours(index), LANGCHAIN: synthetic.langchain_mmr(texts, vectors, asked)}
            yield Row(f"select, the same, {len(texts):,} × {size.dim}", alternate(calls, few))
        if installed(DSPY):
            search = synthetic.dspy_search(texts, vectors, queries, asked)

            def by_vectors(n: int) -> Selection:
                return index.select(queries[n], vector=asked[n], mode="dense", k=8)

            same = all(set(by_vectors(n).ids) == {f"e{row}" for row in search(n)} for n in few)
            times = alternate({OURS: by_vectors, DSPY: search}, few)
            yield Row(f"select, dense, k = 8, {len(texts):,} × {size.dim}", times, {}, {"same rows": same})


def open_rows(size: Size, folder: Path) -> Iterator[Row]:
    """In processes of their own, the pages of the files in memory."""
    index, texts = synthetic_index(size, folder, FOR_SELECT)
    index.close()
    runs = [json.loads(process(synthetic.OPENING, str(index.path))) for _ in range(size.repeats)]
    for name, times in zip(("first in a process", "again", "again, trusted"), zip(*runs, strict=True), strict=True):
        yield Row(f"open {len(texts):,} × {size.dim}: {name}", {OURS: times})


def process(program: str, *arguments: str) -> str:
    """What a Python program prints."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def embedder(settings: EmbedderSettings, texts: Sequence[str] = ()) -> Callable[[list[str]], Vectors]:
    """The default model run as the settings say."""
    loaded = load_embedder(settings, note=print, pool_texts=lambda: texts)
    return lambda texts: encode_checked(loaded, texts)


def query_rows(size: Size, folder: Path) -> Iterator[Row]:
    """Sentences one right after the other, and each after a rest, in which cores fall asleep.

    Ours has had its turns before the peer is loaded: after torch has computed in the same process, a second thread was
    seen to gain nothing, and a process that embeds by ONNX Runtime does not import torch.
    """
    texts = synthetic.sentences(size.queries * size.repeats)
    ways = {"one right after another": 0.0, f"after {1e3 * synthetic.SETTLED:.0f} ms of rest": synthetic.SETTLED}
    times: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    loaders = {OURS: lambda: embedder(EmbedderSettings()), SBERT: synthetic.sbert}
    for name in (name for name in loaders if name == OURS or installed(name)):
        encode = loaders[name]()
        call = partial(_one, encode, texts)
        for n in range(BEFORE):
            call(n % len(texts))
        time.sleep(OPENED)
        for way, pause in ways.items():
            times[way] |= alternate({name: call}, range(len(texts)), pause=pause)
    for way, pause in ways.items():
        yield Row(f"one query embedded, {way}", times[way], {} if pause else {OURS: 3.0})


def _one(encode: Callable[[list[str]], Vectors], texts: Sequence[str], n: int) -> Vectors:
    return encode([texts[n]])


def pool_rows(size: Size, folder: Path) -> Iterator[Row]:
    """Many texts at once, short ones and long ones; the time is for all of them."""
    count = min(size.examples, FOR_POOL)
    kinds = {
        synthetic.SENTENCE_TOKENS: synthetic.sentences(count),
        synthetic.PARAGRAPH_TOKENS: synthetic.paragraphs(max(1, count // 4)),
    }
    for tokens, texts in kinds.items():
        yield pool_row(texts, f"{len(texts):,} texts of {tokens} tokens embedded", EmbedderSettings(), size.repeats)
        if has_bfloat16():
            rounded = EmbedderSettings(precision="bfloat16")
            yield pool_row(texts, f"{len(texts):,} texts of {tokens} tokens embedded, bfloat16", rounded, size.repeats)


def pool_row(texts: list[str], work: str, settings: EmbedderSettings, repeats: int) -> Row:
    """Beside the peer in float32."""
    encoders = {OURS: embedder(settings, texts)}
    if installed(SBERT):
        encoders[SBERT] = synthetic.sbert()
    calls: Calls = {name: lambda n, e=encode: e(texts) for name, encode in encoders.items()}
    times = alternate(calls, range(repeats), pause=synthetic.SETTLED)
    speeds = ", ".join(f"{name} {1e3 * len(texts) / median(took):.0f}" for name, took in times.items())
    checks: dict[str, bool | None] = {f"texts a second: {speeds}": None}
    if SBERT in encoders:
        kept = overlap(encoders[OURS](texts), encoders[SBERT](texts), 10)
        checks[f"top-10 overlap {kept:.3f}"] = kept >= 0.98
    return Row(work, times, {SBERT: 1 / 1.6}, checks)


def cold_rows(size: Size, folder: Path) -> Iterator[Row]:
    """Whole processes, from start to end."""
    count, path = min(size.examples, FOR_COLD), folder / "cold.index"
    pool = (Example(f"e{i}", text, output=f"o{i}") for i, text in enumerate(synthetic.sentences(count)))
    Retriever.build(pool, path, weight=0.5, note=print).close()
    select = [str(Path(sys.executable).with_name("retriever")), "select", str(path), "where is the blue card"]
    calls: Calls = {OURS: lambda n: subprocess.run(select, check=True, capture_output=True)}
    if installed(SBERT):
        calls[f"{SBERT}, loaded"] = lambda n: process(synthetic.LOADING, synthetic.model())
    times = alternate(calls, range(size.repeats))
    yield Row(f"`retriever select`, {count:,} examples, whole process", times, {OURS: 1000.0})
    calls = {OURS: lambda n: process("import retriever"), "python -c pass": lambda n: process("pass")}
    yield Row("`import retriever`, whole process", alternate(calls, range(2 * size.repeats)), {OURS: 150.0})


ROWS: Mapping[str, Callable[[Size, Path], Iterator[Row]]] = {
    "bm25": bm25_rows,
    "build": build_rows,
    "dense": dense_rows,
    "select": select_rows,
    "open": open_rows,
    "query": query_rows,
    "cold": cold_rows,
    "pool": pool_rows,
}


def by_itself(name: str, size: Size, folder: Path) -> list[Row]:
    """Rows measured in a process of their own: threads that other libraries have left behind slow torch down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(measured, name, size, folder).result()


def measured(name: str, size: Size, folder: Path) -> list[Row]:
    """The rows of one name."""
    return list(ROWS[name](size, folder))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for name, default in (("examples", 100_000), ("dim", 384), ("queries", 20), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, help=str(default))
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    options = vars(parser.parse_args(argv))
    only, out = options.pop("only"), options.pop("json")
    print(", ".join(f"{name} {value}" for name, value in options.items()) + "; milliseconds; ratios are ours to theirs")
    print(synthetic.LINE.format("work", "median", "min", "max", "ratio", "aim", "verdict"))
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for name in only:
            for row in by_itself(name, Size(**options), Path(folder)):
                print(*synthetic.printed(row), sep="\n", flush=True)
                rows.append(row)
    there = [package for peer, packages in synthetic.PACKAGES.items() if installed(peer) for package in packages]
    about = {**machine(), **{package: version(package) for package in (*there, "onnxruntime")}}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print("peers not installed: " + (", ".join(peer for peer in synthetic.PACKAGES if not installed(peer)) or "none"))
    if out is not None:
        figures = [{**asdict(row), "verdicts": {name: row.verdict(name) for name in row.times}} for row in rows]
        content = {"machine": about, "settings": options, "rows": figures}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
