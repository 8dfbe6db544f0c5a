"""Many threads and many processes at one index: whole states for readers, one writer at a time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retriever import Retriever, Selection
from retriever.errors import IndexLocked
from tests.support import build, embed, fail

ROOT = Path(__file__).parent.parent
WORDS = ("card", "refund", "login", "fee", "lost", "late", "again", "mail")
QUERIES = ("card fee", "lost mail again", "refund late")


def row(number: int) -> dict[str, str]:
    """The same for the same number, and unlike every other."""
    words = (WORDS[number % 8], WORDS[number // 3 % 8], WORDS[number // 5 % 8], f"n{number}")
    return {"id": f"r{number}", "input": " ".join(words), "output": f"o{number}"}


ROWS = [row(number) for number in range(12)]


@pytest.fixture
def index(tmp_path):
    with build(ROWS, tmp_path / "pool.index", weight=0.6) as retriever:
        yield retriever


def answer(retriever: Retriever, query: str) -> tuple[object, ...]:
    """What a selection says: the examples with their scores, and of how many they were chosen."""
    return told(retriever.select(query, k=6))


def told(selection: Selection) -> tuple[object, ...]:
    examples = ((one.example.id, one.example.input, one.example.output, one.score) for one in selection)
    return selection.eligible, *examples


def answers(retriever: Retriever) -> list[tuple[object, ...]]:
    return [answer(retriever, query) for query in QUERIES]


def in_threads(*works: Callable[[], object]) -> None:
    """Runs them all at once; what one raises fails the test."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def program(source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a process of its own, which is killed at the end if it has not ended."""
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


class TestThreads:
    """The states that an index goes through are worked out beforehand, in one thread."""

    ADDED = range(20, 44)

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr("retriever.live.COMPACT_AFTER", 5)

    @pytest.fixture
    def possible(self, tmp_path) -> dict[str, set[object]]:
        """For each query, the answers of every state."""
        found: dict[str, set[object]] = {query: set() for query in QUERIES}
        with build(ROWS, tmp_path / "alone", weight=0.6) as alone:
            for number in (None, *self.ADDED):
                if number is not None:
                    alone.add(row(number))
                for query in QUERIES:
                    found[query].add(answer(alone, query))
        return found

    def test_selections_beside_changes_and_refreshes_are_those_of_some_state(self, index, possible):
        done = threading.Event()
        seen: list[tuple[str, object]] = []

        def change():
            try:
                for number in self.ADDED:
                    index.add(row(number))
            finally:
                done.set()

        def select():
            while not done.is_set():
                seen.extend((query, answer(index, query)) for query in QUERIES)

        def refresh():
            while not done.is_set():
                index.refresh()

        in_threads(change, refresh, *[select] * 4)
        assert len(seen) > 50
        assert [one for one in seen if one[1] not in possible[one[0]]] == []
        assert all(answer(index, query) in possible[query] for query in QUERIES)
        assert len(index) == len(ROWS) + len(self.ADDED)

    def test_what_one_thread_sees_never_goes_back(self, index):
        done = threading.Event()
        sizes: list[list[int]] = [[], []]

        def change():
            try:
                for number in self.ADDED:
                    index.add(row(number))
            finally:
                done.set()

        def look(into: list[int]) -> None:
            while not done.is_set():
                index.refresh()
                into.append(len(index))

        in_threads(change, *[lambda into=into: look(into) for into in sizes])
        assert all(into == sorted(into) for into in sizes)

    def test_changes_from_many_threads_all_take_place_one_after_the_other(self, index):
        def adder(first: int) -> Callable[[], object]:
            return lambda: [index.add(row(number)) for number in range(first, first + 5)]

        in_threads(*[adder(first) for first in range(100, 140, 5)])
        with Retriever.open(index.path, embedder=embed, note=fail) as later:
            assert len(later) == len(index) == len(ROWS) + 40
            assert answers(later) == answers(index)

    def test_a_stream_of_selections_is_one_view_though_the_index_changes_in_between(self, index):
        expected = {query: answer(index, query) for query in QUERIES}
        stream = index.select_many(QUERIES, k=6)
        first = next(stream)
        index.add([row(number) for number in self.ADDED])
        for query, selection in zip(QUERIES, [first, *stream], strict=True):
            assert told(selection) == expected[query]


READER = """
    import json, sys
    from retriever import Retriever
    from tests.support import embed, fail
    seen = []
    with Retriever.open(sys.argv[1], embedder=embed, note=fail) as index:
        print("ready", flush=True)
        while not seen or seen[-1] < int(sys.argv[2]):
            index.refresh()
            found = index.select("card fee", k=1000)
            ids = sorted(found.ids, key=lambda one: int(one[1:]))
            wanted = [f"r{n}" for n in range(12)] + [f"r{n}" for n in range(20, 8 + len(ids))]
            assert ids == wanted, (ids, wanted)
            assert all(one.example.output == f"o{one.example.id[1:]}" for one in found)
            seen.append(len(ids))
    print(json.dumps(seen))
"""
HOLDER = """
    import sys
    from retriever import Retriever
    from tests.support import embed
    def embed_after_a_line(texts):
        # The probes of opening come first; what is added is embedded while the lock is held.
        if "waits for a line" in texts:
            print("embedding", flush=True)
            sys.stdin.readline()
        return embed(texts)
    with Retriever.open(sys.argv[1], embedder=embed_after_a_line) as index:
        index.add({"id": "slow", "input": "waits for a line", "output": "o"})
    print("added", flush=True)
"""


class TestProcesses:
    def test_several_processes_read_whole_states_while_one_writes(self, index, monkeypatch):
        monkeypatch.setattr("retriever.live.COMPACT_AFTER", 5)
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(program(READER, index.path, 42)) for _ in range(3)]
            for reader in readers:
                assert reader.stdout.readline() == "ready\n", reader.stderr.read()
            for number in range(20, 50):
                index.add(row(number))
            for reader in readers:
                out, err = reader.communicate(timeout=60)
                assert reader.returncode == 0, err
                seen = json.loads(out)
                assert seen == sorted(seen)
                assert seen[-1] == 42

    def test_of_two_that_want_to_write_one_is_told_the_process_id_of_the_other(self, index):
        with program(HOLDER, index.path) as other:
            assert other.stdout.readline() == "embedding\n", other.stderr.read()
            for attempt in (lambda: index.add(row(30)), lambda: index.remove("r1"), index.compact):
                with pytest.raises(IndexLocked, match=f"process {other.pid}") as caught:
                    attempt()
                assert caught.value.pid == other.pid
                assert caught.value.exit_code == 6
            assert len(index) == 12
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "added\n", other.stderr.read()
        assert index.add(row(30)) == ("r30",)
        assert len(index) == 14
        assert "slow" in index.select("waits for a line", k=1).ids

    def test_a_lock_that_a_killed_process_has_left_is_taken_over_and_its_change_never_happened(self, index):
        before = answers(index)
        with program(HOLDER, index.path) as other:
            assert other.stdout.readline() == "embedding\n", other.stderr.read()
            other.kill()
        assert (index.path / "LOCK").read_text() == f"{other.pid}\n"
        assert index.refresh() is False
        assert answers(index) == before
        assert index.add(row(30)) == ("r30",)
        assert (index.path / "LOCK").read_text() == f"{os.getpid()}\n"
        assert len(index) == 13


FORKER = """
import os, sys
from pathlib import Path
from indexes import files

path, (ends, open_until_then) = Path(sys.argv[1]), os.pipe()
with files.locked(path):
    child = os.fork()
    if not child:
        os.close(open_until_then)
        os.read(ends, 1)
        os._exit(0)
with files.locked(path):
    print("locked again", flush=True)
os.close(open_until_then)
os.waitpid(child, 0)
"""


def test_a_process_that_was_forked_during_a_change_does_not_keep_the_lock(tmp_path):
    with program(FORKER, tmp_path / "LOCK") as forker:
        out, err = forker.communicate(timeout=60)
    assert (out, err) == ("locked again\n", "")


class TestLongReader:
    def test_after_ten_publications_it_answers_from_its_own_state_which_stays_until_it_closes(self, index):
        with Retriever.open(index.path, embedder=embed, note=fail) as reader:
            before, first = answers(reader), reader.generation
            for number in range(20, 30):
                index.add(row(number))
                index.compact()
            # Once all that it needs is gone from the pool, too.
            build(ROWS[:3], index.path, overwrite=True, weight=0.6).close()
            assert self.generations(index) == [first, "gen-000011", "gen-000012"]
            assert answers(reader) == before
            assert reader.generation == first
            assert [one.example.id for one in reader.select("card", k=1000, mode="dense")] != []
            assert len(reader) == 12
        index.refresh()
        index.add(row(40))
        index.compact()
        assert self.generations(index) == ["gen-000012", "gen-000013"]

    def test_one_that_moves_on_lets_go_of_the_state_it_had(self, index):
        with Retriever.open(index.path, embedder=embed, note=fail) as reader:
            for number in range(20, 24):
                index.add(row(number))
                index.compact()
                assert reader.refresh() is True
            assert reader.generation == index.generation
            assert self.generations(index) == ["gen-000004", "gen-000005"]
            assert answers(reader) == answers(index)

    def test_a_process_that_is_killed_holds_nothing_any_longer(self, index):
        with program(READER, index.path, 10**6) as reader:
            assert reader.stdout.readline() == "ready\n", reader.stderr.read()
        for number in range(20, 23):
            index.add(row(number))
            index.compact()
        assert self.generations(index) == ["gen-000003", "gen-000004"]

    @staticmethod
    def generations(index: Retriever) -> list[str]:
        return sorted(path.name for path in index.path.iterdir() if path.name.startswith("gen-"))


BUILDER = """
    import sys
    import cli
    import retriever.texts
    # Each holds the lock until a line comes: so the two meet at whatever speed they start.
    built = retriever.texts.Texts.of
    def after_a_line(*arguments):
        print("building", file=sys.stderr, flush=True)
        sys.stdin.readline()
        return built(*arguments)
    retriever.texts.Texts.of = after_a_line
    cli.main(["build", sys.argv[1], "-o", sys.argv[2], "--embedder", "latent", "--json"])
"""


class TestTwoBuilders:
    def test_one_wins_and_the_other_exits_with_code_6_and_names_the_winner(self, tmp_path):
        pool, target = tmp_path / "pool.jsonl", tmp_path / "i"
        pool.write_text("".join(json.dumps(one) + "\n" for one in ROWS))
        with program(BUILDER, pool, target) as first, program(BUILDER, pool, target) as second:
            loser, winner = self.ended_first(first, second)
            assert loser.returncode == 6, loser.stderr.read()
            assert f"process {winner.pid}" in loser.stderr.read()
            _, err = winner.communicate("\n", timeout=60)
            assert winner.returncode == 0, err
        with Retriever.open(target, note=fail) as index:
            assert len(index) == 12
            assert index.generation == "gen-000001"

    @staticmethod
    def ended_first(one, other):
        """The process that ends while the other one waits for its line, and the other."""
        for _ in range(600):
            for loser, winner in ((one, other), (other, one)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    loser.wait(0.05)
                    return loser, winner
        raise AssertionError("both are building")
