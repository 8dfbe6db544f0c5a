"""The one module that touches the disk on behalf of an index.

Everything durable passes through these few functions, and they reach the disk through `os` alone, so that a test can
put another `os` in its place: one that fails at any single call, or one that records what was written and flushed when.
Each write is checked: a full disk must raise here, not surface later as a short file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from indexes.errors import IndexCorrupt, IndexLocked, StorageError

Buffer: TypeAlias = "bytes | memoryview"

_LOCK_BYTES = 32


@contextlib.contextmanager
def reported(path: Path, doing: str) -> Iterator[None]:
    """What the operating system refuses, as a `StorageError`; that a file is not there is for the caller to judge.

    Args:
        path: What is read or written.
        doing: What did not go well, after the path: `cannot be read`.

    Raises:
        StorageError: The operating system refuses; one that was raised within goes through as it is.
    """
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        raise StorageError(path, doing, error) from error


def write_bytes(path: Path, chunks: Iterable[Buffer]) -> int:
    """Writes a new file, flushes it to the disk and checks its size.

    Returns:
        The size in bytes.

    Raises:
        StorageError: The disk is full or failed, or the file is there already, for published files never change. A
            file that was begun is not to be used.
    """
    views = [memoryview(chunk).cast("B") for chunk in chunks]
    wanted = sum(len(view) for view in views)
    with reported(path, f"could not write its {wanted:,} bytes"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            for view in views:
                rest = view
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size != wanted:
            raise OSError(errno.EIO, f"{size:,} bytes are on the disk")
    return wanted


def read_bytes(path: Path) -> Buffer:
    """The content of a regular file, memory-mapped where it is not empty.

    A mapping stays readable after the file is unlinked, and published files are never rewritten in place, so a reader
    cannot be pulled from under.

    Raises:
        FileNotFoundError: There is no such file.
        IndexCorrupt: The path is a link or no regular file.
        StorageError: The file cannot be read.
    """
    with reported(path, "cannot be read"):
        descriptor = _open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)) if size else b""
        finally:
            os.close(descriptor)


def _open_regular(path: Path) -> int:
    try:
        # A pipe must not keep the reader waiting before it is found to be none of ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _irregular(path) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _irregular(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _irregular(path: Path) -> IndexCorrupt:
    return IndexCorrupt(path, "is not a regular file", fix="restore the index from a copy, or build it again")


def make_directory(path: Path) -> None:
    """Makes a directory and its parents; one that is there is fine.

    Raises:
        StorageError: The operating system refuses.
    """
    with reported(path, "could not be made"):
        for directory in (*reversed(path.parents), path):
            if not directory.is_dir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory)  # noqa: PTH102  `os` is the seam
                    sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Flushes the names in a directory to the disk; without it a rename can be lost with the power.

    Raises:
        StorageError: The disk failed.
    """
    with reported(path, "its names could not be flushed to the disk"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Renames a file or directory, replacing a file that is there.

    Raises:
        StorageError: The operating system refuses.
    """
    with reported(target, f"could not get its name from {source.name}"):
        os.replace(source, target)  # noqa: PTH105  `os` is the seam


def replace_file(path: Path, chunks: Iterable[Buffer]) -> int:
    """Puts a file in the place of one that may be there; durable when it returns.

    No two threads may replace the same file at once.

    Returns:
        The size in bytes.

    Raises:
        StorageError: The disk is full or failed. The file is the old or the new, whole in either case.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    remove(temporary)  # left by a crash of a process that had the same number, as in a container they often do
    try:
        size = write_bytes(temporary, chunks)
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_directory(path.parent)
    return size


def list_directory(path: Path) -> list[str]:
    """The names in a directory, sorted; none when there is no directory of this name.

    Raises:
        StorageError: It cannot be read.
    """
    with reported(path, "cannot be listed"):
        try:
            return sorted(os.listdir(path))  # noqa: PTH208  `os` is the seam
        except (FileNotFoundError, NotADirectoryError):
            return []


def remove(path: Path) -> bool:
    """Removes a file, or a directory with all that is in it.

    Returns:
        Whether it is gone. What cannot be removed now stays for a later call.
    """
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in os.listdir(path):  # noqa: PTH208
                remove(path / name)
            os.rmdir(path)  # noqa: PTH106
        else:
            os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user can still write to the file system of a path.

    Raises:
        StorageError: The operating system refuses to say.
    """
    with reported(path, "its free space cannot be told"):
        found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the writer's lock; the operating system frees it when the process ends, however it ends.

    Raises:
        IndexLocked: Another process, or another writer of this one, holds it.
        StorageError: The file cannot be opened for writing.
    """
    with reported(path, "cannot be opened for writing"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError as error:
            raise StorageError(path, "its directory is gone", error) from error
    try:
        with reported(path, "cannot be locked"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, _LOCK_BYTES, 0).strip()
                raise IndexLocked(path, int(holder) if holder.isdigit() else None) from None
            # The content only names the holder to others: a full disk, where it cannot be written, stops nobody.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile shares it, and would go on
        os.close(descriptor)


class Hold:
    """A reader's claim to a file, which `held` sees; it ends with `release`, with the object, or with the process."""

    def __init__(self, path: Path) -> None:
        """Claims the file.

        Raises:
            FileNotFoundError: There is no such file.
            StorageError: It cannot be opened or locked.
        """
        with reported(path, "cannot be held"):
            descriptor = _open_regular(path)
            self._close = weakref.finalize(self, os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # Whoever has it to themselves is removing it: for a reader it is gone.
                self.release()
                raise FileNotFoundError(f"{path} is being removed") from None
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Gives up the claim; once is enough, more often does no harm."""
        self._close()


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether no reader holds a file; while the context lasts, none can begin to. It is held if that cannot be told."""
    try:
        descriptor = _open_regular(path)
    except (FileNotFoundError, NotADirectoryError, IndexCorrupt):
        yield True  # nothing that a reader could have opened
        return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
