"""The partial file: the records of an export that is not finished, so that it can go on after an interruption.

`OUT.partial` stands beside the target and is JSON Lines, whatever the target's format is:

    {"partial_export":1,"form":"demos","recipe":{...},...}      what the records are made from
    {"query":"<SHA-256>","record":{...}}                        a query, by the digest of its content, and its record
    ...

A record is worth keeping only when all that decides it is unchanged. So the first line must be exactly what the export
that goes on would write itself, and every query must come again as it was. What a crash left half-written at the end
is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from indexes import files
from retriever.errors import InvalidInput, StorageError
from retriever.example import Example, Json, render
from retriever.formats import open_writer
from retriever.formats.values import short
from retriever.formats.writers import WriterFormat, json_line
from retriever.listening import Note, Progress

SUFFIX = ".partial"
SYNC_SECONDS = 2.0
"""How much work a power cut may cost; an end of the process alone costs at most the record being written."""

_VERSION = 1
_MAGIC = b'{"partial_export":'
_START = b'{"query":"'
_MIDDLE = b'","record":'
_RECORD_AT = len(_START) + 64 + len(_MIDDLE)  # where the record begins in its line; it ends before `}` and LF
_SHOWN_DIFFERENCES = 3
_UNREAD = "cannot be read"
_UNWRITTEN = "could not be written"
_START_OVER = "run without --resume to start over"


class Partial:
    """A partial file that is open, locked and positioned at its end. Made by `open_partial`.

    Args:
        path: Where it is.
        file: Open for reading and writing, unbuffered.
        body: Where the first record begins.
        count: How many records it holds.
    """

    def __init__(self, path: Path, file: io.FileIO, body: int, count: int) -> None:
        self.path = path
        self.count = count
        self._file = file
        self._body = body
        self._synced = time.monotonic()

    def write(self, query: Example, record: Mapping[str, Json]) -> None:
        """Appends the record of a query.

        Raises:
            InvalidInput: The record holds what is no JSON.
            StorageError: The disk is full or failed.
        """
        line = _START + query_digest(query).encode() + _MIDDLE + json_line(record)[:-1] + b"}\n"
        with _reported(self.path, _UNWRITTEN):
            _write_all(self._file, line)
            self.count += 1
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def publish(self, target: Path, kind: WriterFormat) -> None:
        """Makes the target from the records: under another name first, which is flushed and then renamed.

        Raises:
            InvalidInput: The format cannot hold a record.
            StorageError: The disk is full or failed.
        """
        temporary = target.with_name(f".{target.name}{SUFFIX}.tmp")
        files.remove(temporary)  # of a process that was killed: the lock says that nobody writes it now
        try:
            with _reported(target, _UNWRITTEN):
                with temporary.open("xb") as file:
                    self._convert(file, kind)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
        finally:
            files.remove(temporary)
        files.sync_directory(target.parent)

    def _convert(self, file: BinaryIO, kind: WriterFormat) -> None:
        records = (line[_RECORD_AT:-2] for line in _lines(self.path, self._body))
        if kind == "jsonl":  # the bytes are those already
            file.writelines(record + b"\n" for record in records)
            return
        with open_writer(file, kind) as writer:
            for record in records:
                writer.write(json.loads(record))


@contextlib.contextmanager
def open_partial(
    target: Path,
    made_from: Mapping[str, Json],
    queries: Iterator[Example],
    *,
    resume: bool,
    note: Note,
    progress: Progress,
) -> Iterator[Partial]:
    """The partial file of a target, for one export at a time.

    It is removed when the block ends well, or badly without a record; otherwise it stays.

    Args:
        target: What is exported to.
        made_from: All that decides the records beside the queries.
        queries: With `resume`, those that are answered are taken from it.
        resume: Whether to go on with a partial file that is there; otherwise it is replaced, with a note.
        note: Told in one line what a reader should know.
        progress: Told how many answered queries are read again.

    Raises:
        InvalidInput: Another export is writing; the file is something else; it was made from something else, or for
            other queries. It is left as it was then.
        StorageError: The disk is full or failed.
    """
    path = target.with_name(target.name + SUFFIX)
    header = json_line({"partial_export": _VERSION, **made_from})
    with _locked(path) as file:
        _check_ours(path, file)
        if resume and _check_header(path, header):
            count, end = _skip(path, len(header), queries, note, progress)
        else:
            _note_replaced(path, header, note)
            count = end = 0
        partial = Partial(path, file, len(header), count)
        try:
            with _reported(path, _UNWRITTEN):
                file.truncate(end)
                file.seek(end)
                if end == 0:
                    _write_all(file, header)
            yield partial
        except BaseException:
            if partial.count:
                note(f"{partial.count:,} records are kept in {path}; --resume goes on after them")
            else:
                files.remove(path)
            raise
        if not files.remove(path):
            note(f"{path} is not needed any more and could not be removed")


def query_digest(query: Example) -> str:
    """What a query is recognised by: the SHA-256 of its content as JSON, in its own order of keys, in hexadecimal.

    Raises:
        InvalidInput: The query holds what is no JSON.
    """
    return hashlib.sha256(json_line(query.to_dict())).hexdigest()


@contextlib.contextmanager
def _reported(path: Path, doing: str) -> Iterator[None]:
    """What the operating system refuses, as a `StorageError`: a file or folder that has vanished, too."""
    try:
        with files.reported(path, doing):
            yield
    except FileNotFoundError as error:
        raise StorageError(path, doing, error) from error


def _lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines of a file from an offset on."""
    with _reported(path, _UNREAD), path.open("rb") as file:
        file.seek(start)
        yield from file


def _write_all(file: io.FileIO, content: bytes) -> None:
    """Unbuffered, so that a killed process loses nothing that it has counted."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[io.FileIO]:
    """The file, made if need be, with an exclusive lock that ends with the process."""
    while True:
        with _reported(path, "cannot be opened for writing"):
            file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        with file:
            with _reported(path, "cannot be locked"):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InvalidInput(
                        f"another export is writing to {path.name.removesuffix(SUFFIX)} now",
                        fix="wait for it to finish, or write to another name",
                    ) from None
                ours = _is_at(path, file.fileno())
            if ours:
                yield file
                return


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still has its name: an export that finished in between has removed it."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _check_ours(path: Path, file: io.FileIO) -> None:
    """Refuses to overwrite what only happens to have the name; a header that was cut short is ours."""
    with _reported(path, _UNREAD):
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            start = file.read(len(_MAGIC))
            if start == _MAGIC[: len(start)]:
                return
    raise InvalidInput(
        f"{path} is there and was not written by an export", fix="move it away, or write to another name"
    )


def _check_header(path: Path, header: bytes) -> bool:
    """Whether there are records to go on from: False when not even the header was completed.

    Raises:
        InvalidInput: They were made from something else.
        StorageError: The file cannot be read.
    """
    found = next(_lines(path), b"")
    if found == header:
        return True
    if not found.endswith(b"\n"):
        return False
    try:
        seen = json.loads(found)
    except ValueError:
        raise InvalidInput(f"the first line of {path} is damaged", fix=_START_OVER) from None
    seen, wanted = dict(_flat("", seen)), dict(_flat("", json.loads(header)))
    names = [name for name in {**wanted, **seen} if seen.get(name) != wanted.get(name)]
    raise InvalidInput(f"{path} was made with {_values(names, seen)}", expected=_values(names, wanted), fix=_START_OVER)


def _flat(name: str, value: Json) -> Iterator[tuple[str, str]]:
    """The values in nested objects by dotted path, as text."""
    if isinstance(value, dict) and value:
        for key, inside in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inside)
    else:
        yield name, render(value)


def _values(names: list[str], values: Mapping[str, str]) -> str:
    shown = [f"{name} {short(values[name]) if name in values else 'absent'}" for name in names[:_SHOWN_DIFFERENCES]]
    return ", ".join(shown + [f"{len(names) - len(shown)} more"] * (len(names) > len(shown)))


def _skip(
    path: Path,
    body: int,
    queries: Iterator[Example],
    note: Note,
    progress: Progress,
) -> tuple[int, int]:
    """Takes the queries that are answered; returns how many they are, and where the whole records end.

    Raises:
        InvalidInput: A query is another one than the record was written for.
        StorageError: The file cannot be read.
    """
    count, end = 0, body
    for line in _lines(path, body):
        entry = _entry(line)
        if entry is None:
            break
        _check_query(path, count + 1, entry, next(queries, None))
        count, end = count + 1, end + len(line)
        progress("reading again", count, 0)
    with _reported(path, _UNREAD):
        cut = path.stat().st_size - end
    if cut:
        note(f"the last {cut:,} bytes of {path} are no whole record and were cut off")
    return count, end


def _entry(line: bytes) -> dict[str, Json] | None:
    """The content of a line; None when it was not written whole, as a crash leaves it."""
    if not (line.startswith(_START) and line[_RECORD_AT - len(_MIDDLE) : _RECORD_AT] == _MIDDLE and line[-1:] == b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("record"), dict) else None


def _check_query(path: Path, number: int, entry: Mapping[str, Json], query: Example | None) -> None:
    if query is not None and query_digest(query) == entry["query"]:
        return
    record = entry["record"]
    assert isinstance(record, dict)
    answered = short(str(record.get("query_id", record.get("custom_id"))))
    raise InvalidInput(
        f"query {number} is {'absent' if query is None else short(query.id)}",
        expected=f"{answered} as it was when {path} was written",
        fix=_START_OVER,
    )


def _note_replaced(path: Path, header: bytes, note: Note) -> None:
    """Says so when hours of work may be about to go."""
    lines = _lines(path)
    matches = next(lines, b"") == header
    count = sum(line.endswith(b"\n") for line in lines)
    if count:
        hint = "; --resume would have gone on after them" if matches else ""
        note(f"starting over: {count:,} records of an interrupted export in {path} are replaced{hint}")
