"""Pool: the examples of an index, in SQLite, as append-only rows.

Rows are never rewritten. Each carries the revision that added it and, once removed, the revision that removed it, so
that a reader which stays at its revision goes on seeing exactly what it saw. Which revision is the newest that readers
may see is not decided here but by CURRENT, beside the pool: rows of a later revision are what an interrupted writer
left behind, and the next one drops them.

SQLite notices little of what a failing disk does to it: a damaged log is silently cut short, a damaged number is read
as it stands. So nothing it says is taken on trust. Every row has a hash, and every revision a digest that is chained to
the one before (`Link`): CURRENT holds the newest, each generation its own, and what lies between is checked when read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retriever.errors import IndexCorrupt
from retriever.example import Example
from retriever.revisions import Link, Revision, chain
from retriever.sqlite import connect, connect_read_only, patiently, reported

Change = TypeVar("Change")

_CHUNK = 500
_PAGE = 1000
_BEFORE_ALL = -(1 << 63)
_SELECT = "SELECT row, id, payload, hash FROM examples "
_REPAIR = "restore the index from a copy"
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "examples": ("row", "id", "version", "payload", "hash", "added", "removed"),
    "vectors": ("row", "vector"),
    "state": ("key", "value", "hash"),
}
_INDEXES = {"examples_id", "examples_removed"}


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
    """What the revisions after one and up to another have changed.

    Attributes:
        added: The rows that were added and not removed again, ascending.
        vectors: Their vectors, float32, shape (len(added), dim).
        removed: The numbers of rows that were there before and are no longer, ascending.
        last_row: The largest row number in use.
        chain: The digest of the newest of these revisions, worked out from what was read.
    """

    added: tuple[PoolRow, ...]
    vectors: NDArray[np.float32]
    removed: tuple[int, ...]
    last_row: int
    chain: str


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
        writable: Whether this connection may write; the caller then holds the lock of the index.

    Raises:
        IndexCorrupt: The file is missing or is no pool.
        IndexLocked: Another process has kept the file to itself for half a minute.
        InvalidInput: The directory cannot be written, and changes are waiting there to be taken into the file.
        StorageError: The operating system refuses.
    """

    def __init__(self, path: Path, *, create: bool = False, writable: bool = False) -> None:
        self.path = path
        self._reading = threading.Lock()
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise IndexCorrupt(path, "is not a regular file", fix=_REPAIR)
        if not create and not path.exists():
            raise IndexCorrupt(path, "is missing", fix="restore the index from a copy, or build it again")
        read_only = not create and not os.access(path.parent, os.W_OK)
        with reported(self.path):
            self._connection = connect_read_only(path) if read_only else connect(path, writable=create or writable)
        try:
            if create:
                with reported(self.path):
                    patiently(self._create_tables)
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection; the pool is not usable afterwards."""
        self._connection.close()

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
        database.table("state").create({"key": str, "value": str, "hash": str}, pk="key", if_not_exists=True)
        database.execute("CREATE INDEX IF NOT EXISTS examples_id ON examples (id)")
        database.execute("CREATE INDEX IF NOT EXISTS examples_removed ON examples (removed) WHERE removed IS NOT NULL")

    def _check_schema(self) -> None:
        """Refuses a file with other tables, and with triggers or views, which would be code that comes with data."""
        found = {(str(kind), str(name)) for kind, name in self._query("SELECT type, name FROM sqlite_master")}
        expected = {("table", name) for name in _COLUMNS} | {("index", name) for name in _INDEXES}
        # SQLite's own index for the primary key of `state`.
        if {one for one in found if not one[1].startswith("sqlite_autoindex_")} != expected:
            raise IndexCorrupt(self.path, f"holds {sorted(name for _, name in found)}", fix=_REPAIR)
        for table, columns in _COLUMNS.items():
            names = tuple(str(name) for (name,) in self._query(f"SELECT name FROM pragma_table_info('{table}')"))
            if names != columns:
                raise IndexCorrupt(self.path, f"the table {table} has the columns {names}", fix=_REPAIR)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and durable at the end."""
        with reported(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                # A full or failing disk makes SQLite roll back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _query(self, sql: str, *parameters: object) -> Iterator[tuple[object, ...]]:
        # All of it at once: while one statement of a connection is being read, others on it see the past as it does.
        with self._reading, reported(self.path):
            return iter(self._connection.execute(sql, parameters).fetchall())

    def _pages(self, sql: str, *parameters: object) -> Iterator[tuple[object, ...]]:
        """A query over any number of rows, by ascending row, a page at a time; rows never change in between."""
        last: object = _BEFORE_ALL
        while page := list(self._query(f"{sql} AND row > ? ORDER BY row LIMIT {_PAGE}", *parameters, last)):
            yield from page
            last = page[-1][0]

    # Writing; the caller holds the lock of the index.

    def settle(self, revision: Revision, about: Mapping[str, object]) -> None:
        """Drops what later revisions have written and never made visible, and notes what is visible.

        Args:
            revision: The newest one that readers may see.
            about: What a repair has to know should every generation be lost; see `about`.
        """
        newest = next(self._query("SELECT added FROM examples ORDER BY row DESC LIMIT 1"), (0,))
        removals = self._query("SELECT 1 FROM examples WHERE removed > ? LIMIT 1", revision.number)
        settled = self.head() == revision and self.about() == about
        if settled and self._integer(newest[0]) <= revision.number and next(removals, None) is None:
            return
        with self._transaction() as connection:
            later = "SELECT row FROM examples WHERE added > ?"
            connection.execute(f"DELETE FROM vectors WHERE row IN ({later})", [revision.number])
            connection.execute(f"DELETE FROM examples WHERE row IN ({later})", [revision.number])
            connection.execute("UPDATE examples SET removed = NULL WHERE removed > ?", [revision.number])
            if revision.number:
                self._note_head(revision)
                self._note_state("about", about)

    def stage(self, examples: Iterable[Example], after: Revision, *, replace: bool) -> Revision:
        """Writes the examples of a build under the next revision.

        Args:
            examples: Their ids are distinct.
            after: The newest revision.
            replace: Whether they take the place of everything that is there.
        """
        link = Link(after)
        with self._transaction() as connection:
            if replace:
                for (row,) in self._query("SELECT row FROM examples WHERE removed IS NULL ORDER BY row"):
                    link.remove(self._integer(row))
                connection.execute("UPDATE examples SET removed = ? WHERE removed IS NULL", [link.number])
            for digest in self._insert(examples, link.number):
                link.add(digest, None)
        return link.revision()

    def drop_vectors(self, until: Revision) -> None:
        """Drops the vectors of rows that were added up to a revision: the generations that are kept hold them."""
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM vectors WHERE row IN (SELECT row FROM vectors JOIN examples USING (row) WHERE added <= ?)",
                [until.number],
            )

    def reindex(self) -> None:
        """Makes SQLite's indexes anew: they hold nothing that the tables do not."""
        with reported(self.path):
            self._connection.execute("REINDEX")

    def change(
        self, added: Sequence[Example], vectors: NDArray[np.float32], removed: Sequence[int], after: Revision
    ) -> Revision:
        """Removes and adds examples in one transaction; durable when it returns, visible once CURRENT says so.

        Args:
            added: The examples; their ids are not in the pool, or those of `removed`.
            vectors: Their vectors, float32, shape (len(added), dim).
            removed: Numbers of rows in the pool.
            after: The newest revision.
        """
        link = Link(after)
        blobs = [vector.tobytes() for vector in vectors]
        with self._transaction() as connection:
            for row in sorted(removed):
                link.remove(row)
                connection.execute("UPDATE examples SET removed = ? WHERE row = ?", [link.number, row])
            first = self.last_row() + 1
            for digest, blob in zip(self._insert(added, link.number), blobs, strict=True):
                link.add(digest, blob)
            connection.executemany("INSERT INTO vectors (row, vector) VALUES (?, ?)", enumerate(blobs, start=first))
            self._note_head(link.revision())
        return link.revision()

    def _insert(self, examples: Iterable[Example], revision: int) -> Iterator[str]:
        """Appends rows inside a transaction and gives the hash of each."""
        for row, example in enumerate(examples, start=self.last_row() + 1):
            text = payload(example)
            digest = row_hash(row, example.id, text)
            self._connection.execute(
                "INSERT INTO examples (row, id, version, payload, hash, added) VALUES"
                " (?1, ?2, 1 + (SELECT coalesce(max(version), 0) FROM examples WHERE id = ?2), ?3, ?4, ?5)",
                (row, example.id, text, digest, revision),
            )
            yield digest

    def _note_head(self, revision: Revision) -> None:
        self._note_state("head", {"revision": revision.number, "chain": revision.chain})

    def _note_state(self, key: str, value: Mapping[str, object]) -> None:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", [key, text, _digest(key, text)])

    # Reading

    def head(self) -> Revision | None:
        """The newest revision that was written, visible or not; None when none was finished, or that is damaged."""
        state = self._state("head")
        return None if state is None else Revision(int(str(state["revision"])), str(state["chain"]))

    def about(self) -> dict[str, object] | None:
        """What `settle` was told to note; None when nothing was, or that is damaged."""
        return self._state("about")

    def _state(self, key: str) -> dict[str, object] | None:
        value, digest = next(self._query("SELECT value, hash FROM state WHERE key = ?", key), (None, None))
        if not isinstance(value, str) or digest != _digest(key, value):
            return None
        return dict(json.loads(value))

    def damaged_notes(self) -> list[str]:
        """The keys of what was noted and is not what was written."""
        found = self._query("SELECT key, value, hash FROM state ORDER BY key")
        return [str(key) for key, value, digest in found if digest != _digest(str(key), str(value))]

    def last_row(self) -> int:
        """The largest row number in use; 0 when there is none."""
        return self._integer(next(self._query("SELECT coalesce(max(row), 0) FROM examples"))[0])

    def size(self, revision: int) -> tuple[int, int]:
        """How many examples there are at a revision, and how many characters their payloads have."""
        sql = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM examples WHERE " + _ALIVE
        count, characters = next(self._query(sql, revision))
        return self._integer(count), self._integer(characters)

    def examples(self, revision: int) -> Iterator[PoolRow]:
        """The examples at a revision, by ascending row."""
        return (self._parsed(*found) for found in self._pages(f"{_SELECT}WHERE {_ALIVE}", revision))

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

    def changes(self, since: Revision, last_row: int, until: int, dim: int) -> Changes | None:
        """What the revisions after one and up to another have changed; the cost grows with that alone.

        Args:
            since: The revision to start from.
            last_row: The largest row number in use then.
            until: The number of the newest revision to take in.
            dim: Components of a vector.

        Returns:
            None when vectors of added rows are not in the pool.

        Raises:
            IndexCorrupt: A row is not what was written. The caller compares the chain.
        """
        added = self._added_rows(last_row, until)
        removed = self._removals(since.number, until)
        if any(not isinstance(vector, bytes) or len(vector) != 4 * dim for *_, vector in added):
            return None
        kept = [one for one in added if one[5] is None or self._integer(one[5]) > until]
        vectors = np.array([np.frombuffer(one[6], np.float32) for one in kept], np.float32)  # type: ignore[call-overload]
        return Changes(
            tuple(self._parsed(*one[:4]) for one in kept),
            vectors.reshape(len(kept), dim),
            tuple(sorted(row for _, row in removed if row <= last_row)),
            self._integer(added[-1][0]) if added else last_row,
            chain(since, until, _by_revision(removed), _by_revision(self._digests(added))),
        )

    def chain(self, since: Revision, last_row: int, until: int) -> str:
        """The digest of a revision as the rows give it; arguments as for `changes`.

        It is not the one that was written if a change is lost or altered, or if vectors of it were dropped.
        """
        added = self._digests(self._added_rows(last_row, until))
        return chain(since, until, _by_revision(self._removals(since.number, until)), _by_revision(added))

    def _added_rows(self, last_row: int, until: int) -> list[tuple[object, ...]]:
        return list(
            self._query(
                "SELECT examples.row, id, payload, hash, added, removed, vector FROM examples LEFT JOIN vectors"
                " USING (row) WHERE examples.row > ? AND added <= ? ORDER BY examples.row",
                last_row,
                until,
            )
        )

    def _removals(self, since: int, until: int) -> list[tuple[int, int]]:
        sql = "SELECT removed, row FROM examples WHERE removed > ? AND removed <= ? ORDER BY removed, row"
        return [(self._integer(when), self._integer(row)) for when, row in self._query(sql, since, until)]

    def vectors(self, dim: int) -> dict[int, NDArray[np.float32]]:
        """All vectors that are kept here, by row; one of another size is left out."""
        found = self._query("SELECT row, vector FROM vectors WHERE length(vector) = ?", 4 * dim)
        return {self._integer(row): np.frombuffer(vector, np.float32) for row, vector in found}  # type: ignore[call-overload]

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its own structures; nothing when all is well."""
        lines = [str(line) for (line,) in self._query("PRAGMA integrity_check(20)")]
        return [] if lines == ["ok"] else lines

    def damaged_rows(self) -> Iterator[str | None]:
        """Looks at every row ever written and says of each what is wrong with it; None for one that is intact."""
        for row, identity, text, digest in self._pages(_SELECT + "WHERE true"):
            try:
                self._parsed(row, identity, text, digest)
            except IndexCorrupt as error:
                yield error.seen.removeprefix(f"{self.path}: ")
            else:
                yield None

    def _digests(self, added: list[tuple[object, ...]]) -> Iterator[tuple[int, tuple[str, bytes | None]]]:
        for row, identity, text, _, when, _, vector in added:
            digest = row_hash(self._integer(row), str(identity), str(text))
            yield self._integer(when), (digest, vector if isinstance(vector, bytes) else None)

    def _query_in(self, sql: str, values: Sequence[object]) -> Iterator[tuple[object, ...]]:
        """A query with `IN ({})`, asked in pieces that SQLite takes."""
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            yield from self._query(sql.format(",".join("?" * len(chunk))), *chunk)

    def _parsed(self, row: object, identity: object, text: object, digest: object) -> PoolRow:
        number = self._integer(row)
        if row_hash(number, str(identity), str(text)) != digest:
            raise IndexCorrupt(self.path, f"row {number} does not match its hash", fix=_REPAIR)
        return PoolRow(number, Example(**json.loads(str(text))))

    def _integer(self, value: object) -> int:
        """An integer column's value; a damaged one can be of any type."""
        if not isinstance(value, int):
            raise IndexCorrupt(self.path, f"holds {str(value)[:80]!r}", expected="a whole number", fix=_REPAIR)
        return value


_ALIVE = "added <= ?1 AND (removed IS NULL OR removed > ?1)"


def _digest(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\x1f{text}".encode()).hexdigest()


def _by_revision(changes: Iterable[tuple[int, Change]]) -> dict[int, list[Change]]:
    grouped: dict[int, list[Change]] = {}
    for revision, change in changes:
        grouped.setdefault(revision, []).append(change)
    return grouped
