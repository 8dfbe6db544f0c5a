"""Selection strategies side by side, on data sets whose answers are known. No language model is called.

    python benchmarks/strategies.py DATA... [--queries 300] [--k 8] [--mode dense] [--only NAME...] [--json OUT]

DATA are folders as `benchmarks/quality.py` reads them. Each strategy chooses from the same candidates, the 100 best by
the mode, but for `BM25` and `hybrid`, which have their own. Columns:

    coverage      the share of the true output's n-grams (up to 4) that stand in some demonstration's output
    labels        the share of the query's labels (classes, entity or slot types) that some demonstration has
    P@k, hit      the share of demonstrations that share a label with the query; whether any does
    redundancy    the mean cosine of two demonstrations
    tokens        of the prompt, estimated
    ms            per query, the median; the query's embedding is not counted, the embedding of its tokens is
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from quality import DataSet, machine, read_data_set

from retriever import IndexSettings, Retriever
from retriever.embedders import encode_checked, load_embedder
from retriever.evaluation.metrics import hit, ngrams, precision, redundancy, union_overlap
from retriever.example import Json
from retriever.selection import Selection

Sections = Mapping[str, Mapping[str, Json]]
_ONE_EACH: Sections = {"constraints": {"at_most": {"template": 1}}}
_OF_TOKENS: Json = {"of": "tokens", "relevance_weight": 0.0}

RECIPES: Mapping[str, Sections] = {
    "top": {},
    "BM25": {"retrieve": {"mode": "lexical"}},
    "hybrid": {"retrieve": {"mode": "hybrid"}},
    "random": {"select": {"strategy": "random"}},
    "mmr .5": {"select": {"strategy": "mmr"}},
    "mmr .7": {"select": {"strategy": "mmr", "options": {"weight": 0.7}}},
    "dpp .1": {"select": {"strategy": "dpp"}},
    "dpp .05": {"select": {"strategy": "dpp", "options": {"scale": 0.05}}},
    "sift .1": {"select": {"strategy": "sift"}},
    "sift 1": {"select": {"strategy": "sift", "options": {"noise": 1.0}}},
    "coverage": {"select": {"strategy": "coverage"}},
    "1 per template": _ONE_EACH,
    "mmr, 1 per t.": {**_ONE_EACH, "select": {"strategy": "mmr"}},
    "balanced": {"select": {"strategy": "balanced"}},
    "cluster": {"select": {"strategy": "cluster"}},
    "complexity": {"select": {"strategy": "complexity"}},
    "MaxSim": {"rerank": {"by": "maxsim"}},
    "MaxSim idf": {"rerank": {"by": "maxsim", "idf": True}},
    "Set-BSR": {"select": {"strategy": "coverage", "options": _OF_TOKENS}},
}
COLUMNS = ("data_set", "strategy", "coverage", "labels", "P@k", "hit", "redundancy", "tokens", "ms")


def measure(data: DataSet, folder: Path, names: Sequence[str], k: int, mode: str) -> Iterator[dict[str, Json]]:
    """One row of figures for each strategy."""
    embedder = load_embedder("auto", note=lambda line: None)
    vectors = encode_checked(embedder, [query.input_text for query in data.queries])
    with Retriever.build(
        data.pool,
        folder / data.name,
        embedder=embedder,
        settings=IndexSettings(token_vectors=True),
        note=lambda line: None,
    ) as index:
        known = {e.id: v for (_, e), v in zip(*_pool(index), strict=True)}
        for name in names:
            recipe = {"retrieve": {"mode": mode}, **RECIPES[name]}
            took, chosen = [], []
            for query, vector in zip(data.queries, vectors, strict=True):
                started = time.perf_counter()
                chosen.append(index.select(query, vector=vector, recipe=recipe, k=k))
                took.append(time.perf_counter() - started)
            tokens = [float(index.prompt(selection).tokens) for selection in chosen[:50]]
            unlike = [redundancy(np.array([known[i] for i in s.ids], np.float32)) for s in chosen]
            yield {
                "data_set": data.name,
                "strategy": name,
                **judged(chosen),
                "redundancy": fmean(unlike),
                "tokens": fmean(tokens),
                "ms": 1e3 * median(took),
            }


def _pool(index: Retriever) -> tuple[list[tuple[int, object]], np.ndarray]:
    snapshot = index.snapshot
    present = list(snapshot.present())
    return present, snapshot.index.dense.vectors(np.array([place for place, _ in present]))


def judged(chosen: Sequence[Selection]) -> dict[str, Json]:
    """What the true outputs and labels say of some selections; None where they say nothing."""
    covered = [
        union_overlap(ngrams(one.query.output_text), [ngrams(d.example.output_text) for d in one])
        for one in chosen
        if one.query.output_text
    ]
    labelled = [(one.query.labels, [d.example.labels for d in one]) for one in chosen if one.query.labels]
    return {
        "coverage": fmean(covered) if covered else None,
        "labels": fmean(union_overlap(*pair) for pair in labelled) if labelled else None,
        "P@k": fmean(precision(*pair) for pair in labelled) if labelled else None,
        "hit": fmean(hit(*pair) for pair in labelled) if labelled else None,
    }


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="folder of a data set")
    parser.add_argument("--queries", type=int, default=300, help="the most queries of each data set (300)")
    parser.add_argument("--k", type=int, default=8, help="demonstrations (8)")
    parser.add_argument("--mode", choices=("dense", "hybrid", "lexical"), default="dense", help="candidates (dense)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="strategies (all)")
    options = parser.parse_args()
    print(_line(COLUMNS))
    rows: list[dict[str, Json]] = []
    with TemporaryDirectory() as folder:
        for path in options.data:
            data = read_data_set(path, options.queries)
            for row in measure(data, Path(folder), options.only, options.k, options.mode):
                print(_line([_cell(row[column]) for column in COLUMNS]), flush=True)
                rows.append(row)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:>10}" if number > 1 else f"{cell:14}" for number, cell in enumerate(cells))


def _cell(value: Json) -> str:
    return value if isinstance(value, str) else "–" if not isinstance(value, float) else f"{value:.3f}"


if __name__ == "__main__":
    main()
