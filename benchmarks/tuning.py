"""Tuning: is the recipe that the pool itself chooses as good as the best one on the queries, known afterwards?

    python benchmarks/tuning.py DATA... [--queries 500] [--leave-one-out 2000] [--json OUT]

DATA are folders as `benchmarks/quality.py` reads them, with `pool.jsonl`. For each an index is built with the library's
defaults and tuned by leave-one-out on the pool, without the queries. Then every recipe that was tried is measured on
the queries. `default` is the recipe that the index had, `chosen` the one that the search chose, `kept` the one that
the index has afterwards: the chosen one where its gain was sure on the other half of the pool, else the default. The
aim is that what is kept is at most 0.01 below the best. No language model is called.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from quality import DataSet, read_data_set

from retriever import Retriever, tune
from retriever.evaluation.evaluate import judged
from retriever.evaluation.judged import metric
from retriever.evaluation.queries import as_asked
from retriever.evaluation.tune import TuneSettings
from retriever.evaluation.tuned import Tuning
from retriever.example import Json

TOLERANCE = 0.01
COLUMNS = ("data_set", "metric", "default", "chosen", "kept", "best", "kept - best", "gain on the pool", "s")


def measure(data: DataSet, folder: Path, leave_one_out: int) -> dict[str, Json]:
    """Tunes one index and looks at the queries afterwards."""
    with Retriever.build(data.pool, folder / data.name, note=lambda line: None) as index:
        started = time.perf_counter()
        found = tune(index, leave_one_out=leave_one_out, settings=TuneSettings(), dry_run=True)
        took = time.perf_counter() - started
        means = in_hindsight(index, data, found)
    best = max(means, key=lambda name: means[name])
    kept = found.chosen.name if found.gain.sure else "own"
    shown = {name: f"{means[name]:.4f} {name}" for name in ("own", found.chosen.name, kept, best)}
    interval = found.gain.interval
    return {
        "data_set": data.name,
        "metric": found.objective,
        "default": shown["own"],
        "chosen": shown[found.chosen.name],
        "kept": shown[kept],
        "best": shown[best],
        "kept - best": round(means[kept] - means[best], 4),
        "gain on the pool": f"{found.gain.difference:+.4f}"
        + ("" if interval is None else f" ({interval.low:+.4f} to {interval.high:+.4f})"),
        "s": round(took, 1),
    }


def in_hindsight(index: Retriever, data: DataSet, found: Tuning) -> dict[str, float]:
    """The mean of each recipe that was tried on the queries."""
    objective = metric(found.objective)
    asked = [query for query in data.queries if objective.judges(query, {})]
    recipes = [one.recipe.with_options({"guard": "near"}) for one in found.tried]
    values: list[list[float]] = [[] for _ in recipes]
    hidden = (as_asked(query, judged=False) for query in asked)
    for truth, made in zip(asked, index.select_each(hidden, recipes), strict=True):
        for one, selection in zip(values, made, strict=True):
            one.append(objective(judged(index.snapshot, selection, truth, None, {})))
    return {one.name: fmean(of_one) for one, of_one in zip(found.tried, values, strict=True)}


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Json]]:
    """A row for each data set."""
    for folder in arguments.data:
        with TemporaryDirectory() as made:
            yield measure(read_data_set(folder, arguments.queries), Path(made), arguments.leave_one_out)


def main() -> int:
    """Prints the table; 1 when what is kept is further below the best than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--leave-one-out", type=int, default=2000)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    print(" | ".join(COLUMNS))
    done = []
    for row in rows(arguments):
        print(" | ".join(str(row[column]) for column in COLUMNS), flush=True)
        done.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    return int(any(float(str(row["kept - best"])) < -TOLERANCE for row in done))


if __name__ == "__main__":
    raise SystemExit(main())
