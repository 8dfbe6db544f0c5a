"""The root of every error raised by this project, and the errors that an index on disk can raise.

They live here because imports run one way (`cli` → `retriever` → `indexes`); `retriever.errors` draws the whole tree
and is where users import them from.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

_REMEDIES: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: "free some space, then try again: the index is as it was",
        errno.EDQUOT: "free some space, then try again: the index is as it was",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f), then try again: the index is as it was",
        errno.EMFILE: "raise the limit on open files (ulimit -n), then try again",
        errno.ENFILE: "close other programs, then try again",
        errno.EACCES: "give this user the permission, then try again",
        errno.EROFS: "mount the file system for writing, then try again",
        errno.EIO: "check the disk, and the limit on file sizes (ulimit -f); the index is as it was",
    }
)


def to_repair(root: Path, when: str = "") -> str:
    """What a reader can do about damage that the pool can mend.

    Args:
        root: The index directory.
        when: By when, such as ` before it is changed`.
    """
    return f"repair it{when}: retriever verify {root} --repair"


class RetrieverError(Exception):
    """Base class of everything this project raises on purpose; catch it around any call.

    Attributes:
        seen: What was found.
        expected: What would have been right; empty when there is nothing to compare with.
        fix: What the reader can do about it; empty when nothing can be done.
        exit_code: What the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, seen: str, *, expected: str = "", fix: str = "") -> None:
        self.seen = seen
        self.expected = expected
        self.fix = fix
        super().__init__("; ".join(part for part in (seen, expected and f"expected {expected}", fix) if part))


class InvalidInput(RetrieverError, ValueError):
    """An argument, option, filter, recipe or vector has a value that cannot be used."""

    exit_code: ClassVar[int] = 2


class IndexMissing(RetrieverError):
    """There is no index at the path.

    Attributes:
        path: Where it was looked for.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, path: Path, *, seen: str = "", fix: str = "") -> None:
        self.path = path
        super().__init__(seen or f"no index at {path}", fix=fix or f"build one: retriever build POOL -o {path}")


class IndexCorrupt(RetrieverError):
    """A file of the index is damaged, missing, or does not belong with the others.

    Attributes:
        path: The file at fault.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, path: Path, seen: str, *, expected: str = "", fix: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {seen}", expected=expected, fix=fix)


class StorageError(RetrieverError, OSError):
    """The operating system refused to read or write: a full disk, a failing one, too many open files, no permission.

    Attributes:
        path: The file or directory.
        errno: The operating system's number for the reason.
    """

    def __init__(self, path: Path, doing: str, error: OSError) -> None:
        super().__init__(f"{path}: {doing}: {error.strerror or error}", fix=_REMEDIES.get(error.errno or 0, ""))
        self.path = path
        self.errno = error.errno


class OutOfSpace(StorageError):
    """There is not enough room on the disk for what is to be written; nothing was.

    Attributes:
        needed: Bytes that are needed.
        free: Bytes that are free.
    """

    def __init__(self, path: Path, needed: int, free: int) -> None:
        self.needed = needed
        self.free = free
        reason = f"{needed:,} bytes are needed and {free:,} are free"
        super().__init__(path, "nothing was written", OSError(errno.ENOSPC, reason))


class Incompatible(RetrieverError):
    """The index was written by a newer format, or with another embedder than the one at hand."""

    exit_code: ClassVar[int] = 5


class IndexLocked(RetrieverError):
    """Another process is writing to the index.

    Attributes:
        path: The lock file.
        pid: The process that holds it; None when it could not be read.
    """

    exit_code: ClassVar[int] = 6

    def __init__(self, path: Path, pid: int | None) -> None:
        self.path = path
        self.pid = pid
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{path.parent} is being written by {holder}", fix="wait for it to finish, then try again")
