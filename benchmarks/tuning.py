"""Tuning: is the recipe that `retriever tune` leaves behind as good as the best one on the queries, known afterwards?

    python benchmarks/tuning.py DATA... [--queries 500] [--leave-one-out 2000] [--index-dir DIR] [--json OUT]

DATA are folders as `benchmarks/quality.py` reads them, with `pool.jsonl`. For each an index is built with the library's
defaults, and the command `retriever tune INDEX` is run on it, which sees the pool alone. Then every recipe that it
tries is measured on the queries. `default` is the recipe that the index had, `kept` the one that it has afterwards,
`best` the best of all on these queries. The aim is that what is kept is at most 0.01 below the best. How far the best
is above the default can itself be chance: its standard error stands beside it. No language model is called.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from quality import DataSet, machine, read_data_set

from retriever import Retriever
from retriever.evaluation.evaluate import judged
from retriever.evaluation.judged import metric
from retriever.evaluation.queries import as_asked
from retriever.evaluation.search_space import Candidate, candidates
from retriever.example import Json

TOLERANCE = 0.01
COLUMNS = ("data_set", "metric", "default", "kept", "best", "kept - best", "best - default", "gain on the pool", "s")


def measure(data: DataSet, path: Path, leave_one_out: int) -> dict[str, Json]:
    """Tunes one index and looks at the queries afterwards."""
    with Retriever.build(data.pool, path, overwrite=True, note=lambda line: None) as index:
        tried, _ = candidates(index.recipe, {None: index.snapshot.base.weight})
    started = time.perf_counter()
    told = tuned(path, leave_one_out)
    took = time.perf_counter() - started
    with Retriever.open(path) as index:
        kept = next(one.name for one in tried if one.recipe == index.recipe)
        values = in_hindsight(index, data, tried, told["objective"])
    means = {name: fmean(of_one) for name, of_one in values.items()}
    best = max(means, key=lambda name: means[name])
    apart = [a - b for a, b in zip(values[best], values["own"], strict=True)]
    gain = told["gain"]
    return {
        "data_set": data.name,
        "metric": told["objective"],
        "default": f"{means['own']:.4f}",
        "kept": f"{means[kept]:.4f} {kept}",
        "best": f"{means[best]:.4f} {best}",
        "kept - best": round(means[kept] - means[best], 4),
        "best - default": f"{fmean(apart):+.4f} ± {stdev(apart) / math.sqrt(len(apart)):.4f}",
        "gain on the pool": f"{gain['difference']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})",
        "s": round(took, 1),
    }


def tuned(path: Path, leave_one_out: int) -> Mapping[str, object]:
    """What the command says; the index has the recipe that it found afterwards."""
    command = ("-m", "cli", "tune", str(path), "--leave-one-out", str(leave_one_out), "--json")
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True)
    found: Mapping[str, object] = json.loads(done.stdout)
    return found


def in_hindsight(index: Retriever, data: DataSet, tried: Sequence[Candidate], objective: str) -> dict[str, list[float]]:
    """What each recipe is worth on each of the queries."""
    judge = metric(objective)
    asked = [query for query in data.queries if judge.judges(query, {})]
    recipes = [one.recipe.with_options({"guard": "near"}) for one in tried]
    values: list[list[float]] = [[] for _ in recipes]
    hidden = (as_asked(query, judged=False) for query in asked)
    for truth, made in zip(asked, index.select_each(hidden, recipes), strict=True):
        for one, selection in zip(values, made, strict=True):
            one.append(judge(judged(index.snapshot, selection, truth, None, {})))
    return {one.name: of_one for one, of_one in zip(tried, values, strict=True)}


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """A row for each data set."""
    for folder in arguments.data:
        with TemporaryDirectory() as made:
            data = read_data_set(folder, arguments.queries)
            yield measure(data, (arguments.index_dir or Path(made)) / data.name, arguments.leave_one_out)


def main() -> int:
    """Prints the table; 1 when what is kept is further below the best than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--leave-one-out", type=int, default=2000)
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the indexes stay; default: none stays")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    print(" | ".join(COLUMNS))
    done = []
    for row in rows(arguments):
        print(" | ".join(str(row[column]) for column in COLUMNS), flush=True)
        done.append(row)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": done}, indent=2) + "\n", encoding="utf-8")
    return int(any(float(str(row["kept - best"])) < -TOLERANCE for row in done))


if __name__ == "__main__":
    raise SystemExit(main())
