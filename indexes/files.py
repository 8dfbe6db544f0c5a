"""The one module that touches the disk on behalf of an index.

Everything durable passes through these few functions, so that a test can make any single one of them fail and so that
the order of writes and syncs can be asserted. Each write is checked: a full disk must raise here, not surface later as
a short file.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from indexes.errors import IndexCorrupt, IndexLocked

Buffer: TypeAlias = "bytes | memoryview"


def write_bytes(path: Path, chunks: Iterable[Buffer]) -> int:
    """Writes a new file, flushes it to the disk and checks its size.

    Returns:
        The size in bytes.

    Raises:
        FileExistsError: The file is there already; published files never change.
        OSError: The disk is full or failed; the file is then not to be used.
    """
    written = 0
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while view:
                count = file.write(view)
                written += count
                view = view[count:]
        os.fsync(file.fileno())
    size = path.stat().st_size
    if size != written:
        raise OSError(f"{path}: {size} bytes on the disk after {written} were written")
    return written


def read_bytes(path: Path) -> Buffer:
    """The content of a regular file, memory-mapped where it is not empty.

    A mapping stays readable after the file is unlinked, and published files are never rewritten in place, so a reader
    cannot be pulled from under.

    Raises:
        IndexCorrupt: The path is a link or no regular file.
        OSError: The file cannot be read.
    """
    descriptor = _open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size == 0:
            return b""
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open_regular(path: Path) -> int:
    if path.is_symlink() or not path.is_file():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        raise IndexCorrupt(path, "is not a regular file", fix="restore the index from a copy, or build it again")
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def make_directory(path: Path) -> None:
    """Makes a directory and its parents; one that is there is fine."""
    path.mkdir(parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Flushes the names in a directory to the disk; without it a rename can be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Renames a file or directory, replacing a file that is there."""
    source.replace(target)


def list_directory(path: Path) -> list[str]:
    """The names in a directory, sorted; empty when it does not exist."""
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def remove(path: Path) -> None:
    """Removes a file or a whole directory; what is gone already, or cannot be removed now, stays for a later call."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user can still write to the file system of a path."""
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the writer's lock; the operating system frees it when the process ends, however it ends.

    Raises:
        IndexLocked: Another process, or another writer of this one, holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).strip()
            raise IndexLocked(path, int(holder) if holder.isdigit() else None) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
