"""SQLite as this project uses it: connections that do not trust the file, and errors by their cause."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from retriever.errors import IndexCorrupt, IndexLocked, InvalidInput, RetrieverError, StorageError

Result = TypeVar("Result")

_PATIENCE = 30.0
_PAUSE = 0.01
_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: 0,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


def _index_damaged(path: Path, reason: str) -> RetrieverError:
    return IndexCorrupt(path, reason, fix="restore the index from a copy")


@contextlib.contextmanager
def reported(path: Path, damaged: Callable[[Path, str], RetrieverError] = _index_damaged) -> Iterator[None]:
    """What SQLite raises, by cause.

    Args:
        path: The file.
        damaged: From the file and what is wrong with it to the error that says so; an index's, if it is left out.

    Raises:
        IndexCorrupt: The file is damaged, or is no database; or what `damaged` gives.
        IndexLocked: Another process has kept it to itself for too long.
        StorageError: The operating system refuses.
        InvalidInput: The connection was closed.
    """
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise InvalidInput(f"{path.parent} was closed: {error}", fix="open it again") from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexLocked(path, None) from error
        if code & 0xFF in _UNAVAILABLE and code != sqlite3.SQLITE_IOERR_SHORT_READ:
            number = _UNAVAILABLE[code & 0xFF] or _why_not_opened(path)
            reason = OSError(number, f"SQLite says: {error}")
            raise StorageError(path, "cannot be read or written", reason) from error
        raise damaged(path, f"SQLite says: {error}") from error


def _why_not_opened(path: Path) -> int:
    """The operating system's reason for not opening a file, which SQLite does not pass on; 0 when it opens now."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0


def patiently(work: Callable[[], Result]) -> Result:
    """Does what may be done again, until no other process is in the way, for half a minute at most.

    SQLite waits by itself, but not while a reader rolls back what a killed writer left of its very first transaction.

    Raises:
        sqlite3.OperationalError: As from the work; that the file is busy, only at the end.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """A connection in WAL mode; one that is not writable refuses to write."""
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    if writable:
        patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        # Acknowledged means durable: the default of WAL, NORMAL, may lose the last commits with the power.
        connection.execute("PRAGMA synchronous = FULL")
    else:
        connection.execute("PRAGMA query_only = ON")
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """For an index on a medium that cannot be written, where SQLite could not even make its shared-memory file."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise InvalidInput(
            f"{log} holds changes that are not in {path.name} yet, and {path.parent} cannot be written",
            fix="open the index once where it can be written",
        )
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
