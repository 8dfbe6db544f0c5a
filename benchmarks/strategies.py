"""Selection strategies side by side, on data sets whose answers are known. No language model is called.

    python benchmarks/strategies.py DATA... [--queries 300] [--k 8] [--mode dense] [--json OUT]

DATA are folders as `benchmarks/quality.py` reads them. Each strategy chooses from the same candidates, the 100 best by
the mode. Columns: coverage, the share of the true output's n-grams (up to 4) that stand in some demonstration's output;
P@k and hit@k by label, where there are labels; redundancy, the mean cosine of two demonstrations; tokens of the prompt;
and milliseconds per query, the query's embedding not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from quality import DataSet, machine, read_data_set

from retriever import Retriever
from retriever.embedders import encode_checked, load_embedder
from retriever.evaluation.metrics import hit, ngram_coverage, precision, redundancy
from retriever.example import Json
from retriever.ranking.recipe import Options
from retriever.selection import Selection

STRATEGIES: Mapping[str, Options] = {
    "top": {},
    "random": {"strategy": "random"},
    "mmr .5": {"strategy": "mmr"},
    "mmr .7": {"strategy": "mmr", "options": {"weight": 0.7}},
    "dpp .1": {"strategy": "dpp"},
    "sift .1": {"strategy": "sift"},
    "coverage": {"strategy": "coverage"},
    "balanced": {"strategy": "balanced"},
    "cluster": {"strategy": "cluster"},
}


def measure(data: DataSet, folder: Path, k: int, mode: str) -> list[dict[str, Json]]:
    """One row of figures for each strategy."""
    embedder = load_embedder("auto", note=lambda line: None)
    vectors = encode_checked(embedder, [query.input_text for query in data.queries])
    rows: list[dict[str, Json]] = []
    with Retriever.build(data.pool, folder / data.name, embedder=embedder, note=lambda line: None) as index:
        known = {e.id: v for (_, e), v in zip(*_pool(index), strict=True)}
        for name, options in STRATEGIES.items():
            took, chosen = [], []
            for query, vector in zip(data.queries, vectors, strict=True):
                started = time.perf_counter()
                chosen.append(index.select(query, vector=vector, k=k, mode=mode, **options))
                took.append(time.perf_counter() - started)
            tokens = [float(index.prompt(selection).tokens) for selection in chosen[:50]]
            unlike = [redundancy(np.array([known[i] for i in s.ids], np.float32)) for s in chosen]
            rows.append(
                {
                    "data_set": data.name,
                    "strategy": name,
                    **judged(chosen),
                    "redundancy": fmean(unlike),
                    "tokens": fmean(tokens),
                    "ms": 1e3 * median(took),
                }
            )
    return rows


def _pool(index: Retriever) -> tuple[list[tuple[int, object]], np.ndarray]:
    snapshot = index.snapshot
    present = list(snapshot.present())
    return present, snapshot.index.dense.vectors(np.array([place for place, _ in present]))


def judged(chosen: Sequence[Selection]) -> dict[str, Json]:
    """What the true outputs and labels say of some selections; None where they say nothing."""
    covered = [
        ngram_coverage(one.query.output_text, [d.example.output_text for d in one])
        for one in chosen
        if one.query.output_text
    ]
    labelled = [(one.query.labels, [d.example.labels for d in one]) for one in chosen if one.query.labels]
    return {
        "coverage": fmean(covered) if covered else None,
        "precision": fmean(precision(*pair) for pair in labelled) if labelled else None,
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
    options = parser.parse_args()
    columns = ("data_set", "strategy", "coverage", "precision", "hit", "redundancy", "tokens", "ms")
    print("  ".join(f"{column:>14}" if number > 1 else f"{column:14}" for number, column in enumerate(columns)))
    rows: list[dict[str, Json]] = []
    with TemporaryDirectory() as folder:
        for path in options.data:
            found = measure(read_data_set(path, options.queries), Path(folder), options.k, options.mode)
            for row in found:
                cells = [_cell(row[column]) for column in columns]
                print("  ".join(f"{c:>14}" if n > 1 else f"{c:14}" for n, c in enumerate(cells)), flush=True)
            rows += found
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _cell(value: Json) -> str:
    return value if isinstance(value, str) else "–" if not isinstance(value, float) else f"{value:.3f}"


if __name__ == "__main__":
    main()
