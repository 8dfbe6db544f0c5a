"""What grows with the pool, and how fast: build, open, select, add, memory and disk from 1,000 to 1,000,000 examples.

    scripts/bench scale [--sizes 1000 10000 100000] [--dim 384] [--vectors TYPE] [--recall SHARE] [--folder FOLDER]
                        [--queries 200] [--json OUT] [--plot OUT.svg]

Every size is built and used in a process of its own, whose peak of memory is read at its end. Texts have twelve words
with Zipf frequencies; a text's vector is the sum of its words' vectors, so that near texts are near. Vectors are given
to `select` and cost nothing in `build`: what is measured is the index. The exponent of a column is the slope of a line
through its logarithms: 1 is proportional to the pool, 0 does not depend on it. `recall` is the share of the ten nearest
rows by float32 vectors that a dense selection finds, over 20 queries.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from quality import machine

from retriever import Example, IndexSettings, Retriever
from retriever.embedders.base import unit_rows

_WORDS = 12
_VOCABULARY = 50_000
_CHUNK = 10_000
_ADDS = 20
_RECALLED = 20
_NEAREST = 10
_TIE = 1e-6
"""How far float32 sums of equal vectors may be apart."""
COLUMNS = (
    "build_s",
    "build_mb",
    "disk_mb",
    "open_s",
    "trust_s",
    "hybrid_ms",
    "mmr_ms",
    "lexical_ms",
    "add_ms",
    "use_mb",
    "recall",
)
PANELS = {
    "Seconds": {"build_s": "build", "open_s": "open", "trust_s": "open, trusted"},
    "Milliseconds": {"hybrid_ms": "select, hybrid", "lexical_ms": "select, lexical", "add_ms": "add one"},
    "Megabytes": {"build_mb": "building", "use_mb": "in use", "disk_mb": "on the disk"},
}


class Words:
    """An embedder that adds up the vectors of words; each word's is a random direction that depends on its number."""

    name = "callable:sum-of-words"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._table = np.random.Generator(np.random.PCG64(7)).standard_normal((_VOCABULARY + 1, dim), dtype=np.float32)

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """One row per text, not yet of unit length."""
        words = [text.split() for text in texts]
        numbers = [_number(word) for one in words for word in one]
        starts = np.cumsum([0, *map(len, words[:-1])])
        rows: NDArray[np.float32] = np.add.reduceat(self._table[numbers], starts, axis=0)
        return rows


def _number(word: str) -> int:
    return int(word[1:]) if word[1:].isdecimal() else zlib.crc32(word.encode()) % _VOCABULARY


def examples(count: int, seed: int = 0) -> Iterator[Example]:
    """Synthetic examples; the first n are the same whatever the count."""
    for start in range(0, count, _CHUNK):
        random = np.random.Generator(np.random.PCG64([seed, start]))
        words = np.minimum(random.zipf(1.3, (_CHUNK, _WORDS)), _VOCABULARY)
        for number, row in enumerate(words[: count - start].tolist(), start=start):
            yield Example(f"e{seed}-{number}", " ".join(f"w{word}" for word in row), output=f"o{number % 77}")


def build(size: int, dim: int, path: Path, settings: IndexSettings) -> dict[str, float]:
    """Builds an index of this size."""
    started = time.perf_counter()
    Retriever.build(examples(size), path, embedder=Words(dim), weight=0.5, settings=settings).close()
    took = time.perf_counter() - started
    disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"build_s": took, "build_mb": _peak_mb(), "disk_mb": disk / 1e6}


def use(size: int, dim: int, path: Path, asked: int) -> dict[str, float]:
    """Opens an index, asks it and adds to it."""
    embedder = Words(dim)
    figures: dict[str, float] = {}
    for name, trust in (("trust_s", True), ("open_s", False)):
        started = time.perf_counter()
        Retriever.open(path, embedder=embedder, trust=trust).close()
        figures[name] = time.perf_counter() - started
    queries = list(examples(asked, seed=1))
    vectors = embedder.encode([query.input_text for query in queries])
    with Retriever.open(path, embedder=embedder, trust=True) as retriever:
        for name, options in (
            ("hybrid_ms", {}),
            ("mmr_ms", {"strategy": "mmr"}),
            ("lexical_ms", {"mode": "lexical"}),
        ):
            figures[name] = _median_ms(
                lambda i, options=options: retriever.select(queries[i], vector=vectors[i], k=8, **options), asked
            )
        new = list(examples(_ADDS, seed=2))
        figures["add_ms"] = _median_ms(lambda i: retriever.add(new[i]), _ADDS)
        figures["use_mb"] = _peak_mb()
        figures["recall"] = recall(size, retriever, embedder, queries[:_RECALLED])
    return figures


def recall(size: int, retriever: Retriever, embedder: Words, queries: Sequence[Example]) -> float:
    """The share of the ten nearest by float32 vectors, made again block by block, that a dense selection finds."""
    asked = unit_rows(embedder.encode([query.input_text for query in queries]))
    best = np.full((len(queries), _NEAREST), -np.inf, np.float32)
    ids = np.empty((len(queries), _NEAREST), dtype=object)
    remaining = examples(size)
    while block := list(islice(remaining, _CHUNK)):
        scores = asked @ unit_rows(embedder.encode([example.input_text for example in block])).T
        scores = np.concatenate([best, scores], axis=1)
        names = np.concatenate([ids, np.broadcast_to([e.id for e in block], (len(queries), len(block)))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_NEAREST]
        best, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(names, order, axis=1)
    found = 0
    for place, (query, vector) in enumerate(zip(queries, asked, strict=True)):
        selection = retriever.select(query, vector=vector, k=_NEAREST, mode="dense", guard="off")
        # Copies of a text are equally near: what counts is how near the found ones are.
        scores = unit_rows(embedder.encode([one.example.input_text for one in selection])) @ vector
        found += int((scores >= best[place, min(_NEAREST, size) - 1] - _TIE).sum())
    return found / (len(queries) * min(_NEAREST, size))


def _median_ms(call: Callable[[int], object], count: int) -> float:
    took = []
    for i in range(count):
        started = time.perf_counter()
        call(i)
        took.append(time.perf_counter() - started)
    return 1e3 * median(took)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a least-squares line through the logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def main() -> None:
    """Prints a table, a line for each size, and the exponents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--vectors", default="float32", help="float32, float16 or int8")
    parser.add_argument("--recall", type=float, help="let a FAISS index be chosen that finds this share")
    parser.add_argument("--queries", type=int, default=200, help="how many are timed; default 200")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default a temporary folder")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file that gets the same figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="file that gets the curves, such as plots/scale.svg")
    parser.add_argument("--part", nargs=3, metavar=("build|use", "SIZE", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, size, path = options.part
        if part == "build":
            settings = IndexSettings(vectors=options.vectors, recall=options.recall)
            made = build(int(size), options.dim, Path(path), settings)
        else:
            made = use(int(size), options.dim, Path(path), options.queries)
        print(json.dumps(made))
        return
    about = [f"--dim={options.dim}", f"--vectors={options.vectors}", f"--queries={options.queries}"]
    about += [] if options.recall is None else [f"--recall={options.recall}"]
    rows: list[dict[str, float]] = []
    print(_line(["examples", *COLUMNS]))
    with TemporaryDirectory(dir=options.folder) as folder:
        for size in options.sizes:
            path = Path(folder) / f"{size}.index"
            rows.append({**_part("build", size, path, about), **_part("use", size, path, about)})
            print(_line([f"{size:,}", *(f"{rows[-1][column]:.2f}" for column in COLUMNS)]), flush=True)
    if len(rows) > 1:
        slopes = [exponent(options.sizes, [row[column] for row in rows]) for column in COLUMNS]
        print(_line(["exponent", *(f"{slope:.2f}" for slope in slopes)]))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.plot is not None and len(rows) > 1:
        plot(options.sizes, rows, options.plot)
    if options.json is not None:
        figures = [{"examples": size, **row} for size, row in zip(options.sizes, rows, strict=True)]
        options.json.write_text(json.dumps({"machine": machine(), "rows": figures}, indent=2) + "\n", encoding="utf-8")


def plot(sizes: Sequence[int], rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draws what grows against the number of examples, both on logarithmic scales, each curve with its exponent."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scale"  # so that equal figures give equal files
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.6), layout="constrained")
    for panel, (title, columns) in zip(panels, PANELS.items(), strict=True):
        for column, label in columns.items():
            values = [row[column] for row in rows]
            panel.loglog(sizes, values, marker="o", label=f"{label}, exponent {exponent(sizes, values):.2f}")
        panel.set(title=title, xlabel="examples")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _part(name: str, size: int, path: Path, about: Sequence[str]) -> dict[str, float]:
    """One part in a process of its own."""
    command = [sys.executable, __file__, *about, "--part", name, str(size), str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _line(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:>10}" for cell in cells)


if __name__ == "__main__":
    main()
