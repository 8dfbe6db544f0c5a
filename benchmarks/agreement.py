"""Whether every fast path selects the same: the same examples, in the same order, with the same scores to the last bit.

    scripts/bench agreement DATA... [--queries 200] [--json OUT]

DATA is a folder with `pool.jsonl` and `queries.jsonl`. The slow path is one query at a time, one thread, BM25 in NumPy.
Each other way changes one thing, in a process of its own, and must agree exactly. Only another engine for the model may
differ, by rounding: how far is shown, and how many of the demonstrations stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from quality import machine, read_data_set

from indexes import kernels
from retriever import Retriever
from retriever.embedders import EmbedderSettings

RECIPES: tuple[dict[str, Any], ...] = ({}, {"strategy": "mmr"}, {"mode": "lexical"}, {"fusion": "rrf"})
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Way:
    """A way to select.

    Attributes:
        name: As it is printed.
        threads: Of the libraries that do arithmetic.
        block: Whether all queries are given at once.
        compiled: Whether BM25's loops are compiled first.
        trust: Whether nothing is verified when the index is opened.
        engine: What runs the model; None for the library's choice.
        exact: Whether it has to agree to the bit.
    """

    name: str
    threads: int = 1
    block: bool = False
    compiled: bool = False
    trust: bool = False
    engine: str | None = None
    exact: bool = field(default=True)


SLOW = Way("one by one, one thread, NumPy")
WAYS = (
    Way("two threads", threads=2),
    Way("all queries at once", block=True),
    Way("compiled loops", compiled=True),
    Way("opened on trust", trust=True),
    Way("all of these", threads=2, block=True, compiled=True, trust=True),
    Way("the model run by torch", engine="torch", exact=False),
)


def selected(way: Way, index: Path, folder: Path, queries: int) -> list[list[list[Any]]]:
    """Per recipe and query the ids and scores of what one way selects."""
    asked = read_data_set(folder, queries).queries
    if way.compiled and kernels.load() is None:
        raise SystemExit("numba is not installed: nothing to compare")
    embedder = None if way.engine is None else EmbedderSettings(engine=way.engine)
    found = []
    with Retriever.open(index, embedder=embedder, trust=way.trust, note=print) as retriever:
        for recipe in RECIPES:
            chosen = (
                retriever.select_many(asked, k=8, **recipe)
                if way.block
                else (retriever.select(query, k=8, **recipe) for query in asked)
            )
            found.append([[[one.example.id, one.score] for one in selection] for selection in chosen])
    return found


def compared(slow: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """How many selections are the same to the bit, the share of demonstrations kept, and how far scores are off."""
    pairs = [pair for recipe in zip(slow, other, strict=True) for pair in zip(*recipe, strict=True)]
    kept, total, off = 0, 0, 0.0
    for one, two in pairs:
        scores = dict(two)
        kept += sum(name in scores for name, _ in one)
        total += len(one)
        off = max([off, *(abs(score - scores[name]) for name, score in one if name in scores)])
    return {
        "selections": len(pairs),
        "same": sum(one == two for one, two in pairs),
        "kept": kept / total if total else 1.0,
        "largest_difference": off,
    }


def measure(folder: Path, queries: int) -> dict[str, dict[str, Any]]:
    """Every way beside the slow one, on one data set."""
    with TemporaryDirectory() as made:
        index = Path(made) / "agreement.index"
        Retriever.build(read_data_set(folder, 0).pool, index, note=print).close()
        slow = _run(SLOW, index, folder, queries)
        return {way.name: compared(slow, _run(way, index, folder, queries)) for way in WAYS}


def _run(way: Way, index: Path, folder: Path, queries: int) -> Any:  # noqa: ANN401
    names: Mapping[str, str] = dict.fromkeys(_THREADS, str(way.threads))
    command = [sys.executable, __file__, str(folder), "--queries", str(queries), "--part", way.name, str(index)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **names})
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each way and data set; exits with 1 if one that has to agree does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--queries", type=int, default=200, help="the most of a set; default 200")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    parser.add_argument("--part", nargs=2, metavar=("WAY", "INDEX"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        name, index = options.part
        [way] = [way for way in (SLOW, *WAYS) if way.name == name]
        print(json.dumps(selected(way, Path(index), options.folders[0], options.queries)))
        return
    found: dict[str, dict[str, dict[str, Any]]] = {}
    agreed = True
    for folder in options.folders:
        found[folder.resolve().name] = results = measure(folder, options.queries)
        print(folder.resolve().name)
        for way in WAYS:
            one = results[way.name]
            agreed &= not way.exact or one["same"] == one["selections"]
            print(
                f"    {way.name:<24} {one['same']:>5} of {one['selections']} the same,"
                f" {one['kept']:.4f} of the demonstrations kept, scores off by {one['largest_difference']:.1e}",
                flush=True,
            )
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "sets": found}, indent=2) + "\n", encoding="utf-8")
    if not agreed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
