"""What `retriever adapt` changes, on data sets whose answers are known: dense and calibrated hybrid, before and after.

    python benchmarks/adaptation.py DATA... [--queries 500] [--k 8] [--kind linear] [--from SOURCE] [--index-dir DIR]
    python benchmarks/adaptation.py DATA... --full [--examples 1500]
    python benchmarks/adaptation.py DATA... --log scores|prompts [--logged 1000]

DATA are folders as `benchmarks/quality.py` reads them, with labels or outputs. The map is learned from the pool alone;
the queries are those of the data set. With `--full` it is the model that learns. With `--log` a log is simulated: some
examples are taken out of the pool and asked as queries, with the 8 demonstrations that the index chooses. Each of them
is right when it has the query's label (`scores`); or the whole prompt is, with the share of the right ones as its
chance (`prompts`). Labels of the pool then only guard. No language model is called.

Metrics as in `benchmarks/quality.py`; best pairs is best overlap with pairs of neighbouring tokens among the tokens;
label overlap is the mean Jaccard index of the labels of a demonstration and the query. The promise is that none marked
* falls by more than 0.005: P@k where each query has one label, else best overlap, and the overlap of several labels as
well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from quality import TOLERANCE, DataSet, machine, read_data_set

from retriever import Retriever
from retriever.adaptation.learner import KINDS
from retriever.adaptation.supervision import SOURCES, output_features
from retriever.adaptation.training import FinetuneSettings
from retriever.evaluation.metrics import mean_overlap, output_tokens, precision
from retriever.example import Example, Json
from retriever.formats import BadRowLog, read_examples
from retriever.ranking.guard import jaccard
from retriever.ranking.seeding import permutation
from retriever.selection import Selection

MODES = ("dense", "hybrid")
SHOWN = 8
COLUMNS = ("data_set", "metric", "dense", "adapted", "hybrid", "adapted", "weight", "kept", "seconds")


def measure(data: DataSet, path: Path, options: argparse.Namespace) -> list[dict[str, Json]]:
    """One row of figures for each metric."""
    k, users, pool = options.k, list[Example](), data.pool
    if options.log:
        users, pool = split(list(read_examples(data.pool, on_bad=BadRowLog())), options.logged)
    with Retriever.build(pool, path, overwrite=True, note=lambda line: None) as index:
        before, weight = answers(index, data.queries, k), index.snapshot.base.weight
        log = list(logged(index, users, options.log)) if options.log else None
        started = time.perf_counter()
        if options.full:
            found = index.fine_tune(FinetuneSettings(examples=options.examples), source=log or options.source)
        else:
            found = index.adapt(kind=options.kind, source=log or options.source)
        took = time.perf_counter() - started
        after = answers(index, data.queries, k) if found.kept else before
        return [
            {
                "data_set": data.name,
                "metric": metric,
                **{f"{mode} before": values(before[mode])[metric] for mode in MODES},
                **{f"{mode} after": values(after[mode])[metric] for mode in MODES},
                "weight before": weight,
                "weight after": index.snapshot.base.weight,
                "seconds": took,
                **found.to_dict(),
            }
            for metric in values(before["dense"])
        ]


def split(pool: Sequence[Example], count: int) -> tuple[list[Example], list[Example]]:
    """Examples whose queries are logged, and those that stay in the pool."""
    taken = set(permutation(len(pool), 0, "", "logged")[:count].tolist())
    return [pool[row] for row in sorted(taken)], [one for row, one in enumerate(pool) if row not in taken]


def logged(index: Retriever, users: Sequence[Example], form: str) -> Iterator[dict[str, Json]]:
    """A line of feedback for each user's query."""
    chance = np.random.default_rng(0)
    texts = [user.input_text for user in users]
    for user, text, chosen in zip(users, texts, index.select_many(texts, k=SHOWN, guard="off"), strict=True):
        right = [float(bool(d.example.labels & user.labels)) for d in chosen]
        if form == "scores":
            yield {"query": text, "scores": dict(zip(chosen.ids, right, strict=True))}
        else:
            yield {"query": text, "demonstrations": list(chosen.ids), "right": bool(chance.random() < fmean(right))}


def answers(index: Retriever, queries: Sequence[Example], k: int) -> Mapping[str, list[Selection]]:
    """The selections in each mode, no query left out of its own."""
    return {mode: list(index.select_many(queries, mode=mode, k=k, guard="off")) for mode in MODES}


def values(chosen: Sequence[Selection]) -> dict[str, float]:
    """The mean of each metric that the queries can be judged by."""
    labelled = [(s.query.labels, [d.example.labels for d in s]) for s in chosen if s.query.labels]
    single = all(len(labels) == 1 for labels, _ in labelled)
    found = {}
    if labelled:
        found["P@k *" if single else "P@k"] = fmean(precision(*pair) for pair in labelled)
    if labelled and not single:
        found["label overlap *"] = fmean(mean_overlap(*pair) for pair in labelled)
    starred = "best overlap" if labelled and single else "best overlap *"
    for name, features in {starred: output_tokens, "best pairs": output_features}.items():
        written = [
            (own, [features(d.example.output_text) for d in s])
            for s in chosen
            if (own := features(s.query.output_text))
        ]
        if written:
            found[name] = fmean(max((jaccard(own, other) for other in others), default=0.0) for own, others in written)
    return found


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="folder of a data set")
    parser.add_argument("--queries", type=int, default=500, help="the most queries of each data set (500)")
    parser.add_argument("--k", type=int, default=8, help="demonstrations (8)")
    parser.add_argument("--from", dest="source", choices=SOURCES, help="what of the pool is learned from")
    parser.add_argument("--kind", choices=KINDS, default="linear", help="form of the map (linear)")
    parser.add_argument("--full", action="store_true", help="fine-tune the model instead of learning a map")
    parser.add_argument("--examples", type=int, default=1500, help="queries of an epoch, with --full (1500)")
    parser.add_argument("--log", choices=("scores", "prompts"), help="learn from a simulated log instead of the pool")
    parser.add_argument("--logged", type=int, default=1000, help="queries of the log (1000)")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the indexes stay; default: none stays")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    options = parser.parse_args()
    print(_line(COLUMNS))
    rows: list[dict[str, Json]] = []
    with TemporaryDirectory() as folder:
        for path in options.data:
            data = read_data_set(path, options.queries)
            found = measure(data, (options.index_dir or Path(folder)) / data.name, options)
            print("\n".join(map(_cells, found)), flush=True)
            rows += found
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    fallen = [row for row in rows if str(row["metric"]).endswith("*") and _worst(row) < -TOLERANCE]
    where = ", ".join(f"{row['data_set']} ({_worst(row):+.4f})" for row in fallen) or "none"
    print(f"adapted below unadapted by more than {TOLERANCE} in a metric marked *: {where}")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _worst(row: Mapping[str, Json]) -> float:
    return min(float(row[f"{mode} after"]) - float(row[f"{mode} before"]) for mode in MODES)


def _cells(row: Mapping[str, Json]) -> str:
    figures = [f"{row[f'{mode} {when}']:.4f}" for mode in MODES for when in ("before", "after")]
    weights = f"{row['weight before']} → {row['weight after']}"
    kept = f"{row['share']}" if row["kept"] else "no"
    return _line([str(row["data_set"]), str(row["metric"]), *figures, weights, kept, f"{row['seconds']:.0f}"])


def _line(cells: Sequence[str]) -> str:
    widths = (14, 16, 8, 8, 8, 8, 10, 5, 7)
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


if __name__ == "__main__":
    main()
