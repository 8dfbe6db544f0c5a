"""On how many threads a model runs: the results are the same to the bit, so all of this is about time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.embedders import EmbedderSettings, load_embedder, onnx_sessions
from retriever.embedders.onnx_engine import MODEL, STATES, OnnxEmbedder
from retriever.embedders.onnx_sessions import Sessions, open_session
from tests.support import fail

ROOT = Path(__file__).parent.parent
WORDS = ["my", "card", "has", "not", "arrived", "where", "is", "the", "transfer", "i", "a", "refund", "xylophone"]
MANY = [" ".join(WORDS[(i * j) % 13] for j in range(1, 1 + i % 60)) or "a" for i in range(1, 200)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    folder = tiny_models.transformer_folder(tmp_path_factory.mktemp("model"))
    load(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


@pytest.fixture(scope="module")
def by_threads(loaded):
    return {threads: open_session(loaded._sessions._path, threads) for threads in (2, 3, 4)}


@pytest.fixture
def opened(monkeypatch):
    """The threads of each session that is opened; two cores, and the second session after two batches alone."""
    seen: list[int] = []

    def noting(path, threads):
        seen.append(threads)
        return open_session(path, threads)

    monkeypatch.setattr(onnx_sessions, "open_session", noting)
    monkeypatch.setattr(onnx_sessions, "cores", lambda: 2)
    monkeypatch.setattr(onnx_sessions, "_OFTEN", 2)
    return seen


def load(folder) -> OnnxEmbedder:
    embedder = load_embedder(EmbedderSettings(str(folder)), note=fail)
    assert isinstance(embedder, OnnxEmbedder)
    return embedder


def on_two_threads(embedder: OnnxEmbedder) -> OnnxEmbedder:
    """The same, once its second session is open and taken for the faster one."""
    embedder.encode(["a"])
    embedder.encode(["a"])
    assert embedder._sessions._second is not None
    embedder._sessions._second.result()
    embedder._sessions._faster = lambda: 1  # type: ignore[method-assign]
    return embedder


def test_one_query_opens_one_session(folder, opened):
    load(folder).encode(["my card"])
    assert opened == [1]


def test_who_keeps_asking_for_one_gets_a_session_of_two_threads_and_the_same_bytes(folder, opened):
    embedder = load(folder)
    together = embedder.encode(MANY)
    on_two_threads(embedder)
    assert opened == [1, 2]
    assert b"".join(embedder.encode([text]).tobytes() for text in MANY) == together.tobytes()
    assert opened == [1, 2]


@pytest.mark.parametrize("threads", [2, 3, 4])
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 40), min_size=1, max_size=60), copies=st.integers(1, 9))
def test_the_states_of_any_tokens_are_the_same_by_any_number_of_threads(loaded, by_threads, threads, ids, copies):
    expected = loaded._sessions.run(loaded._given(np.array([ids])))
    [states] = by_threads[threads].run([STATES], loaded._given(np.array([ids] * copies)))
    assert states.tobytes() == expected.tobytes() * copies


def test_the_real_model_gives_the_same_bytes_on_two_threads(opened):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        embedder = load_embedder("auto", note=fail)
    assert isinstance(embedder, OnnxEmbedder)
    texts = [*MANY[:40], "word " * 300, "?", "Größe, 日本語のテキスト, \U0001f600"]
    together = embedder.encode(texts)
    on_two_threads(embedder)
    assert b"".join(embedder.encode([text]).tobytes() for text in texts) == together.tobytes()


def test_many_batches_are_not_what_the_second_session_is_for(folder, opened):
    embedder = load(folder)
    for _ in range(5):
        embedder.encode(["a", "my card has not arrived"])
    assert opened == [1]


def test_with_one_core_there_is_one_session(folder, opened, monkeypatch):
    monkeypatch.setattr(onnx_sessions, "cores", lambda: 1)
    embedder = load(folder)
    for _ in range(5):
        embedder.encode(["a"])
    assert opened == [1]


def test_a_model_that_is_damaged_by_then_is_not_opened_again(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    embedder = load(tiny_models.transformer_folder(tmp_path / "model"))
    expected = embedder.encode(["my card"]).tobytes()
    [made] = (tmp_path / "cache" / "demonstration-retriever").iterdir()
    content = bytearray((made / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (made / MODEL).write_bytes(content)
    embedder.encode(["a"])
    assert embedder._sessions._second is not None
    assert "is damaged" in str(embedder._sessions._second.exception())
    assert embedder.encode(["my card"]).tobytes() == expected
    assert opened[-1] == 1


def test_who_comes_while_another_batch_is_alone_does_not_wait_for_it(folder, opened):
    embedder = on_two_threads(load(folder))
    expected = embedder.encode(["my card"]).tobytes()
    seen: list[bytes] = []
    with embedder._sessions._alone:
        thread = threading.Thread(target=lambda: seen.append(embedder.encode(["my card"]).tobytes()), daemon=True)
        thread.start()
        thread.join(60)
    assert seen == [expected]


FORKING = """
import os, sys
from retriever.embedders import EmbedderSettings, load_embedder, onnx_sessions

onnx_sessions._OFTEN, onnx_sessions.cores = 2, lambda: 2
embedder = load_embedder(EmbedderSettings(sys.argv[1]), note=print)
expected = embedder.encode(["my card"]).tobytes()
embedder.encode(["my card"])
embedder._sessions._second.result()
child = os.fork()
same = all(embedder.encode(["my card"]).tobytes() == expected for _ in range(5))
opened = embedder._sessions._second.result() is not None
ended = not child or os.waitpid(child, 0)[1] == 0
sys.exit(0 if same and opened and ended else 1)
"""


def test_a_child_has_sessions_of_its_own_and_ends(folder):
    # Without the care that is taken the child waits for ever for threads that only its parent has.
    done = subprocess.run([sys.executable, "-c", FORKING, str(folder)], timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 0


class Timed:
    """Stands for a session: a run takes so many seconds by a clock that only runs move."""

    now = 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs = 0

    def run(self, outputs, given):
        self.runs += 1
        Timed.now += self.seconds
        return [np.zeros((1, 1, 1), dtype=np.float32)]


def test_the_session_that_was_faster_of_late_is_used_and_the_other_tried_now_and_then(folder, opened, monkeypatch):
    one, two, may_open = Timed(4.0), Timed(2.0), threading.Event()

    def opening(path, threads):
        assert threads == 1 or may_open.wait(60)
        return one if threads == 1 else two

    monkeypatch.setattr(onnx_sessions, "open_session", opening)
    monkeypatch.setattr(onnx_sessions, "time", SimpleNamespace(perf_counter=lambda: Timed.now))
    sessions, ids = Sessions(folder, "states", lambda: None), {"input_ids": np.zeros((1, 8), dtype=np.int64)}

    def ask(times: int) -> tuple[int, int]:
        before = one.runs, two.runs
        for _ in range(times):
            sessions.run_alone(ids)
        return one.runs - before[0], two.runs - before[1]

    assert ask(2) == (2, 0)
    may_open.set()
    assert sessions._second is not None
    sessions._second.result()
    assert ask(29) == (0, 29)
    assert ask(32) == (1, 31)  # the 32nd call goes to the slower one
    two.seconds = 20.0  # another program has come: each run counts as 1.5 times the mean; 2.5, 3.1, 3.9, 4.9 > 4
    assert ask(32) == (28, 4)
    two.seconds = 1.0  # it has gone: the 96th call finds (4.9 + 1) / 2 < 4
    assert ask(32) == (0, 32)
