"""Pool: the examples of an index, in SQLite, as append-only rows.

Rows are never rewritten. Each carries the revision that added it and, once removed, the revision that removed it, so
that a reader which stays at its revision goes on seeing exactly what it saw. `visible` is the newest revision that
readers may see; a build writes its rows under the next revision and makes them visible when its generation is
published, an add or a removal does both in one transaction. Rows of a revision that never became visible are what an
interrupted build left behind; the next writer drops them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retriever.errors import IndexCorrupt, IndexLocked, InvalidInput
from retriever.example import Example

_CHUNK = 500
_SELECT = "SELECT row, id, payload, hash FROM examples "
_REPAIR = "restore the index from a copy"


@dataclass(frozen=True)
class PoolRow:
    """An example as it stands in the pool.

    Attributes:
        row: Its number, ascending in the order of addition; never used again.
        example: The example.
    """

    row: int
    example: Example


@dataclass(frozen=True)
class Changes:
    """What became visible after a revision.

    Attributes:
        added: The rows added since and not removed again, ascending.
        removed: The numbers of rows that were there and are no longer, ascending.
    """

    added: tuple[PoolRow, ...]
    removed: tuple[int, ...]


def payload(example: Example) -> str:
    """The JSON text that is stored for an example."""
    return json.dumps(example.to_dict(), ensure_ascii=False, allow_nan=False)


def row_hash(row: int, identity: str, text: str) -> str:
    """The SHA-256 that a row is checked against: over its number, its id and its payload."""
    return hashlib.sha256(f"{row}\x1f{identity}\x1f{text}".encode()).hexdigest()


class Pool:
    """The examples of an index.

    Args:
        path: The SQLite file.
        create: Whether to make the file and its tables.

    Raises:
        IndexCorrupt: The file is missing or is no pool.
        IndexLocked: Another process has kept the file to itself for half a minute.
        InvalidInput: The directory cannot be written, and changes are waiting there to be taken into the file.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise IndexCorrupt(path, "is missing", fix="restore the index from a copy, or build it again")
        read_only = not create and not os.access(path.parent, os.W_OK)
        with self._reported():
            self._connection = _connect_read_only(path) if read_only else _connect(path)
            if create:
                self._create_tables()
            self.visible()

    def close(self) -> None:
        """Closes the connection; the pool is not usable afterwards."""
        self._connection.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise IndexLocked(self.path, None) from error
            raise IndexCorrupt(self.path, f"SQLite says: {error}", fix=_REPAIR) from error

    def _create_tables(self) -> None:
        from sqlite_utils import Database

        database = Database(self._connection)
        database.table("examples").create(
            {
                "row": int,
                "id": str,
                "version": int,
                "payload": str,
                "hash": str,
                "added": int,
                "removed": int,
            },
            pk="row",
            not_null={"id", "version", "payload", "hash", "added"},
            if_not_exists=True,
        )
        database.table("vectors").create({"row": int, "vector": bytes}, pk="row", if_not_exists=True)
        database.table("state").create({"key": str, "value": int}, pk="key", if_not_exists=True)
        database.execute("CREATE INDEX IF NOT EXISTS examples_id ON examples (id)")
        database.execute("CREATE INDEX IF NOT EXISTS examples_removed ON examples (removed) WHERE removed IS NOT NULL")
        database.execute("INSERT OR IGNORE INTO state VALUES ('visible', 0)")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and durable at the end."""
        with self._reported():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _query(self, sql: str, *parameters: object) -> Iterator[tuple[object, ...]]:
        with self._reported():
            # `map`, because to give up reading would otherwise close the cursor, an error once the pool is closed.
            yield from map(tuple, self._connection.execute(sql, parameters))

    def visible(self) -> int:
        """The newest revision that readers may see; 0 before the first build has finished."""
        found = next(self._query("SELECT value FROM state WHERE key = 'visible'"), None)
        if found is None or not isinstance(found[0], int):
            raise IndexCorrupt(self.path, "holds no revision", fix=_REPAIR)
        return found[0]

    # Writing; the caller holds the lock of the index.

    def drop_unpublished(self, published: int) -> None:
        """Removes the rows, and undoes the removals, of revisions that never became visible.

        Args:
            published: The revision of the current generation; what it holds is visible even if the process ended before
                it could say so here.
        """
        newest = max(published, self.visible())
        with self._transaction() as connection:
            connection.execute("DELETE FROM vectors WHERE row IN (SELECT row FROM examples WHERE added > ?)", [newest])
            connection.execute("DELETE FROM examples WHERE added > ?", [newest])
            connection.execute("UPDATE examples SET removed = NULL WHERE removed > ?", [newest])
            connection.execute("UPDATE state SET value = ? WHERE key = 'visible'", [newest])

    def stage(self, examples: Iterable[Example], *, replace: bool) -> int:
        """Writes the examples of a build under the next revision, which stays invisible until `publish`.

        Args:
            examples: Their ids are distinct.
            replace: Whether they take the place of everything that is there.

        Returns:
            The revision.
        """
        revision = self.visible() + 1
        with self._transaction() as connection:
            if replace:
                connection.execute("UPDATE examples SET removed = ? WHERE removed IS NULL", [revision])
            self._insert(examples, revision)
        return revision

    def publish(self, revision: int, *, vectors_kept_after: int) -> None:
        """Makes a staged revision visible and drops the vectors that generations now hold.

        Args:
            revision: What `stage` gave.
            vectors_kept_after: Vectors of rows added after this revision stay; the generation before the current one
                needs them if it has to answer in its place.
        """
        with self._transaction() as connection:
            connection.execute("UPDATE state SET value = max(value, ?) WHERE key = 'visible'", [revision])
            connection.execute(
                "DELETE FROM vectors WHERE row IN (SELECT row FROM examples WHERE added <= ?)", [vectors_kept_after]
            )

    def change(self, added: Sequence[Example], vectors: NDArray[np.float32], removed: Sequence[str] = ()) -> int:
        """Removes and adds examples, in this order and in one transaction, visible and durable when it returns.

        Args:
            added: The examples; their ids are not in the pool, or among `removed`.
            vectors: Their vectors, float32, shape (len(added), dim).
            removed: Ids of examples in the pool.

        Returns:
            The revision.

        Raises:
            InvalidInput: An id to remove is not in the pool, or one to add is.
        """
        revision = self.visible() + 1
        with self._transaction() as connection:
            rows = self.rows_of(removed)
            missing = [identity for identity in removed if identity not in rows]
            if missing:
                raise InvalidInput(f"no example with the id {missing[0]!r}", expected="ids of examples in the pool")
            for row in rows.values():
                connection.execute("UPDATE examples SET removed = ? WHERE row = ?", [revision, row])
            known = self.rows_of([example.id for example in added])
            if known:
                raise InvalidInput(f"the pool already holds an example with the id {next(iter(known))!r}")
            first = self._insert(added, revision)
            connection.executemany(
                "INSERT INTO vectors (row, vector) VALUES (?, ?)",
                ((first + i, vector.tobytes()) for i, vector in enumerate(vectors)),
            )
            connection.execute("UPDATE state SET value = ? WHERE key = 'visible'", [revision])
        return revision

    def _insert(self, examples: Iterable[Example], revision: int) -> int:
        """Appends rows inside a transaction and returns the number of the first one."""
        first = 1 + _integer(next(self._query("SELECT coalesce(max(row), 0) FROM examples"))[0])

        def record(row: int, example: Example) -> tuple[object, ...]:
            text = payload(example)
            return row, example.id, text, row_hash(row, example.id, text), revision

        self._connection.executemany(
            "INSERT INTO examples (row, id, version, payload, hash, added) VALUES"
            " (?1, ?2, 1 + (SELECT coalesce(max(version), 0) FROM examples WHERE id = ?2), ?3, ?4, ?5)",
            (record(row, example) for row, example in enumerate(examples, start=first)),
        )
        return first

    # Reading

    def rows_of(self, ids: Sequence[str], revision: int | None = None) -> dict[str, int]:
        """The row numbers of those ids that are in the pool at a revision, by default the newest one written."""
        alive = "removed IS NULL"
        if revision is not None:
            alive = f"added <= {revision:d} AND (removed IS NULL OR removed > {revision:d})"
        sql = f"SELECT id, row FROM examples WHERE {alive} AND id IN ({{}})"
        return {str(identity): _integer(row) for identity, row in self._query_in(sql, ids)}

    def examples(self, revision: int) -> Iterator[PoolRow]:
        """The examples at a revision, by ascending row."""
        sql = "WHERE added <= ?1 AND (removed IS NULL OR removed > ?1) ORDER BY row"
        return (self._parsed(*found) for found in self._query(_SELECT + sql, revision))

    def fetch(self, rows: Sequence[int]) -> list[Example]:
        """The examples of some rows, in the given order, removed ones included.

        Raises:
            IndexCorrupt: A row is not there, or is not what was written.
        """
        parsed = (self._parsed(*found) for found in self._query_in(_SELECT + "WHERE row IN ({})", rows))
        found = {pool_row.row: pool_row.example for pool_row in parsed}
        missing = [row for row in rows if row not in found]
        if missing:
            raise IndexCorrupt(self.path, f"row {missing[0]} is missing", fix=_REPAIR)
        return [found[row] for row in rows]

    def changes(self, since: int, until: int) -> Changes:
        """What became visible after one revision and up to another."""
        added = _SELECT + "WHERE added > ?1 AND added <= ?2 AND (removed IS NULL OR removed > ?2) ORDER BY row"
        removed = "SELECT row FROM examples WHERE removed > ?1 AND removed <= ?2 AND added <= ?1 ORDER BY row"
        return Changes(
            tuple(self._parsed(*found) for found in self._query(added, since, until)),
            tuple(_integer(row) for (row,) in self._query(removed, since, until)),
        )

    def vectors(self, rows: Sequence[int], dim: int) -> dict[int, NDArray[np.float32]]:
        """The stored vectors of some rows; a row without one is left out."""
        found: dict[int, NDArray[np.float32]] = {}
        for row, blob in self._query_in("SELECT row, vector FROM vectors WHERE row IN ({})", rows):
            if not isinstance(blob, bytes) or len(blob) != 4 * dim:
                raise IndexCorrupt(self.path, f"the vector of row {row} is damaged", fix=_REPAIR)
            found[_integer(row)] = np.frombuffer(blob, dtype=np.float32)
        return found

    def _query_in(self, sql: str, values: Sequence[object]) -> Iterator[tuple[object, ...]]:
        """A query with `IN ({})`, asked in pieces that SQLite takes."""
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            yield from self._query(sql.format(",".join("?" * len(chunk))), *chunk)

    def _parsed(self, row: object, identity: object, text: object, digest: object) -> PoolRow:
        number = _integer(row)
        if row_hash(number, str(identity), str(text)) != digest:
            raise IndexCorrupt(self.path, f"row {number} does not match its hash", fix=_REPAIR)
        return PoolRow(number, Example(**json.loads(str(text))))


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    # Acknowledged means durable: the default of WAL, NORMAL, may lose the last commits with the power.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """For an index on a medium that cannot be written, where SQLite could not even make its shared-memory file."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise InvalidInput(
            f"{log} holds changes that are not in {path.name} yet, and {path.parent} cannot be written",
            fix="open the index once where it can be written",
        )
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _integer(value: object) -> int:
    """An integer column's value; SQLite may give back any type."""
    return value if isinstance(value, int) else int(str(value))
