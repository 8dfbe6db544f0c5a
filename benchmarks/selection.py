"""What choosing costs: each strategy's own function beside a peer that is to pick the same, on synthetic candidates.

    scripts/bench selection [--queries 20] [--repeats 5] [--candidates 500] [--k 16] [--dim 384] [--json OUT]

Vectors and terms are given; cosines to the query, the parts of a query and all checks count. Ours and the peer are
called in turn on the same input, one thread each. Peers are LangChain's MMR (`benchmarks/peers.txt`; without it the
line stands alone) and loops written here from the formulas, with no regard to speed but for the Cholesky recursion that
CEIL uses. Where two gains are closer than 1e-6, which to us is a tie, a peer may pick another set. Candidates are unit
vectors around 20 centres and texts from a bank of phrases; all are seeded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median

# Read when numpy is imported.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from numpy.typing import NDArray
from quality import machine

from retriever.example import Json
from retriever.ranking.strategies import STRATEGIES
from retriever.ranking.strategies.aspects import term_aspects
from retriever.ranking.strategies.balanced import balanced
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.cluster import cluster
from retriever.ranking.strategies.coverage import coverage
from retriever.ranking.strategies.dpp import dpp
from retriever.ranking.strategies.mmr import mmr
from retriever.ranking.strategies.picks import Picks, Reals
from retriever.ranking.strategies.sift import sift

try:
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError:
    maximal_marginal_relevance = None

AIMS = {"mmr": 1.5, "dpp": 3.0, "sift": 3.0, "coverage": 5.0}
TERMS = (15, 60, 200)
SCALE, NOISE, BONUS, LONGEST = 0.1, 0.1, 0.2, 4


@dataclass(frozen=True)
class Case:
    """One query and its candidates, best first: unit vectors, or the terms of `texts`, of which the first is asked."""

    query: NDArray[np.float32]
    vectors: NDArray[np.float32]
    texts: Sequence[NDArray[np.int64]]
    relevance: Reals

    @cached_property
    def terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The candidates' terms one after the other, and where each begins."""
        return np.concatenate(self.texts[1:]), np.cumsum([0, *map(len, self.texts[1:])])

    @property
    def cosines(self) -> Reals:
        """Cosines to the query, computed anew each time."""
        return (self.vectors @ self.query).astype(np.float64)


def vector_case(number: int, count: int, dim: int) -> Case:
    """A query and candidates around 20 centres."""
    random = np.random.default_rng(number)
    rows = random.standard_normal((20, dim))[random.integers(0, 20, count + 1)]
    rows += 0.8 * random.standard_normal(rows.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    query, vectors = rows[0], rows[1:]
    vectors = vectors[np.argsort(-(vectors @ query), kind="stable")]
    return Case(query, vectors, (), (vectors @ query).astype(np.float64))


def text_case(number: int, count: int, length: int) -> Case:
    """A query and candidates made of phrases with Zipf frequencies; relevance is the share of the query's words."""
    random = np.random.default_rng(number)
    bank = [random.zipf(1.3, size) % 5000 for size in random.integers(1, 7, 2000)]
    drawn = [np.minimum(random.zipf(1.3, length), len(bank)) - 1 for _ in range(count + 1)]
    texts = [np.concatenate([bank[i] for i in one])[:length] for one in drawn]
    relevance = np.array([np.isin(texts[0], one).mean() for one in texts[1:]]) + 1e-3 * random.random(count)
    best = np.argsort(-relevance)
    none = np.zeros((0, 0), np.float32)
    return Case(none, none, [texts[0], *(texts[1 + i] for i in best)], relevance[best])


def langchain_mmr(case: Case, k: int) -> list[int]:
    """MMR of LangChain, given the matrix itself, which it takes faster than a list of rows."""
    return maximal_marginal_relevance(case.query, case.vectors, lambda_mult=0.5, k=k)


def by_determinants(case: Case, k: int) -> list[int]:
    """Greedy DPP by the definition: the determinant of each set that is one larger."""
    kernel, taken = _dpp_kernel(case), []
    for _ in range(k):
        sets = [[*taken, i] for i in range(len(kernel))]
        volume = [-np.inf if s[-1] in taken else np.linalg.slogdet(kernel[np.ix_(s, s)])[1] for s in sets]
        taken.append(int(np.argmax(volume)))
    return taken


def by_fast_map(case: Case, k: int) -> list[int]:
    """Greedy DPP by the recursion of Chen, Zhang and Zhou (2018) over the whole kernel, as CEIL does it."""
    kernel = _dpp_kernel(case)
    rows, left, taken = np.zeros((k, len(kernel))), np.diag(kernel).copy(), []
    for step in range(k):
        taken.append(best := int(np.argmax(left)))
        rows[step] = (kernel[best] - rows[:step, best] @ rows[:step]) / np.sqrt(left[best])
        left -= rows[step] ** 2
        left[taken] = -np.inf
    return taken


def _dpp_kernel(case: Case) -> Reals:
    vectors = case.vectors.astype(np.float64)
    relevance = (1.0 + case.cosines) / 2.0
    weight = np.exp((relevance - relevance.max()) / (2.0 * SCALE))
    return weight[:, None] * (1.0 + vectors @ vectors.T) / 2.0 * weight


def by_posterior(case: Case, k: int) -> list[int]:
    """SIFT by the definition: the query's variance given each set that is one larger, by solving for it."""
    vectors, taken = case.vectors.astype(np.float64), []
    kernel, to_query = vectors @ vectors.T + NOISE * np.eye(len(vectors)), vectors @ case.query
    for _ in range(k):
        sets = [[*taken, i] for i in range(len(kernel))]
        told = [
            -np.inf if s[-1] in taken else to_query[s] @ np.linalg.solve(kernel[np.ix_(s, s)], to_query[s])
            for s in sets
        ]
        taken.append(int(np.argmax(told)))
    return taken


def by_sets(case: Case, k: int) -> list[int]:
    """Coverage by the definition, over sets of n-grams; a cover to which nothing can be added is begun anew."""
    asked, *grams = map(_grams, case.texts)
    low, high = case.relevance.min(), case.relevance.max()
    bonus = BONUS * (case.relevance - low) / (high - low)
    taken: list[int] = []
    covered: set[tuple[int, ...]] = set()
    for _ in range(k):
        for begun_anew in (False, True):
            added = [len((mine & asked) - covered) / len(asked) for mine in grams]
            gains = [-np.inf if i in taken else a + b for i, (a, b) in enumerate(zip(added, bonus, strict=True))]
            best = int(np.argmax(gains))
            if added[best] or begun_anew:
                break
            covered = set()
        taken.append(best)
        covered |= grams[best] & asked
    return taken


def _grams(text: NDArray[np.int64]) -> set[tuple[int, ...]]:
    terms = text.tolist()
    return {tuple(terms[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(terms) - n + 1)}


def our_coverage(case: Case, k: int) -> Picks:
    """Coverage, the counting of n-grams included."""
    aspects = term_aspects(case.texts[0], *case.terms, longest=LONGEST)
    return coverage(aspects, case.relevance, k, relevance_weight=BONUS, scaling="min-max")


def _by_relevance(name: str, case: Case, k: int) -> Picks:
    strategy = STRATEGIES[name]  # neither `top` nor `random` reads more than the relevance
    return strategy.pick(Candidates(np.arange(len(case.vectors)), case.cosines, None), k, strategy.options())


def _balanced(case: Case, k: int) -> Picks:
    return balanced([(f"label {i * 7 % 20}",) for i in range(len(case.vectors))], case.cosines, k)


Ours = Callable[[Case, int], Picks]
Peer = Callable[[Case, int], "list[int]"]
_DPP: Ours = lambda case, k: dpp(case.cosines, case.vectors, k, scale=SCALE)  # noqa: E731
PAIRS: Sequence[tuple[str, Ours, str, Peer | None]] = (
    ("mmr", lambda case, k: mmr(case.cosines, case.vectors, k, weight=0.5), "langchain-core", langchain_mmr),
    ("dpp", _DPP, "determinants", by_determinants),
    ("dpp", _DPP, "fast MAP (CEIL)", by_fast_map),
    ("sift", lambda case, k: sift(case.query, case.vectors, k, noise=NOISE), "posterior solved", by_posterior),
    *((f"coverage {terms}", our_coverage, "sets of n-grams", by_sets) for terms in TERMS),
    ("top", lambda case, k: _by_relevance("top", case, k), "", None),
    ("balanced", _balanced, "", None),
    ("cluster", lambda case, k: cluster(case.vectors, k), "", None),
    ("random", lambda case, k: _by_relevance("random", case, k), "", None),
)


def rows(queries: int, repeats: int, candidates: int, k: int, dim: int) -> Iterator[dict[str, Json]]:
    """The figures of each pair, in milliseconds per query; a peer that is not installed is left out."""
    for name, ours, peer_name, peer in PAIRS:
        kind, _, terms = name.partition(" ")
        if peer is langchain_mmr and maximal_marginal_relevance is None:
            peer, peer_name = None, "not installed"
        times: tuple[list[float], list[float]] = ([], [])
        same = 0
        for number in range(queries):
            case = text_case(number, candidates, int(terms)) if terms else vector_case(number, candidates, dim)
            for turn in range(repeats):
                mine = _timed(ours, case, k, times[0])
                theirs = None if peer is None else _timed(peer, case, k, times[1])
                same += turn == 0 and theirs is not None and set(mine.places.tolist()) == set(theirs)
        figures: dict[str, Json] = {"strategy": name, "ms": median(times[0]), "min": min(times[0])}
        figures |= {"max": max(times[0]), "aim": AIMS.get(kind), "peer": peer_name}
        if peer is not None:
            ratio = median(times[1]) / median(times[0])
            figures |= {"peer_ms": median(times[1]), "ratio": ratio, "same_picks": same}
        yield figures


def _timed(function: Callable[[Case, int], object], case: Case, k: int, times: list[float]) -> object:
    started = time.perf_counter()
    found = function(case, k)
    times.append(1e3 * (time.perf_counter() - started))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for name, default in (("queries", 20), ("repeats", 5), ("candidates", 500), ("k", 16), ("dim", 384)):
        parser.add_argument(f"--{name}", type=int, default=default, help=str(default))
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    options = vars(parser.parse_args(argv))
    out = options.pop("json")
    print(", ".join(f"{name} {value}" for name, value in options.items()) + "; one thread; ms per query: median")
    line = "{:<13}{:>8}{:>8}{:>8}{:>6}  {:<17}{:>9}{:>8}  {}"
    print(line.format("strategy", "ms", "min", "max", "aim", "peer", "peer ms", "ratio", "same picks"))
    found = []
    for row in rows(**options):
        cells = [f"{row[name]:.2f}" for name in ("ms", "min", "max")]
        cells += ["" if row["aim"] is None else f"{row['aim']:.1f}", row["peer"]]
        if "ratio" in row:
            cells += [f"{row['peer_ms']:.2f}", f"{row['ratio']:.1f}", f"{row['same_picks']} of {options['queries']}"]
        print(line.format(row["strategy"], *cells, *[""] * (8 - len(cells))).rstrip(), flush=True)
        found.append(row)
    about = {**machine(), **({"langchain-core": version("langchain-core")} if maximal_marginal_relevance else {})}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if out is not None:
        content = {"machine": about, "settings": options, "rows": found}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
