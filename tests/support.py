"""Helpers that several test files share."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from click.testing import Result
from numpy.typing import NDArray
from typer.testing import CliRunner

import cli
from indexes.late_interaction import TokenVectors
from retriever import Retriever
from retriever.adaptation.linear_map import on_grid
from retriever.adaptation.stored import Adaptation
from retriever.writing import Searched

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WORD_DIM = 8


def embed(texts: list[str]) -> NDArray[np.float32]:
    """A deterministic embedder without a model: hashed character trigrams in 32 dimensions."""
    vectors = np.zeros((len(texts), 32), dtype=np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.lower()} "
        for i in range(len(padded) - 2):
            digest = hashlib.blake2b(padded[i : i + 3].encode("utf-8", "replace"), digest_size=2).digest()
            vectors[row, digest[0] % 32] += 1.0 if digest[1] % 2 else -1.0
    return vectors


def word_vector(word: str) -> NDArray[np.float32]:
    """The vector of a word: a direction of its own, exact in float16."""
    digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
    vector = np.zeros(WORD_DIM, dtype=np.float32)
    vector[digest[0] % WORD_DIM] = 0.6
    vector[(digest[0] + 1 + digest[1] % (WORD_DIM - 1)) % WORD_DIM] = 0.8
    return vector


class Words:
    """An embedder whose tokens are words; counts what it is asked for."""

    name = "callable:words"
    dim = 32
    has_tokens = True
    token_dim = WORD_DIM

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts):
        return embed(texts)

    def token_vectors(self, texts):
        self.asked.extend(texts)
        return TokenVectors.of(
            [np.array([word_vector(w) for w in t.split()]).reshape(-1, WORD_DIM) for t in texts], WORD_DIM
        )

    def token_ids(self, texts):
        return [
            np.array([int.from_bytes(hashlib.blake2b(w.encode(), digest_size=2).digest()) for w in t.split()], np.int64)
            for t in texts
        ]


def fail(line: str) -> None:
    """A note sink for tests in which nothing is to be noted."""
    raise AssertionError(f"unexpected note: {line}")


def build(source: object, path: Path, **options: object) -> Retriever:
    """An index over the deterministic embedder; any note is a failure unless a sink is given."""
    options.setdefault("embedder", embed)
    options.setdefault("note", fail)
    return Retriever.build(source, path, **options)


def adapted_by(index: Retriever, seed: int = 0) -> None:
    """Publishes some map, learned or not."""
    dim = index.snapshot.dim
    matrix = on_grid(np.eye(dim) + 0.5 * np.random.default_rng(seed).standard_normal((dim, dim)))
    with index._live.session() as session:
        index._live.compact(session, searched=Searched(Adaptation.learned(matrix, {"source": "chance"}), None))


def run(*arguments: object, input: str | None = None) -> Result:
    """What a command line prints and how it ends, in this process."""
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], input=input)


def outputs_by_threads(code: str, *threads: int) -> set[str]:
    """What a program prints with so many threads for the libraries of linear algebra; one output where all agree."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(count), "OMP_NUM_THREADS": str(count)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for count in threads
    }


def benchmark(name: str) -> ModuleType:
    """A benchmark as a module. What it sets for its own process, in `sys.path` and the environment, is taken back."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    before, path = dict(os.environ), list(sys.path)
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    sys.path[:] = path
    return module


class Reply(NamedTuple):
    """What a server answers: a status, and a JSON value or the text of one."""

    status: int
    content: object
    kind: str = "application/json"


@contextmanager
def answering(answer: Callable[[str, Mapping[str, str], Any], Reply]) -> Iterator[str]:
    """A server of JSON on this machine; gives its address. `answer` gets path, headers by lower-case name, and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = answer(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            content = reply.content if isinstance(reply.content, str) else json.dumps(reply.content)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(content.encode())))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Closing waits for every reply: what a late one prints when nobody listens any more belongs to this test.
    listener.daemon_threads = False
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/v1"
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
