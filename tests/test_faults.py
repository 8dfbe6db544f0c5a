"""The disk fails at any single call: the index is the old or the new, the error says why, and one can go on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disk import INDEX, MORE, NEXT, OPERATIONS, ROWS, FaultyOS, built, faults, opened, start, state

from indexes import files
from indexes import generation as generations
from indexes.current import read_current
from retriever.errors import IndexMissing, StorageError
from retriever.verification import verify

ROOT = Path(__file__).parent.parent


def seen(root: Path, *, damaged: bool) -> list[object] | None:
    """What a fresh look shows; None when there is no index."""
    try:
        return state(root, (lambda line: None) if damaged else pytest.fail)
    except IndexMissing:
        return None


# The calls of an operation of many are dealt out, so that several workers share them.
PARTS = {"rekey": 6, "repair": 6, "overwrite": 4, "compact": 3, "build": 2}
DEALT = [(name, part) for name in OPERATIONS for part in range(PARTS.get(name, 1))]


@pytest.mark.parametrize(("name", "part"), DEALT)
def test_whichever_call_fails_the_state_is_the_old_or_the_new_and_the_operation_can_be_repeated(
    tmp_path, monkeypatch, name, part
):
    operation = OPERATIONS[name]
    begin = start(operation, tmp_path)
    counting = FaultyOS()
    monkeypatch.setattr(files, "os", counting)
    shutil.copytree(begin.top, tmp_path / "counted")
    operation.run(tmp_path / "counted" / INDEX)
    assert len(counting.calls) > 20
    raised = 0
    for fault in itertools.islice(faults(counting.calls), part, None, PARTS.get(name, 1)):
        top = tmp_path / "now"
        shutil.copytree(begin.top, top)
        root, call = top / INDEX, f"{fault} ({counting.calls[fault.number - 1]})"
        faulty = FaultyOS(fault)
        monkeypatch.setattr(files, "os", faulty)
        try:
            operation.run(root)
        except StorageError as error:
            raised += 1
            assert error.errno == (fault.errno or fault.then), call
            assert str(top) in str(error), call
            assert os.strerror(error.errno) in str(error), call
            assert error.errno not in (errno.ENOSPC, errno.EMFILE) or error.fix, call
            found = [begin.old, begin.new]
        else:
            found = [begin.new]
        assert faulty.descriptors == set(), call
        monkeypatch.setattr(files, "os", FaultyOS())
        now = seen(root, damaged=operation.damaged)
        assert now in found, call
        again = now != begin.new or now == begin.old
        if again:
            operation.run(root)
        if again or operation.damaged:  # the look above let an index that was damaged say so
            assert state(root) == begin.new, call
        if fault.number % 7 == 0:
            with opened(root) as index:
                index.add(NEXT)
            assert verify(root).problems == (), call
        shutil.rmtree(top)
    assert raised > 5


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path, monkeypatch):
    class OneByteOS(FaultyOS):
        def write(self, descriptor, data):
            return os.write(descriptor, data[:7])

        def __getattribute__(self, name):
            return object.__getattribute__(self, name) if name == "write" else super().__getattribute__(name)

    monkeypatch.setattr(files, "os", OneByteOS())
    content = [b"x" * 20, memoryview(b"y" * 9), b""]
    assert files.write_bytes(tmp_path / "f", content) == 29
    assert (tmp_path / "f").read_bytes() == b"x" * 20 + b"y" * 9


def test_a_disk_that_says_it_wrote_and_did_not_is_found_out(tmp_path, monkeypatch):
    class LyingOS(FaultyOS):
        def write(self, descriptor, data):
            return len(data)

        def __getattribute__(self, name):
            return object.__getattribute__(self, name) if name == "write" else super().__getattribute__(name)

    monkeypatch.setattr(files, "os", LyingOS())
    with pytest.raises(StorageError, match="could not write its 3 bytes: 0 bytes are on the disk") as caught:
        files.write_bytes(tmp_path / "f", [b"abc"])
    assert caught.value.errno == errno.EIO


def test_a_lock_whose_directory_is_gone_says_so_and_nothing_else(tmp_path):
    path = tmp_path / "gone" / "LOCK"
    with pytest.raises(StorageError) as caught, files.locked(path):
        pytest.fail("it was locked")
    assert str(caught.value) == f"{path}: its directory is gone: {os.strerror(errno.ENOENT)}"
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("old", [None, b"old"])
def test_whichever_call_fails_a_file_that_is_replaced_is_the_old_or_the_new(tmp_path, monkeypatch, old):
    path, new = tmp_path / "f", b"the new content"

    def replace(fault=None):
        if old is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(old)
        faulty = FaultyOS(fault)
        monkeypatch.setattr(files, "os", faulty)
        assert files.replace_file(path, [new[:5], new[5:]]) == len(new)
        return faulty.calls

    calls = replace()
    assert path.read_bytes() == new
    raised = 0
    for fault in faults(calls):
        try:
            replace(fault)
        except StorageError as error:
            raised += 1
            assert error.errno == (fault.errno or fault.then), fault
            # Once it has the name, only the flush of the names is left to fail.
            renamed = fault.number > calls.index("replace") + 1
            assert (path.read_bytes() if path.exists() else None) == (new if renamed else old), fault
        else:
            assert path.read_bytes() == new, fault
        assert [left.name for left in tmp_path.iterdir()] == ["f"] * path.exists(), fault
    assert raised > 5


def test_what_a_process_of_the_same_number_left_is_no_hindrance(tmp_path):
    (tmp_path / f"f.tmp-{os.getpid()}").write_bytes(b"half")
    files.replace_file(tmp_path / "f", [b"whole"])
    assert [(left.name, left.read_bytes()) for left in tmp_path.iterdir()] == [("f", b"whole")]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_generation_stays_when_it_cannot_be_told_whether_a_reader_holds_it(tmp_path, monkeypatch, code):
    root = tmp_path / INDEX
    built(root)
    with opened(root) as reader:
        for _ in range(2):
            built(root, overwrite=True)
        assert generations.generations(root) == ["gen-000001", "gen-000002", "gen-000003"]

        class BlindOS(FaultyOS):
            def open(self, path, flags, mode=0o777):
                if Path(path).parent.name == reader.generation:
                    raise OSError(code, os.strerror(code))
                return os.open(path, flags, mode)

            def __getattribute__(self, name):
                return object.__getattribute__(self, name) if name == "open" else super().__getattribute__(name)

        monkeypatch.setattr(files, "os", BlindOS())
        assert generations.collect(root, read_current(root)) == []
        assert generations.generations(root) == ["gen-000001", "gen-000002", "gen-000003"]


# The pool: SQLite does its own reading and writing, so the limits of a process stand for the disk's.

LIMITED = """
import os, resource, signal, sys
sys.path.insert(0, {tests!r})
from disk import MORE, ROWS, built, opened
from pathlib import Path
from retriever.errors import StorageError

# Once before the limit, so that no module is first loaded under it.
root, what, limits = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
built(root.parent / "warm")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
LARGE = [{{**row, "output": "long " * 2000}} for row in MORE]

def act(path):
    if what == "build":
        built(path, [*ROWS, *LARGE])
    else:
        with opened(path) as index:
            index.add(LARGE)

for limit in limits:
    child = os.fork()
    if not child:
        resource.setrlimit(resource.{limit}, (int(limit), int(limit)))
        try:
            act(root.parent / limit)
        except StorageError as error:
            os.write(1, f"{{limit}}\\t{{error.errno}}\\t{{error}}\\n".encode())
            os._exit(0)
        except BaseException as error:
            os.write(1, f"{{limit}}\\tother\\t{{error!r}}\\n".encode())
            os._exit(0)
        os.write(1, f"{{limit}}\\tdone\\t\\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
"""


def limited(root: Path, what: str, limit: str, values: range) -> dict[int, tuple[str, str]]:
    """What became of an operation under each value of a limit; it is done to a directory of that name."""
    script = LIMITED.format(tests=str(ROOT / "tests"), limit=limit)
    command = [sys.executable, "-c", script, str(root), what, *map(str, values)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(value) for value, _, _ in lines] == list(values), done.stderr
    return {int(value): (outcome, text) for value, outcome, text in lines}


SIZES = range(2_000, 250_001, 8_000)
FULL = {str(code) for code in (errno.ENOSPC, errno.EIO, errno.EFBIG)}


@pytest.mark.parametrize("what", ["build", "add"])
def test_a_pool_that_may_not_grow_leaves_the_old_state_or_reaches_the_new(tmp_path, what):
    large = [{**row, "output": "long " * 2000} for row in MORE]
    built(tmp_path / "whole", [*ROWS, *large])
    new, old = state(tmp_path / "whole"), None
    if what == "add":
        built(tmp_path / "old")
        old = state(tmp_path / "old")
        for size in SIZES:
            shutil.copytree(tmp_path / "old", tmp_path / str(size))
    outcomes = limited(tmp_path / "i", what, "RLIMIT_FSIZE", SIZES)
    kinds = {outcome for outcome, _ in outcomes.values()}
    assert "done" in kinds
    assert len(kinds) > 1
    assert kinds <= {"done", *FULL}, outcomes
    for size, (outcome, text) in outcomes.items():
        root = tmp_path / str(size)
        assert (outcome == "done") or str(root) in text
        now = seen(root, damaged=False)
        assert (now == new) if outcome == "done" else (now in (old, new)), (size, outcome, text)
        if now != new and what == "build":
            built(root, [*ROWS, *large])
        elif now != new:
            with opened(root) as index:
                index.add(large)
        assert state(root) == new
        # A writer notes what is visible; one that failed just after it was made visible leaves that to the next.
        with opened(root) as index:
            index.add(NEXT)
        assert verify(root).problems == ()


def test_with_too_few_open_files_the_message_names_path_and_remedy_and_the_index_is_intact(tmp_path):
    built(tmp_path / "old")
    old = state(tmp_path / "old")
    values = range(3, 40)
    for value in values:
        shutil.copytree(tmp_path / "old", tmp_path / str(value))
    outcomes = limited(tmp_path / "i", "add", "RLIMIT_NOFILE", values)
    assert {"done", str(errno.EMFILE)} <= {outcome for outcome, _ in outcomes.values()}
    for value, (outcome, text) in outcomes.items():
        root = tmp_path / str(value)
        assert outcome == "done" or (str(root) in text and "ulimit -n" in text), (
            value,
            outcome,
            text,
        )
        assert (len(state(root)) > len(old)) if outcome == "done" else state(root) == old


def test_the_command_line_exits_with_1_and_one_line(tmp_path):
    built(tmp_path / "i")
    old = state(tmp_path / "i")
    (tmp_path / "more.jsonl").write_text('{"input": "x", "output": "%s"}\n' % ("long " * 9000))
    script = (
        "import resource, signal, sys; import cli, retriever.retriever\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "sys.argv = ['retriever', *sys.argv[1:]]; cli.main()"
    )
    command = [sys.executable, "-c", script, "build", str(tmp_path / "more.jsonl"), "-o", str(tmp_path / "new")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'new'}")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert state(tmp_path / "i") == old


def test_in_a_directory_that_cannot_be_written_reading_works_and_writing_says_why(tmp_path):
    root = tmp_path / INDEX
    built(root)
    old = state(root)
    root.chmod(0o555)
    if os.access(root, os.W_OK):
        pytest.skip("this user may write anywhere")
    try:
        assert state(root) == old
        with opened(root) as index, pytest.raises(StorageError, match=str(root)):
            index.add(NEXT)
        assert state(root) == old
    finally:
        root.chmod(0o755)
