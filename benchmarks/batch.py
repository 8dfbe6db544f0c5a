"""How near an export of many queries comes to its arithmetic: their embedding, and one matrix product.

    scripts/bench batch [--queries 10000] [--examples 100000] [--dim 384] [--repeats 1] [--mode hybrid] [--json OUT]

The limit embeds the same queries by the same model in blocks, multiplies each block with the pool, and throws the
result away. The export does that, ranks by both channels, and writes a record for each query. Queries and pool are
sentences of the same few words, 221,184 in all, so that each query has terms in most of the pool: for the lexical
channel a hard case. The pool's vectors are made up: only the queries' cost anything to embed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import _synthetic as synthetic
from _synthetic import OURS, Calls, Row, Vectors, alternate
from quality import machine

from retriever import Example, Recipe, Retriever
from retriever.embedders import Embedder, encode_checked, load_embedder
from retriever.export import ExportSettings, export

LIMIT = "embedding and product"
_BLOCK = 256
_AIM = 1 / 0.8


class PoolOrModel:
    """An embedder for which a pool costs nothing: a model's vectors for the queries, made-up ones for all else.

    Args:
        dim: Components of a vector.
        queries: The queries.
    """

    name = "callable:pool-or-model"

    def __init__(self, dim: int, queries: Sequence[str]) -> None:
        self.dim = dim
        self._pool, self.model = synthetic.Embedder(dim), load_embedder("auto", note=print)
        self._queries = frozenset(queries)
        if self.model.dim != dim:
            raise SystemExit(f"--dim {dim}: the default model has {self.model.dim}")

    def encode(self, texts: list[str]) -> Vectors:
        """One row per text, float32, shape (texts, dim)."""
        return self.model.encode(texts) if texts[0] in self._queries else self._pool(texts)


def limit(model: Embedder, vectors: Vectors, queries: Sequence[str]) -> None:
    """What no export can do without."""
    for start in range(0, len(queries), _BLOCK):
        np.matmul(encode_checked(model, queries[start : start + _BLOCK]), vectors.T)


def measure(queries: int, examples: int, dim: int, repeats: int, mode: str, folder: Path) -> Row:
    """The export beside its limit."""
    sentences = synthetic.sentences(queries + examples)
    asked, texts = sentences[:queries], sentences[queries:]
    embedder = PoolOrModel(dim, asked)
    vectors = embedder.encode(texts)
    pool = (Example(f"e{i}", text, output=f"o{i % 77}") for i, text in enumerate(texts))
    Retriever.build(pool, folder / "batch.index", embedder=embedder, weight=0.5, note=print).close()
    settings = ExportSettings(recipe=Recipe.of({"retrieve": {"mode": mode}}))
    with Retriever.open(folder / "batch.index", embedder=embedder, trust=True) as index:

        def ours(n: int) -> None:
            records = (Example(f"q{i}", text) for i, text in enumerate(asked))
            export(index, records, folder / f"{n}.jsonl", settings)

        calls: Calls = {OURS: ours, LIMIT: lambda n: limit(embedder.model, vectors, asked)}
        times = alternate(calls, range(repeats), warm=False)
    return Row(f"{mode} export of {queries:,} against {examples:,} × {dim}", times, {LIMIT: _AIM})


def main(argv: Sequence[str] | None = None) -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    for name, default in (("queries", 10_000), ("examples", 100_000), ("dim", 384), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=str(default))
    parser.add_argument("--mode", default="hybrid", help="hybrid, dense or lexical")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    options = vars(parser.parse_args(argv))
    out = options.pop("json")
    print(synthetic.LINE.format("work, milliseconds", "median", "min", "max", "ratio", "aim", "verdict"))
    with TemporaryDirectory() as folder:
        row = measure(**options, folder=Path(folder))
    print(*synthetic.printed(row), sep="\n")
    print(f"    of the limit: {median(row.times[LIMIT]) / median(row.times[OURS]):.2f}, aim 0.80")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if out is not None:
        content = {"machine": machine(), "settings": options, "rows": [asdict(row)]}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
