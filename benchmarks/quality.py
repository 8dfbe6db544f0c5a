"""Quality of selection: BM25, dense, RRF and the calibrated hybrid side by side, on data sets with known answers.

    python benchmarks/quality.py DATA... [--queries 500] [--k 8] [--guard off] [--json OUT]

Each DATA is a folder with one of

    pool.jsonl, queries.jsonl                   rows with id, input, output and, where there are classes, label
    corpus.jsonl, queries.jsonl, qrels.tsv      rows with id, title, text and id, text; query id, document id, grade

For each an index is built with the library's defaults, and the first queries are answered with four recipes. No
language model is called. A selection is judged by what the data set knows:

    P@k, hit@k          labels: share of the demonstrations with a label of the query; whether there is any
    best overlap@k      outputs: Jaccard index of the tokens of the query's output and of the closest one
    union overlap@k     outputs: share of those tokens that stand in some demonstration's output
    nDCG@10             relevance judgements

The metric marked * is the data set's own: nDCG with judgements, P@k with single labels, best overlap otherwise. The
promise is that on it the calibrated hybrid is at most 0.005 below the better single channel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from retriever import Retriever
from retriever.embedders import EmbedderSource
from retriever.evaluation.metrics import best_overlap, hit, ndcg, output_tokens, precision, union_overlap
from retriever.evaluation.queries import Qrels, read_qrels
from retriever.example import Example, Json
from retriever.formats import BadRowLog, Source, read_queries
from retriever.ranking.guard import LEVELS
from retriever.ranking.recipe import Options, Recipe
from retriever.selection import Selection

RECIPES: Mapping[str, Options] = {
    "BM25": {"mode": "lexical"},
    "dense": {"mode": "dense"},
    "RRF": {"fusion": "rrf", "weight": 0.5},
    "hybrid": {},
}
CHANNELS = ("BM25", "dense")
TOLERANCE = 0.005
RETRIEVAL_K = 10
PACKAGES = ("demonstration-retriever", "numpy", "sentence-transformers", "torch", "transformers")


@dataclass(frozen=True)
class DataSet:
    """A pool and queries whose answers are known.

    Attributes:
        name: The folder's name.
        pool: The examples, as `Retriever.build` takes them.
        queries: The queries that are asked.
        grades: The relevance judgements; None when labels and outputs are what is known.
    """

    name: str
    pool: Source
    queries: Sequence[Example]
    grades: Qrels | None = None


@dataclass(frozen=True)
class Metric:
    """A metric, and which queries it can be asked of.

    Attributes:
        name: As it is printed.
        judges: Whether the query has what the metric compares with.
        value: Of one selection.
    """

    name: str
    judges: Callable[[Example], bool]
    value: Callable[[Selection], float]


@dataclass(frozen=True)
class Row:
    """A metric of the four recipes.

    Attributes:
        metric: Its name.
        queries: How many queries it was asked of.
        means: Its mean by recipe.
    """

    metric: str
    queries: int
    means: Mapping[str, float]

    @property
    def difference(self) -> float:
        """How far the hybrid is above the better single channel."""
        return round(self.means["hybrid"] - max(self.means[channel] for channel in CHANNELS), 9)


@dataclass(frozen=True)
class Result:
    """What was found on a data set.

    Attributes:
        name: The data set.
        pool: How many examples.
        embedder: The name of the embedder.
        weight: The fusion weight, calibrated unless the pool has nothing to calibrate on.
        objective: What it was calibrated on: `labels`, `outputs`, or `none`.
        rows: The metrics, the data set's own first.
        notes: What the library had to say.
    """

    name: str
    pool: int
    embedder: str
    weight: float
    objective: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def primary(self) -> Row:
        """The data set's own metric."""
        return self.rows[0]

    @property
    def kept(self) -> bool:
        """Whether the hybrid is no more than the tolerance below the better single channel."""
        return self.primary.difference >= -TOLERANCE

    def to_dict(self) -> dict[str, Json]:
        """For JSON output."""
        return {
            "data_set": self.name,
            "pool": self.pool,
            "embedder": self.embedder,
            "weight": self.weight,
            "objective": self.objective,
            "primary": self.primary.metric,
            "kept": self.kept,
            "metrics": [
                {"metric": row.metric, "queries": row.queries, **row.means, "difference": row.difference}
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


def read_data_set(folder: Path, limit: int) -> DataSet:
    """The pool of a folder and the first of its queries; of a retrieval set, the first that have a relevant document.

    Args:
        folder: With the files that the module describes.
        limit: The most queries.

    Raises:
        BadRows: A query cannot be used.
        InvalidInput: A file is missing or cannot be read.
    """
    name = folder.resolve().name
    if not (folder / "qrels.tsv").exists():
        bad = BadRowLog()
        queries = list(islice(read_queries(folder / "queries.jsonl", on_bad=bad), limit))
        bad.raise_if_any()
        return DataSet(name, folder / "pool.jsonl", queries)
    grades = read_qrels(folder / "qrels.tsv")
    asked = (row for row in _json_rows(folder / "queries.jsonl") if any(grades.get(row["id"], {}).values()))
    # Queries and documents may be numbered alike, and the guard takes equal ids for the same example.
    judged = {f"query {row['id']}": row for row in islice(asked, limit)}
    return DataSet(
        name,
        [_document(row) for row in _json_rows(folder / "corpus.jsonl")],
        [Example(id, row["text"]) for id, row in judged.items()],
        {id: grades[row["id"]] for id, row in judged.items()},
    )


def _json_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _document(row: Mapping[str, str]) -> dict[str, Json]:
    """A document as an example without an output; its title, when it has one, comes before its text."""
    return {"id": row["id"], "input": f"{row.get('title') or ''} {row['text']}".strip()}


def metrics(data: DataSet, k: int) -> list[Metric]:
    """The metrics that the data set's queries can be judged by, its own first; none when nothing is known of them.

    Args:
        data: The data set.
        k: How many demonstrations there are.
    """
    if data.grades is not None:
        grades = data.grades
        return [Metric(f"nDCG@{k}", lambda query: True, lambda chosen: ndcg(chosen.ids, grades[chosen.query.id], k))]
    by_label = [
        Metric(f"P@{k}", _has_labels, lambda chosen: precision(chosen.query.labels, _labels(chosen))),
        Metric(f"hit@{k}", _has_labels, lambda chosen: hit(chosen.query.labels, _labels(chosen))),
    ]
    by_output = [
        Metric(f"best overlap@{k}", _has_output, lambda chosen: best_overlap(*_outputs(chosen))),
        Metric(f"union overlap@{k}", _has_output, lambda chosen: union_overlap(*_outputs(chosen))),
    ]
    single = all(len(query.labels) == 1 for query in data.queries)
    ordered = [*by_label, *by_output] if single else [*by_output, *by_label]
    return [metric for metric in ordered if any(map(metric.judges, data.queries))]


def _has_labels(query: Example) -> bool:
    return bool(query.labels)


def _has_output(query: Example) -> bool:
    return bool(output_tokens(query.output_text))


def _labels(chosen: Selection) -> list[frozenset[str]]:
    return [demonstration.example.labels for demonstration in chosen]


def _outputs(chosen: Selection) -> tuple[frozenset[str], list[frozenset[str]]]:
    tokens = [output_tokens(demonstration.example.output_text) for demonstration in chosen]
    return output_tokens(chosen.query.output_text), tokens


def measure(data: DataSet, index: Path, *, k: int, guard: str, embedder: EmbedderSource) -> Result:
    """Builds the index of a data set and judges the four recipes on its queries.

    Args:
        data: The data set.
        index: Where the index goes; one that is there is replaced.
        k: How many demonstrations; a retrieval set takes 10.
        guard: The level of the leak guard.
        embedder: As `Retriever.build` takes it.

    Raises:
        ValueError: Nothing is known of the queries that they could be judged by.
    """
    k = k if data.grades is None else RETRIEVAL_K
    judged = metrics(data, k)
    if not judged:
        raise ValueError(f"{data.name}: no query has a label, an output or a relevance judgement")
    notes: list[str] = []
    output = "output" if data.grades is None else None
    with Retriever.build(
        data.pool, index, output=output, embedder=embedder, overwrite=True, note=notes.append
    ) as built:
        common = Recipe().with_options({"k": k, "guard": guard})
        answers = {
            name: list(built.select_many(data.queries, recipe=common, **options)) for name, options in RECIPES.items()
        }
        about: dict[str, Any] = built.info()
    fusion = about["fusion"]
    rows = [_row(metric, answers) for metric in judged]
    return Result(
        data.name,
        about["examples"],
        about["embedder"]["name"],
        fusion["weight"],
        fusion["objective"],
        rows,
        tuple(notes),
    )


def _row(metric: Metric, answers: Mapping[str, Sequence[Selection]]) -> Row:
    values = {
        name: [metric.value(chosen) for chosen in selections if metric.judges(chosen.query)]
        for name, selections in answers.items()
    }
    return Row(metric.name, len(values["hybrid"]), {name: fmean(numbers) for name, numbers in values.items()})


class Table:
    """The lines of the table, its columns wide enough for what is known beforehand.

    Args:
        names: The names of the data sets.
        embedders: The names of the embedders as they were asked for.
    """

    def __init__(self, names: Sequence[str], *embedders: str) -> None:
        self._formats = (
            f"<{max(map(len, ['data set', *names]))}",
            ">6",
            f"<{max(len('static:all-MiniLM-L6-v2'), *map(len, embedders))}",
            ">6",
            "<7",
            "<17",
            ">7",
            *[">7"] * len(RECIPES),
            ">10",
        )

    def header(self) -> str:
        """The names of the columns."""
        return self._line(
            ["data set", "pool", "embedder", "weight", "from", "metric", "queries", *RECIPES, "difference"]
        )

    def lines(self, result: Result) -> list[str]:
        """One line per metric; what they share is in the first alone."""
        shared = [result.name, str(result.pool), result.embedder, f"{result.weight:.1f}", result.objective]
        lines = []
        for row in result.rows:
            first = row is result.primary
            about = [*(shared if first else [""] * len(shared)), f"{row.metric} *" if first else row.metric]
            means = [f"{row.means[name]:.4f}" for name in RECIPES]
            lines.append(self._line([*about, str(row.queries), *means, f"{row.difference:+.4f}"]))
        return lines

    def cost(self, result: Result, other: Result) -> str:
        """How far each recipe's own metric lies above that of the same data with another embedder."""
        (mine, theirs), blank = (result.primary, other.primary), [""] * 2
        means = [f"{mine.means[name] - theirs.means[name]:+.4f}" for name in RECIPES]
        return self._line([*blank, "less the other", *blank, mine.metric, str(mine.queries), *means, ""])

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(f"{cell:{wide}}" for cell, wide in zip(cells, self._formats, strict=True))


def verdict(results: Sequence[Result]) -> str:
    """The line that says where the hybrid is below the better single channel by more than the tolerance."""
    below = [f"{result.name} ({result.primary.difference:+.4f})" for result in results if not result.kept]
    where = ", ".join(below) if below else f"none of {len(results)} data sets"
    return f"hybrid below the better single channel by more than {TOLERANCE}, in the metric marked *: {where}"


def machine() -> dict[str, Json]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in PACKAGES},
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="folder of a data set")
    parser.add_argument("--queries", type=_positive, default=500, help="the most queries of each data set")
    parser.add_argument("--k", type=_positive, default=8, help=f"demonstrations; retrieval sets take {RETRIEVAL_K}")
    parser.add_argument("--guard", choices=LEVELS, default="off", help="level of the leak guard")
    parser.add_argument("--embedder", default="auto", help="auto, static:auto, latent, or the name of a model")
    parser.add_argument("--against", metavar="EMBEDDER", help="another one: what the first costs in quality is shown")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the indexes stay; default: none stays")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def run(options: argparse.Namespace, indexes: Path) -> list[Result]:
    """Measures every data set, printing each as it is done."""
    embedders = [options.embedder, *([options.against] if options.against else [])]
    table = Table([folder.resolve().name for folder in options.data], *embedders)
    print(f"k = {options.k} (retrieval sets {RETRIEVAL_K}), first {options.queries} queries, guard {options.guard};")
    print("difference = hybrid − better single channel, * = the data set's own metric\n")
    print(table.header())
    results = []
    for folder in options.data:
        data = read_data_set(folder, options.queries)
        index = indexes / f"{data.name}.index"
        found = [measure(data, index, k=options.k, guard=options.guard, embedder=name) for name in reversed(embedders)]
        for result in reversed(found):
            print("\n".join(table.lines(result)), flush=True)
        if options.against:
            print(table.cost(found[-1], found[0]), flush=True)
        results.append(found[-1])
    print()
    for result in results:
        for note in result.notes:
            print(f"{result.name}: {note}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(argv)
    start = time.perf_counter()
    with TemporaryDirectory() as temporary:
        results = run(options, options.index_dir or Path(temporary))
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"took {time.perf_counter() - start:.0f} s")
    print(verdict(results))
    if options.json is not None:
        settings: dict[str, Json] = {"k": options.k, "queries": options.queries, "guard": options.guard}
        content = {"settings": settings, "machine": about, "results": [result.to_dict() for result in results]}
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
