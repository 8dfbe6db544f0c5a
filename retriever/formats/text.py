"""Rows from text files: JSONL, a JSON array, CSV and TSV, plain or gzipped, from a file or standard input."""

from __future__ import annotations

import codecs
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from retriever.errors import InvalidInput
from retriever.formats.csv_records import Line, Record, split_records
from retriever.formats.values import Limits, Row, Unusable, kind, parse_json, short

_PIECE = 1024 * 1024


@dataclass(frozen=True)
class TextFile:
    """A text file to read.

    Attributes:
        path: None for standard input; a name that ends in `.gz` is unpacked.
        encoding: The canonical name of an encoding that extends ASCII.
        limits: How large a row may be.
    """

    path: Path | None
    encoding: str
    limits: Limits

    @property
    def name(self) -> str:
        """What messages call it."""
        return "stdin" if self.path is None else str(self.path)


def jsonl_rows(file: TextFile) -> Iterator[Row]:
    """One row per line that is not blank; only LF ends a line."""
    for line in _lines(file):
        if line.content is None:
            yield Row(line.number, Unusable(f"the line has more than {file.limits.row_bytes} bytes"))
        elif line.content.strip():
            text = _decoded(line.content.rstrip(b"\r\n"), file.encoding)
            yield Row(line.number, text if isinstance(text, Unusable) else _object(parse_json(text)))


def json_rows(file: TextFile) -> Iterator[Row]:
    """One row per element of the array; the file is read whole.

    Raises:
        InvalidInput: The file as a whole is not a JSON array.
    """
    with _stream(file) as stream:
        content = stream.read()
    text = _decoded(_without_bom(file, content), file.encoding)
    value = text if isinstance(text, Unusable) else parse_json(text)
    if not isinstance(value, list):
        raise InvalidInput(
            f"{file.name}: {value.reason if isinstance(value, Unusable) else kind(value)}",
            expected="a JSON array of objects",
            fix="name the format jsonl if each line is an object",
        )
    for number, item in enumerate(value, 1):
        yield Row(number, _object(item))


def delimited_rows(file: TextFile, delimiter: bytes) -> Iterator[Row]:
    """One row per record after the header row; every value is text, an empty one is None.

    Raises:
        InvalidInput: There is no usable header row.
    """
    records = split_records(_lines(file), delimiter, file.limits.row_bytes)
    names = _header(next(records, None), file)
    for record in records:
        yield Row(record.line, _cells(record, names, file))


def check_names(names: Iterable[object], where: str) -> None:
    """Refuse columns of the same name, of which only one would survive in a row.

    Raises:
        InvalidInput: Two columns have the same name.
    """
    seen: set[object] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"{where} has two columns named {short(str(name))}", fix="rename one of them")
        seen.add(name)


@contextmanager
def _stream(file: TextFile) -> Iterator[IO[bytes]]:
    """The open file; what goes wrong while it is open is an `InvalidInput`, too."""
    try:
        if file.path is None:
            yield sys.stdin.buffer
        elif file.path.suffix.lower() == ".gz":
            with gzip.open(file.path, "rb") as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            with file.path.open("rb") as stream:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{file.name} cannot be read: {error}", expected="a whole, readable file") from error


def _lines(file: TextFile) -> Iterator[Line]:
    """Physical lines, cut at LF only, a byte-order mark removed; an overlong one is passed over in pieces."""
    limit = file.limits.row_bytes
    with _stream(file) as stream:
        number = 0
        while content := stream.readline(limit + 1):
            number += 1
            whole = len(content) <= limit or content.endswith(b"\n")
            yield Line(number, (_without_bom(file, content) if number == 1 else content) if whole else None)
            while not whole:
                content = stream.readline(_PIECE)
                whole = not content or content.endswith(b"\n")


def _without_bom(file: TextFile, content: bytes) -> bytes:
    if file.encoding != "utf-8":
        return content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInput(f"{file.name} is UTF-16", expected="UTF-8", fix="convert the file to UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def _decoded(content: bytes, encoding: str) -> str | Unusable:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        other = "latin-1" if encoding == "utf-8" else "utf-8"
        return Unusable(
            f"not {encoding}: byte 0x{content[error.start]:02x} at position {error.start}; "
            f"name the encoding of the file, for example --encoding {other}"
        )


def _object(value: object) -> Mapping[str, object] | Unusable:
    return value if isinstance(value, dict | Unusable) else Unusable(f"{kind(value)}, expected an object")


def _header(record: Record | None, file: TextFile) -> list[str]:
    if record is None or record.problem:
        raise InvalidInput(f"{file.name}: {record.problem if record else 'nothing in it'}", expected="a header row")
    names: list[str] = []
    for cell in record.cells:
        name = _decoded(cell, file.encoding)
        if isinstance(name, Unusable):
            raise InvalidInput(f"{file.name}: the header row is {name.reason}")
        names.append(name)
    check_names(names, file.name)
    return names


def _cells(record: Record, names: list[str], file: TextFile) -> Mapping[str, object] | Unusable:
    if record.problem:
        return Unusable(record.problem)
    if len(record.cells) != len(names):
        return Unusable(f"{len(record.cells)} fields, expected {len(names)}")
    limit = file.limits.csv_field_bytes
    row: dict[str, object] = {}
    for name, cell in zip(names, record.cells, strict=True):
        if len(cell) > limit:
            return Unusable(f"field {short(name)}: {len(cell)} bytes, at most {limit} are allowed in CSV and TSV")
        row[name] = _decoded(cell, file.encoding) if cell else None
    return row
