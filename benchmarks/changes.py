"""What a change costs: examples added one at a time to a large pool, each durable and found, then set beside a rebuild.

    python benchmarks/changes.py [--examples 100000] [--adds 1000] [--folder FOLDER]

Every addition is timed from the call to the return of `Retriever.add`, with its vector given, and so is the first
selection after it, which must find it. After the last one the changes are folded (`compact`) and every file of the
generation is compared, byte for byte, with that of an index built from the same examples at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from quality import machine

import retriever.live
from retriever import Example, Retriever

_DIM = 384
_WORDS = 12
_VOCABULARY = 50_000


def main() -> int:
    """Runs the benchmark and prints its figures as JSON; 1 when an addition was not found or a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--adds", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default a temporary folder")
    options = parser.parse_args()
    # One generation for all additions, so that the last compaction folds every one of them.
    retriever.live.COMPACT_AFTER = max(retriever.live.COMPACT_AFTER, options.adds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.examples, options.adds)
    print(json.dumps({"machine": machine(), **figures}, indent=2))
    return 0 if figures["not_found"] == 0 and not figures["files_that_differ"] else 1


def measure(folder: Path, count: int, adds: int) -> dict[str, object]:
    """The figures, in milliseconds."""
    pool, new = list(examples(0, count)), list(examples(count, count + adds))
    started = time.perf_counter()
    add_times, select_times, missing = [], [], 0
    with Retriever.build(pool, folder / "grown", embedder=vectors, weight=0.5) as index:
        built = time.perf_counter() - started
        for example in new:
            started = time.perf_counter()
            index.add(example)
            added = time.perf_counter()
            found = index.select(example.input_text, vector=vectors([example.input_text])[0], k=8, guard="off")
            select_times.append(time.perf_counter() - added)
            add_times.append(added - started)
            missing += example.id not in found.ids
        started = time.perf_counter()
        generation = index.compact()
        compacted = time.perf_counter() - started
    Retriever.build([*pool, *new], folder / "rebuilt", embedder=vectors, weight=0.5).close()
    return {
        "examples": count,
        "adds": adds,
        "build_s": round(built, 2),
        "add_ms": quantiles(add_times),
        "select_after_ms": quantiles(select_times),
        "not_found": missing,
        "compact_s": round(compacted, 2),
        **compared(folder / "grown" / generation, folder / "rebuilt" / "gen-000001"),
    }


def compared(first: Path, second: Path) -> dict[str, object]:
    """Which files of two generations are the same; the manifests differ in the revision alone."""
    names = sorted(path.name for path in first.iterdir())
    same = [name for name in names if (first / name).read_bytes() == (second / name).read_bytes()]
    about = [json.loads((folder / "manifest.json").read_bytes()) for folder in (first, second)]
    for manifest in about:
        del manifest["sha256"], manifest["pool"]["revision"], manifest["pool"]["chain"]
    differ = [name for name in names if name not in same and name != "manifest.json"]
    return {
        "files_that_are_the_same": same,
        "files_that_differ": differ + (["manifest.json"] if about[0] != about[1] else []),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "median": round(1e3 * statistics.median(ordered), 2),
        "p95": round(1e3 * ordered[int(0.95 * (len(ordered) - 1))], 2),
        "max": round(1e3 * ordered[-1], 2),
    }


def examples(start: int, end: int) -> Iterator[Example]:
    """Synthetic examples of twelve words with Zipf frequencies; each depends on its number alone."""
    for number in range(start, end):
        random = np.random.Generator(np.random.PCG64(number))
        words = np.minimum(random.zipf(1.3, _WORDS), _VOCABULARY)
        yield Example(f"e{number}", " ".join(f"w{word}" for word in words), output=f"o{number % 77}")


def vectors(texts: list[str]) -> NDArray[np.float32]:
    """A random direction for each text, the same for the same text."""
    rows = [np.random.Generator(np.random.PCG64(zlib.crc32(text.encode()))).standard_normal(_DIM) for text in texts]
    return np.array(rows, dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
