"""A disk that fails, a disk that remembers, and what a power cut leaves of what it remembers.

`indexes.files` reaches the disk through its own name `os`. A test puts one of the two classes here in its place.
Neither flushes anything: what a real flush does cannot be seen from within a process, and the model below asks whether
it was asked for.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from support import build, embed, fail

from retriever import Retriever, writing
from retriever.repair import repair

CALLS = (
    *("open", "write", "fsync", "fstat", "lstat", "replace", "mkdir", "unlink", "rmdir", "listdir", "statvfs"),
    *("pread", "pwrite", "ftruncate"),
)
"""Calls that touch the disk and can fail. Closing is not among them: it frees the descriptor, come what may."""


class _OS:
    """Everything is as in `os`, but for the methods of a subclass and for flushing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        os.fstat(descriptor)


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call.

    Attributes:
        number: Which call, counted from 1.
        errno: What it fails with; None for a write that writes only a part.
        then: What every later write fails with, after one that wrote a part.
    """

    number: int
    errno: int | None = None
    then: int | None = None

    def __str__(self) -> str:
        kind = errno.errorcode[self.errno] if self.errno else "short" + ("-full" if self.then else "")
        return f"{kind} at call {self.number}"


class FaultyOS(_OS):
    """Fails at one call.

    Args:
        fault: Where and how; None for nowhere, which counts the calls.

    Attributes:
        calls: The names of the calls so far.
        descriptors: Those that are open.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.calls: list[str] = []
        self.descriptors: set[int] = set()
        self._fault = fault

    def __getattribute__(self, name: str) -> Any:
        if name not in CALLS:
            return super().__getattribute__(name)
        real = super().__getattribute__(name) if name == "fsync" else getattr(os, name)
        return lambda *arguments, **options: self._call(name, real, arguments, options)

    def _call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.calls.append(name)
        fault = self._fault
        if fault is not None and len(self.calls) >= fault.number:
            first = len(self.calls) == fault.number
            if first and fault.errno is not None:
                raise OSError(fault.errno, os.strerror(fault.errno))
            if first:
                descriptor, data = arguments
                return os.write(descriptor, data[: len(data) // 2])
            if fault.then is not None and name == "write":
                raise OSError(fault.then, os.strerror(fault.then))
        found = real(*arguments, **options)
        if name == "open":
            self.descriptors.add(found)
        return found

    def close(self, descriptor: int) -> None:
        self.descriptors.discard(descriptor)
        os.close(descriptor)


def faults(calls: Sequence[str]) -> Iterator[Fault]:
    """A failure of every call of an operation that went through; those that a kind of call can have take turns."""
    turns = {name: itertools.cycle(_CODES[name]) for name in CALLS}
    for number, name in enumerate(calls, start=1):
        code, then = next(turns[name])
        yield Fault(number, code, then)


_READ = ((errno.EIO, None),)
_WRITE = ((errno.ENOSPC, None), (errno.EIO, None))
_CODES: Mapping[str, Sequence[tuple[int | None, int | None]]] = {
    **dict.fromkeys(CALLS, _READ),
    **dict.fromkeys(("fsync", "replace", "mkdir", "pwrite", "ftruncate"), _WRITE),
    "open": ((errno.EMFILE, None), (errno.EIO, None), (errno.ENOSPC, None)),
    "write": (*_WRITE, (None, None), (None, errno.ENOSPC)),
    "listdir": ((errno.EMFILE, None), (errno.EIO, None)),
}


@dataclass(frozen=True)
class Op:
    """One thing that was done to the disk.

    Attributes:
        kind: `create`, `truncate`, `write`, `flush`, `mkdir`, `rename`, `remove`, `flush names`; or `sql`, which leaves
            the files as they are and only marks an instant at which the pool may have changed.
        path: Relative to the directory that is watched.
        data: What was written.
        target: The new name.
        pool: The content of the pool's files just before.
    """

    kind: str
    path: str
    data: bytes = b""
    target: str = ""
    pool: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class RecordingOS(_OS):
    """Does what is asked and remembers it.

    Args:
        top: The directory that is watched.
        index: The name of the index in it.
    """

    def __init__(self, top: Path, index: str) -> None:
        self.log: list[Op] = []
        self._top = top
        self._index = index
        self._paths: dict[int, str] = {}

    def pool(self) -> dict[str, bytes]:
        """The content of the pool's files now."""
        return {path.name: path.read_bytes() for path in sorted((self._top / self._index).glob("pool.sqlite*"))
                if not path.name.endswith("-shm")}  # fmt: skip

    def note(self, kind: str, path: str = "", data: bytes = b"", target: str = "") -> None:
        if Path(path).parts[:1] in ((), (self._index,)):  # a temporary directory beside the index is nobody's state
            self.log.append(Op(kind, path, data, target, self.pool()))

    def _relative(self, path: Any) -> str:
        return str(Path(path).relative_to(self._top))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and not Path(path).exists():
            self.note("create", self._relative(path))
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = self._relative(path)
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        self.note("write", self._paths[descriptor], bytes(data))
        return os.write(descriptor, data)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        assert offset == 0
        self.note("write", self._paths[descriptor], data)
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, size: int) -> None:
        assert size == 0
        self.note("truncate", self._paths[descriptor])
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        self.note("flush names" if (self._top / path).is_dir() else "flush", path)

    def replace(self, source: Any, target: Any) -> None:
        self.note("rename", self._relative(source), target=self._relative(target))
        os.replace(source, target)  # noqa: PTH105

    def mkdir(self, path: Any) -> None:
        self.note("mkdir", self._relative(path))
        os.mkdir(path)  # noqa: PTH102

    def unlink(self, path: Any) -> None:
        self.note("remove", self._relative(path))
        os.unlink(path)  # noqa: PTH108

    def rmdir(self, path: Any) -> None:
        self.note("remove", self._relative(path))
        os.rmdir(path)  # noqa: PTH106


@dataclass(eq=False)
class _File:
    """A file: what the process sees of it, and what was flushed."""

    seen: bytes = b""
    flushed: bytes = b""


@dataclass(eq=False)
class _Folder:
    """A directory: the names that were flushed, and each change to them since, in order."""

    flushed: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def names(self, kept: Sequence[bool] | None = None) -> dict[str, _File | _Folder]:
        """The names if some of the pending changes happened; all of them did when None."""
        found: dict[str, _File | _Folder | None] = dict(self.flushed)
        for number, change in enumerate(self.pending):
            if kept is None or kept[number]:
                found |= change
        return {name: node for name, node in found.items() if node is not None}


DATA: Mapping[str, Callable[[bytes, bytes], bytes]] = {
    "kept": lambda seen, flushed: seen,
    "dropped": lambda seen, flushed: flushed,
    "cut": lambda seen, flushed: seen[: len(seen) // 2],
    "zeroed": lambda seen, flushed: bytes(len(seen)),
}
"""What may be left of content that was not flushed."""

NAMES: Mapping[str, Callable[[random.Random], bool]] = {
    "kept": lambda chance: True,
    "dropped": lambda chance: False,
    "some": lambda chance: chance.random() < 0.5,
}
"""Which changes of names that were not flushed may be left."""


class Disk:
    """A file system that keeps for certain only what was flushed: data by file, names by directory.

    Args:
        top: The directory to start from; all that is in it counts as flushed. The pool's files are left out: SQLite
            flushes them itself, by a protocol of its own.
    """

    def __init__(self, top: Path) -> None:
        self._top = self._load(top)

    def _load(self, path: Path) -> _Folder:
        return _Folder(
            {
                one.name: self._load(one) if one.is_dir() else _File(one.read_bytes(), one.read_bytes())
                for one in path.iterdir()
                if not one.name.startswith("pool.sqlite")
            }
        )

    def _find(self, path: str) -> _File | _Folder:
        node: _File | _Folder = self._top
        for name in Path(path).parts:
            assert isinstance(node, _Folder)
            node = node.names()[name]
        return node

    def apply(self, op: Op) -> None:
        """Does what was done."""
        if op.kind == "sql":
            return
        parent, name = self._find(str(Path(op.path).parent)), Path(op.path).name
        assert isinstance(parent, _Folder)
        if op.kind in ("create", "mkdir"):
            parent.pending.append({name: _File() if op.kind == "create" else _Folder()})
            return
        node = self._find(op.path)
        if op.kind == "remove":
            parent.pending.append({name: None})
        elif op.kind == "rename":
            assert Path(op.target).parent == Path(op.path).parent, "within one directory a rename happens or does not"
            parent.pending.append({name: None, Path(op.target).name: node})
        elif isinstance(node, _Folder):
            assert op.kind == "flush names"
            node.flushed, node.pending = node.names(), []
        elif op.kind == "flush":
            node.flushed = node.seen
        else:
            node.seen = b"" if op.kind == "truncate" else node.seen + op.data

    def after_power_cut(self, data: str, names: str, chance: random.Random) -> dict[str, bytes | None]:
        """What is found afterwards: path to content, None for a directory; `data` of `DATA`, `names` of `NAMES`."""
        found: dict[str, bytes | None] = {}

        def walk(folder: _Folder, path: Path) -> None:
            kept = [NAMES[names](chance) for _ in folder.pending]
            for name, node in sorted(folder.names(kept).items(), key=lambda item: item[0]):
                if isinstance(node, _Folder):
                    found[str(path / name)] = None
                    walk(node, path / name)
                else:
                    whole = node.seen == node.flushed
                    found[str(path / name)] = node.seen if whole else DATA[data](node.seen, node.flushed)

        walk(self._top, Path())
        return found


@dataclass(frozen=True)
class Wreck:
    """What a power cut left.

    Attributes:
        after: How many operations of the log were done.
        how: What became of what was not flushed.
        tree: Path to content; None for a directory.
    """

    after: int
    how: str
    tree: Mapping[str, bytes | None] = field(repr=False)

    def write(self, top: Path) -> None:
        """Puts it on the real disk."""
        top.mkdir()
        for path, content in self.tree.items():
            if content is None:
                (top / path).mkdir()
            else:
                (top / path).write_bytes(content)


VARIANTS = (
    *(("kept", "kept"), ("dropped", "kept"), ("cut", "kept"), ("zeroed", "kept"), ("kept", "dropped")),
    *(("dropped", "some"), ("zeroed", "some"), ("kept", "some")),
)


def wrecks(disk: Disk, log: Sequence[Op], last_pool: Mapping[str, bytes], index: str, seed: int = 0) -> Iterator[Wreck]:
    """Every distinct thing that a power cut may leave, after every prefix of a log.

    Args:
        disk: As it was before.
        log: What was done.
        last_pool: The pool's files after it.
        index: The name of the index in the directory that was watched.
        seed: Of the random subsets.
    """
    known: set[bytes] = set()
    pools = [*(op.pool for op in log), last_pool]
    for after, pool in enumerate(pools):
        if after:
            disk.apply(log[after - 1])
        # The variants take turns, three for each instant; after the last all are looked at.
        turn = VARIANTS if after == len(log) else [VARIANTS[(3 * after + i) % len(VARIANTS)] for i in range(3)]
        for number, (data, names) in enumerate(turn):
            tree = disk.after_power_cut(data, names, random.Random(f"{seed} {after} {number}"))
            if index in tree:
                tree |= {f"{index}/{name}": content for name, content in pool.items()}
            digest = hashlib.sha256(repr(tree).encode()).digest()
            # The last state is looked at in any case: it was acknowledged.
            if digest not in known or after == len(log):
                known.add(digest)
                yield Wreck(after, f"data {data}, names {names}", tree)


# The operations that both kinds of test put to the disk.

ROWS = [
    {"id": f"r{i}", "input": f"{['card', 'refund', 'login', 'fee'][i % 4]} number {i}", "output": f"o{i % 3}"}
    for i in range(5)
]
MORE = [{"id": f"m{i}", "input": f"late mail {i}", "output": f"o{i % 3}"} for i in range(2)]
NEXT = {"id": "next", "input": "one more", "output": "o1"}


def opened(root: Path, note: Callable[[str], None] = fail) -> Retriever:
    return Retriever.open(root, embedder=embed, note=note)


def built(root: Path, rows: object = ROWS, **options: object) -> None:
    build(rows, root, weight=0.6, note=lambda line: None, **options).close()


def state(root: Path, note: Callable[[str], None] = fail) -> list[object]:
    """All that a fresh look at an index shows: its examples, and what it selects, to the last bit."""
    with opened(root, note) as index:
        found: list[object] = [example for _, example in index.snapshot.present()]
        for mode in ("dense", "lexical", "hybrid"):
            found += [(one.example.id, one.score) for one in index.select("late card fee", k=9, mode=mode)]
        return found


def _add(root: Path) -> None:
    with opened(root) as index:
        index.add(MORE)


def _update(root: Path) -> None:
    with opened(root) as index:
        index.update([{**ROWS[1], "output": "other"}, *MORE])


def _remove(root: Path) -> None:
    with opened(root) as index:
        index.remove([ROWS[1]["id"], "late"])


def _compact(root: Path) -> None:
    with opened(root) as index:
        index.compact()


def _rekey(root: Path) -> None:
    here = mock.patch.object(tempfile, "tempdir", str(root.parent))  # on the disk that is watched
    with here, opened(root) as index, index.try_keys(["input+output"]) as trials:
        trials["input+output"].keep(index.recipe)


def _damaged(root: Path) -> None:
    path = root / "gen-000002" / "posting_rows.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _with_waste(root: Path) -> None:
    """A generation too many, one half written and a torn CURRENT: what only `collect` removes."""
    shutil.copytree(root / "gen-000001", root / "gen-000003")
    shutil.copytree(root / "gen-000001", root / "gen-000004.tmp-7")
    (root / "CURRENT.tmp-7").write_bytes(b"gen")


@dataclass(frozen=True)
class Operation:
    """Something that is done to an index.

    Attributes:
        run: Does it, to the index at a path.
        prepare: Makes an index of two generations and a change what it is to be done to; None when there is none yet.
        damaged: Whether the index says beforehand that it is damaged.
    """

    run: Callable[[Path], object]
    prepare: Callable[[Path], None] | None = lambda root: None
    damaged: bool = False


OPERATIONS = {
    "build": Operation(built, None),
    "overwrite": Operation(lambda root: built(root, [*MORE, *ROWS[3:]], overwrite=True)),
    "add": Operation(_add),
    "update": Operation(_update),
    "remove": Operation(_remove),
    "compact": Operation(_compact),
    "rekey": Operation(_rekey),
    "collect": Operation(writing.collect, _with_waste),
    "repair": Operation(lambda root: repair(root, embedder=embed), _damaged, damaged=True),
    "open": Operation(lambda root: opened(root).close()),
}


@dataclass(frozen=True)
class Start:
    """Where an operation starts, and what it leads to.

    Attributes:
        top: The directory that holds the index, or is to hold it.
        old: The state before; None when there is none.
        new: The state after.
    """

    top: Path
    old: list[object] | None
    new: list[object]


def start(operation: Operation, top: Path) -> Start:
    """Prepares an operation, and does it once to a copy."""
    before, after = top / "before", top / "after"
    before.mkdir()
    old = None
    if operation.prepare is not None:
        root = before / INDEX
        built(root)
        with opened(root) as index:
            index.remove("r0")
            index.compact()
            index.add({"id": "late", "input": "a late fee", "output": "o0"})
        operation.prepare(root)
        old = state(root, (lambda line: None) if operation.damaged else fail)
    shutil.copytree(before, after)
    operation.run(after / INDEX)
    return Start(before, old, state(after / INDEX))


INDEX = "pool.index"
