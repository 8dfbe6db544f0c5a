"""SQLite: each failure by its cause, and connections that do not trust the file."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from retriever.errors import IndexCorrupt, IndexLocked, InvalidInput, RetrieverError, StorageError
from retriever.sqlite import connect, connect_read_only, reported


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "pool.sqlite"
    connection = connect(path, writable=True)
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y TEXT)")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t (y) VALUES (?)", [("text" * 100,)] * 200)
    connection.execute("COMMIT")
    connection.close()
    return path


def opened(path, *, writable: bool = True) -> sqlite3.Connection:
    with reported(path):
        return connect(path, writable=writable)


def read_all(path) -> int:
    connection = opened(path, writable=False)
    try:
        with reported(path):
            return len(connection.execute("SELECT * FROM t").fetchall())
    finally:
        connection.close()


def test_a_database_that_another_keeps_to_itself_is_locked(path):
    first, second = opened(path), opened(path)
    first.execute("BEGIN IMMEDIATE")
    second.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(IndexLocked) as caught, reported(path):
        second.execute("BEGIN IMMEDIATE")
    assert (caught.value.pid, caught.value.exit_code) == (None, 6)
    assert str(path.parent) in str(caught.value)
    first.close()
    second.close()


def test_a_full_disk_is_the_operating_systems_refusal_and_leaves_the_data(path):
    connection = opened(path)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageError, match="database or disk is full") as caught, reported(path):
        connection.executemany("INSERT INTO t (y) VALUES (?)", [("more" * 100,)] * 200)
    assert caught.value.errno == errno.ENOSPC
    assert "free some space" in caught.value.fix
    assert caught.value.path == path
    connection.close()
    assert read_all(path) >= 200


def test_what_is_no_database_is_corrupt(tmp_path):
    path = tmp_path / "pool.sqlite"
    path.write_bytes(b"not a database, and long enough to be read as a header" * 40)
    with pytest.raises(IndexCorrupt, match="file is not a database") as caught:
        read_all(path)
    assert (caught.value.path, caught.value.exit_code) == (path, 4)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_a_truncated_database_is_corrupt(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(IndexCorrupt) as caught:
        read_all(path)
    assert caught.value.path == path


def test_a_missing_table_is_corrupt(path):
    connection = opened(path)
    with pytest.raises(IndexCorrupt, match="no such table: u"), reported(path):
        connection.execute("SELECT * FROM u")
    connection.close()


def test_a_closed_connection_is_the_callers_mistake(path):
    connection = opened(path)
    connection.close()
    with pytest.raises(InvalidInput, match=r"was closed.*open it again"), reported(path):
        connection.execute("SELECT 1")


def test_a_directory_in_place_of_the_file_cannot_be_opened(tmp_path):
    with pytest.raises(StorageError, match="unable to open database file") as caught:
        opened(tmp_path)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (sqlite3.SQLITE_FULL, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR_WRITE, errno.EIO),
        (sqlite3.SQLITE_IOERR_FSYNC, errno.EIO),
        (sqlite3.SQLITE_READONLY_DIRECTORY, errno.EROFS),
        (sqlite3.SQLITE_PERM, errno.EACCES),
        (sqlite3.SQLITE_NOMEM, errno.ENOMEM),
    ],
)
def test_extended_codes_are_told_by_their_family(path, code, number):
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorcode = code
    with pytest.raises(StorageError, match="as SQLite says") as caught, reported(path):
        raise error
    assert caught.value.errno == number


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ])
def test_what_the_file_lacks_is_damage_and_no_refusal(path, code):
    error = sqlite3.DatabaseError("as SQLite says")
    error.sqlite_errorcode = code
    with pytest.raises(IndexCorrupt, match="as SQLite says"), reported(path):
        raise error


def test_other_errors_pass(path):
    for error in (ValueError("mine"), KeyboardInterrupt(), RetrieverError("ours")):
        with pytest.raises(type(error)) as caught, reported(path):
            raise error
        assert caught.value is error


def test_a_reading_connection_refuses_to_write(path):
    connection = opened(path, writable=False)
    with pytest.raises(StorageError, match="attempt to write a readonly database"), reported(path):
        connection.execute("DELETE FROM t")
    connection.close()
    assert read_all(path) == 200


def test_what_is_acknowledged_is_flushed_and_the_schema_is_not_trusted(path):
    connection = opened(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
    connection.close()


def test_a_medium_that_cannot_be_written_is_read_without_a_trace(path):
    before = sorted(path.parent.iterdir())
    connection = connect_read_only(path)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (200,)
    with pytest.raises(StorageError), reported(path):
        connection.execute("DELETE FROM t")
    assert sorted(path.parent.iterdir()) == before
    connection.close()


def test_a_name_that_means_something_in_a_uri_is_a_name(tmp_path):
    path = tmp_path / "a?mode=rwc#b%20c.sqlite"
    sqlite3.connect(path).close()
    writer = sqlite3.connect(path)
    writer.execute("CREATE TABLE t (x)")
    writer.close()
    connection = connect_read_only(path)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()


def test_a_log_that_was_not_taken_in_yet_is_refused_on_such_a_medium_and_an_empty_one_is_not(path):
    log = path.with_name("pool.sqlite-wal")
    log.write_bytes(b"")
    connect_read_only(path).close()
    log.write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"holds changes that are not in pool\.sqlite yet"):
        connect_read_only(path)
