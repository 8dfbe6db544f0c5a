"""Delimited text cut into records: RFC 4180 quoting, bounded memory, and recovery after a stray quote.

Python's `csv` reads on past an unclosed quote and stops at a large field, so that one bad record takes its
neighbours with it. Here every physical line ends up in a record or in a reported problem:

- A quote opens a quoted field only at the start of a field; elsewhere in an unquoted field it is a character.
- In a quoted field a quote is written twice, and a line end belongs to the field.
- Where a quoted field is not closed properly, the physical line that opened the record is the problem, and reading
  goes on with the very next line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from retriever.formats.values import RowError

_QUOTE = b'"'
_MAX_LINES = 500_000  # in one record: a hostile run of empty lines must not outgrow `row_bytes` as objects


@dataclass(frozen=True, slots=True)
class Line:
    """A physical line with its line end.

    Attributes:
        number: Counted from 1.
        content: Its bytes; None when it is longer than a row may be.
    """

    number: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Record:
    """A record, or why there is none.

    Attributes:
        line: The physical line where it starts, counted from 1.
        cells: The fields, unquoted, not decoded.
        problem: Why the record cannot be used; empty when it can.
    """

    line: int
    cells: tuple[bytes, ...] = ()
    problem: str = ""


def split_records(lines: Iterable[Line], delimiter: bytes, row_bytes: int) -> Iterator[Record]:
    """The records of a delimited text; empty lines between records are skipped.

    Args:
        lines: The physical lines, cut at LF only.
        delimiter: One byte.
        row_bytes: The most bytes a record may have.
    """
    queue = _Queue(lines)
    for first in queue:
        if first.content is None:
            yield Record(first.number, problem=f"the line has more than {row_bytes} bytes")
        elif first.content.rstrip(b"\r\n"):
            yield _record(first.number, first.content, queue, delimiter, row_bytes)


class _Queue:
    """Lines that can be put back in front."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._incoming = iter(lines)
        self._waiting: deque[Line] = deque()

    def __iter__(self) -> _Queue:
        return self

    def __next__(self) -> Line:
        return self._waiting.popleft() if self._waiting else next(self._incoming)

    def put_back(self, lines: list[Line]) -> None:
        self._waiting.extendleft(reversed(lines))


def _record(number: int, content: bytes, queue: _Queue, delimiter: bytes, row_bytes: int) -> Record:
    cells = _Cells(delimiter)
    taken: list[Line] = []
    held = len(content)
    try:
        cells.feed(content)
        while cells.open is not None:
            line = next(queue, None)
            if line is None:
                raise RowError("a quoted field is never closed")
            taken.append(line)
            held += row_bytes if line.content is None else len(line.content)
            if line.content is None or held > row_bytes or len(taken) > _MAX_LINES:
                raise RowError(f"a quoted field is not closed within {row_bytes} bytes or {_MAX_LINES} lines")
            cells.feed(line.content)
    except RowError as error:
        # Linear in total: the lines put back hold no quote that could open a field across lines, save the last one.
        queue.put_back(taken)
        return Record(number, problem=str(error))
    return Record(number, tuple(cells.done))


class _Cells:
    """The fields of a record as its physical lines come in.

    Attributes:
        done: The complete fields.
        open: The parts of a quoted field that goes on in the next line; None between fields.
    """

    def __init__(self, delimiter: bytes) -> None:
        self.done: list[bytes] = []
        self.open: list[bytes] | None = None
        self._delimiter = delimiter

    def feed(self, line: bytes) -> None:
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if self.open is None and _QUOTE not in text:
            self.done += text.split(self._delimiter)
            return
        at: int | None = 0
        while at is not None:
            at = self._unquoted(text, at) if self.open is None else self._quoted(line, text, at)

    def _unquoted(self, text: bytes, at: int) -> int | None:
        """Take one unquoted field or open a quoted one; where to go on, None at the end of the line."""
        if text.startswith(_QUOTE, at):
            self.open = []
            return at + 1
        end = text.find(self._delimiter, at)
        self.done.append(text[at:end] if end >= 0 else text[at:])
        return end + 1 if end >= 0 else None

    def _quoted(self, line: bytes, text: bytes, at: int) -> int | None:
        """Take the rest of a quoted field, or its part up to a doubled quote; where to go on, None at the end."""
        assert self.open is not None
        end = text.find(_QUOTE, at)
        if end < 0:
            self.open.append(line[at:])
            return None
        if text.startswith(_QUOTE, end + 1):
            self.open.append(text[at : end + 1])
            return end + 2
        self.open.append(text[at:end])
        self.done.append(b"".join(self.open))
        self.open = None
        if end + 1 == len(text):
            return None
        if not text.startswith(self._delimiter, end + 1):
            raise RowError("text after a closing quote; a quote inside a quoted field is written twice")
        return end + 2
