"""The power fails at any instant: the index is as it was or as it was to be, and what was acknowledged is there."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from disk import INDEX, NEXT, OPERATIONS, Disk, FaultyOS, Op, RecordingOS, Start, Wreck, opened, start, state, wrecks

from indexes import files
from retriever import pool as pools
from retriever.errors import IndexMissing, RetrieverError
from retriever.sqlite import connect
from retriever.verification import verify

CHANGES = [name for name in OPERATIONS if name != "open"]


@dataclass(frozen=True)
class Record:
    """What an operation did to the disk."""

    name: str
    start: Start
    log: list[Op]
    pool: dict[str, bytes]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, Record]:
    return {name: recorded(name, tmp_path_factory.mktemp(name)) for name in CHANGES}


def recorded(name: str, top: Path) -> Record:
    """Does an operation and remembers what reached the disk, SQL statements among it: each may change the pool."""
    begin = start(OPERATIONS[name], top)
    shutil.copytree(begin.top, top / "recorded")
    recording = RecordingOS(top / "recorded", INDEX)

    def traced(path: Path, *, writable: bool) -> sqlite3.Connection:
        connection = connect(path, writable=writable)
        if writable:
            connection.set_trace_callback(lambda statement: recording.note("sql"))
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", recording)
        patch.setattr(pools, "connect", traced)
        OPERATIONS[name].run(top / "recorded" / INDEX)
    return Record(name, begin, recording.log, recording.pool())


def check(record: Record, log: Sequence[Op], top: Path) -> int:
    """Looks at what every power cut leaves; how many there were.

    Raises:
        AssertionError: One leaves something that it must not.
    """
    count = 0
    for wreck in wrecks(Disk(record.start.top), log, record.pool, INDEX):
        count += 1
        here = top / "now"
        wreck.write(here)
        try:
            _check(record, wreck, here / INDEX, done=wreck.after == len(log))
        except (RetrieverError, AssertionError) as error:
            last = log[wreck.after - 1] if wreck.after else None
            raise AssertionError(f"{record.name}, {wreck}, after {last}: {error!r}") from error
        shutil.rmtree(here)
    return count


def _check(record: Record, wreck: Wreck, root: Path, *, done: bool) -> None:
    notes: list[str] = []
    now: list[object] | None = None
    with contextlib.suppress(IndexMissing):
        now = state(root, notes.append)
    assert now == record.start.new or (not done and now == record.start.old)
    operation = OPERATIONS[record.name]
    # An index that was damaged before says so until it is repaired.
    assert not notes or (operation.damaged and not done)
    if wreck.after % 4 and not done:
        return  # the rest takes long, and is the same for most instants
    if now is None or (operation.damaged and not done):
        operation.run(root)  # what was damaged before may be there still, though nothing needs it
        assert state(root) == record.start.new
    with opened(root) as index:
        index.add(NEXT)
    with opened(root) as index:
        assert NEXT["id"] in [example.id for _, example in index.snapshot.present()]
    assert verify(root).problems == ()


@pytest.fixture(autouse=True)
def nothing_is_flushed(monkeypatch):
    """What the tests themselves do to what a power cut left need not outlast another."""

    def hasty(path: Path, *, writable: bool) -> sqlite3.Connection:
        connection = connect(path, writable=writable)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(files, "os", FaultyOS())
    monkeypatch.setattr(pools, "connect", hasty)


@pytest.mark.parametrize("name", CHANGES)
def test_whenever_the_power_fails_the_state_is_the_old_or_the_new_and_a_writer_can_go_on(records, tmp_path, name):
    assert check(records[name], records[name].log, tmp_path) > 10


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [
        *((name, "flush") for name in ("build", "add", "compact")),
        *((name, "flush names") for name in ("build", "add", "compact")),
    ],
)
def test_a_library_that_forgets_to_flush_is_found_out(records, tmp_path, name, forgotten):
    log = [op for op in records[name].log if op.kind != forgotten]
    assert len(log) < len(records[name].log)
    with pytest.raises(AssertionError, match=name):
        check(records[name], log, tmp_path)


def test_one_forgotten_flush_of_one_file_of_a_generation_is_enough(records, tmp_path):
    log = records["compact"].log
    places = [place for place, op in enumerate(log) if op.kind == "flush" and ".tmp-" in op.path]
    assert len(places) > 10
    place = places[len(places) // 2]
    with pytest.raises(AssertionError, match="compact"):
        check(records["compact"], [*log[:place], *log[place + 1 :]], tmp_path)


@pytest.mark.parametrize("name", ["build", "overwrite", "compact", "repair"])
def test_files_are_flushed_then_names_then_the_rename_and_current_comes_last(records, name):
    log = records[name].log
    [published] = [place for place, op in enumerate(log) if op.kind == "rename" and "gen-" in op.target
                   and ".tmp-" not in op.target]  # fmt: skip
    directory, root = log[published].path, INDEX
    created = [op.path for op in log[:published] if op.kind == "create" and op.path.startswith(f"{directory}/")]
    assert len(created) == 13
    assert created[-1] == f"{directory}/manifest.json"
    names_flushed = _last(log[:published], "flush names", directory)
    for path in created:
        assert _last(log, "create", path) < _last(log, "write", path) < _last(log, "flush", path) < names_flushed
    [current] = [place for place, op in enumerate(log) if op.target == f"{root}/CURRENT"]
    between = log[published + 1 : current]
    assert ("flush names", root) in [(op.kind, op.path) for op in between]
    assert [op.kind for op in between if op.path == log[current].path] == ["create", "write", "flush"]
    assert _first(log[current:], "flush names", root) < _first([*log[current:], Op("remove", "")], "remove", None)


@pytest.mark.parametrize("name", ["add", "update", "remove"])
def test_a_change_writes_current_alone_and_flushes_it_before_and_its_name_after_the_rename(records, name):
    kinds = [(op.kind, op.path.split(".tmp-")[0], op.target) for op in records[name].log if op.kind != "sql"]
    new = f"{INDEX}/CURRENT"
    assert kinds[-5:] == [
        ("create", new, ""),
        ("write", new, ""),
        ("flush", new, ""),
        ("rename", new, new),
        ("flush names", INDEX, ""),
    ]
    assert {path for _, path, _ in kinds[:-5]} == {f"{INDEX}/LOCK"}


def _first(log: Sequence[Op], kind: str, path: str | None) -> int:
    return next(place for place, op in enumerate(log) if op.kind == kind and path in (None, op.path))


def _last(log: Sequence[Op], kind: str, path: str) -> int:
    return len(log) - 1 - _first(log[::-1], kind, path)
