"""Where the time of a warm selection goes, module by module.

    scripts/bench warm [--examples 100000] [--dim 384] [--queries 300] [--json OUT]

A selection is timed alone first; then the same queries run under Python's profiler, whose own cost falls on whoever
makes many calls. So shares are of the profiled time, and read as upper bounds for all but the arithmetic.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _synthetic as synthetic
from quality import machine

from retriever import Example, Retriever

_WARM = 100
_SHOWN = 0.01
_ROOT = Path(__file__).resolve().parents[1]
RECIPES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "hybrid and MMR": {"strategy": "mmr"},
    "dense": {"mode": "dense"},
    "lexical": {"mode": "lexical"},
}


def where(file: str, function: str) -> str:
    """To whom the time of a function counts: a module of ours, or what it called outside."""
    path = Path(file)
    if path.is_relative_to(_ROOT) and ".venv" not in path.parts:
        return str(path.relative_to(_ROOT).with_suffix("")).replace("/", ".")
    if "sqlite3" in function:
        return "SQLite"
    return "NumPy" if "numpy" in file or "numpy" in function else "Python's own"


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """The share of the time that was spent in each place itself, most first."""
    spent: defaultdict[str, float] = defaultdict(float)
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[where(file, function)] += own
    total = sum(spent.values())
    return {name: own / total for name, own in sorted(spent.items(), key=lambda item: -item[1])}


def measure(index: Retriever, queries: Sequence[str], vectors: synthetic.Vectors, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Milliseconds of one selection, the median; and the shares."""

    def select(i: int) -> None:
        index.select(queries[i], vector=vectors[i], k=8, **options)

    for i in range(_WARM):
        select(i)
    times = []
    for i in range(_WARM, len(queries)):
        started = time.perf_counter()
        select(i)
        times.append(1e3 * (time.perf_counter() - started))
    profile = cProfile.Profile()
    profile.enable()
    for i in range(_WARM, len(queries)):
        select(i)
    profile.disable()
    return {"ms": median(times), "shares": shares(profile)}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a list for each recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for name, default in (("examples", 100_000), ("dim", 384), ("queries", 300)):
        parser.add_argument(f"--{name}", type=int, default=default, help=str(default))
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    options = parser.parse_args(argv)
    embed, texts = synthetic.Embedder(options.dim), synthetic.texts(options.examples)
    queries = synthetic.texts(_WARM + options.queries, seed=1)
    vectors, found = embed(queries), {}
    with TemporaryDirectory() as folder:
        pool = (Example(f"e{i}", text, output=f"o{i % 77}") for i, text in enumerate(texts))
        with Retriever.build(pool, Path(folder) / "warm.index", embedder=embed, weight=0.5, note=print) as index:
            for name, recipe in RECIPES.items():
                found[name] = measure(index, queries, vectors, recipe)
                print(f"{name}, {options.examples:,} examples: {found[name]['ms']:.2f} ms")
                for place, share in found[name]["shares"].items():
                    if share >= _SHOWN:
                        print(f"    {share:6.1%}  {1e3 * share * found[name]['ms']:7.0f} µs  {place}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.json is not None:
        content = {"machine": machine(), "rows": found}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
