"""Rows from files and from data in memory, one after the other, nothing interpreted yet.

JSONL, CSV, TSV, Parquet and SQLite are streamed; a JSON array is read whole. Reading needs no write access.
"""

from __future__ import annotations

import codecs
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, cast

from retriever.errors import InvalidInput, MissingDependency
from retriever.formats.text import TextFile, check_names, delimited_rows, json_rows, jsonl_rows
from retriever.formats.values import Limits, Row, Unusable, kind, short


@dataclass(frozen=True)
class FileSource:
    """A file, and how it is read where its name does not tell.

    Attributes:
        path: Of the file; `-` for standard input.
        format: One of jsonl, json, csv, tsv, parquet, sqlite; None tells it from the suffix, and takes jsonl for
            standard input.
        table: The SQLite table or view; None when there is only one table.
        encoding: Of a text file.
    """

    path: str
    format: str | None = None
    table: str | None = None
    encoding: str = "utf-8"


Source: TypeAlias = "str | os.PathLike[str] | FileSource | Iterable[object]"

_TEXT_READERS: dict[str, Callable[[TextFile], Iterator[Row]]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": lambda file: delimited_rows(file, b","),
    "tsv": lambda file: delimited_rows(file, b"\t"),
}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
_FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
_BATCH = 1000


@dataclass(frozen=True)
class Rows:
    """The rows of a source, to be read once.

    Attributes:
        name: What messages call the source.
        rows: The rows; what is wrong with a single one stands in its place.
    """

    name: str
    rows: Iterator[Row]


def open_rows(source: Source, *, format: str | None, table: str | None, encoding: str, limits: Limits) -> Rows:
    """The rows of a file, of standard input, or of data in memory; see `retriever.formats.read_examples`.

    Raises:
        InvalidInput: The source cannot be read, or an option does not suit it.
    """
    if isinstance(source, str | os.PathLike):
        return _open_file(os.fspath(source), format, table, encoding, limits)
    named = format is not None or table is not None or encoding != "utf-8"
    if isinstance(source, FileSource):
        if named:
            raise InvalidInput("format, table or encoding beside a FileSource", fix="leave them out: it holds its own")
        return _open_file(source.path, source.format, source.table, source.encoding, limits)
    if named:
        raise InvalidInput(f"format, table or encoding for {_type(source)} in memory", fix="leave them out")
    return Rows(type(source).__name__, _memory_rows(source))


def _open_file(name: str, format: str | None, table: str | None, encoding: str, limits: Limits) -> Rows:
    path = None if name == "-" else Path(name)
    chosen = _format(path, format)
    text_file = TextFile(path, _checked_encoding(encoding), limits)
    if path is not None and (path.is_dir() or not path.exists()):
        raise InvalidInput(f"{name} is a directory" if path.is_dir() else f"there is no file {name}", expected="a file")
    if table is not None and chosen != "sqlite":
        raise InvalidInput(f"a table for {name}, which is {chosen}", fix="leave the table out")
    if chosen in _TEXT_READERS:
        return Rows(text_file.name, _TEXT_READERS[chosen](text_file))
    if path is None:
        raise InvalidInput(f"{chosen} on standard input", expected="a file")
    if text_file.encoding != "utf-8":
        raise InvalidInput(f"an encoding for {name}, which is {chosen}", fix="leave the encoding out")
    return Rows(name, _parquet_rows(path) if chosen == "parquet" else _sqlite_rows(path, table))


def _format(path: Path | None, format: str | None) -> str:
    if format is not None:
        found = _SUFFIXES.get(f".{format.lower()}")
        if found is None:
            raise InvalidInput(f"the format {short(format)}", expected=f"one of {', '.join(_FORMATS)}")
        return found
    if path is None:
        return "jsonl"
    name = path.name.lower()
    found = _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    if found is None or (name.endswith(".gz") and found not in _TEXT_READERS):
        raise InvalidInput(
            f"the format of {path} cannot be told from its name",
            expected=f"one of {', '.join(_SUFFIXES)}, the text formats also with .gz",
            fix=f"name the format (format=, --format): {', '.join(_FORMATS)}",
        )
    return found


def _checked_encoding(encoding: str) -> str:
    """The canonical name of an encoding in which line ends, commas and quotes are the bytes that they are in ASCII."""
    ascii_bytes = bytes(range(128))
    try:
        name = codecs.lookup(encoding).name
        extends_ascii = ascii_bytes.decode(name) == ascii_bytes.decode("ascii")
    except UnicodeError:
        extends_ascii = False
    except LookupError:
        raise InvalidInput(f"the encoding {short(encoding)}", expected="a text encoding that Python knows") from None
    if not extends_ascii:
        raise InvalidInput(
            f"the encoding {encoding}", expected="one that extends ASCII", fix="convert the file to UTF-8"
        )
    return "utf-8" if name == "utf-8-sig" else name


class _ArrowBatch(Protocol):
    num_rows: int

    def slice(self, offset: int, length: int) -> _ArrowBatch: ...

    def to_pylist(self) -> list[object]: ...


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingDependency("pyarrow", "parquet", purpose="reading Parquet") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_names(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=_BATCH):
                for value in _arrow_values(batch):
                    number += 1
                    yield Row(number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _arrow_values(batch: _ArrowBatch) -> list[object]:
    """The rows of a record batch; one that cannot be converted (broken UTF-8, the year 10,000) spoils no other."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [_arrow_value(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _arrow_value(batch: _ArrowBatch) -> object:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Unusable(f"a value that cannot be converted: {error}")


def _sqlite_rows(path: Path, table: str | None) -> Iterator[Row]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = _sqlite_text
            name = _table(database, path, table).replace('"', '""')
            cursor = database.execute(f'select * from "{name}"')
            columns = [column[0] for column in cursor.description]
            for number, values in enumerate(cursor, 1):
                yield Row(number, dict(zip(columns, values, strict=True)))
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error


def _sqlite_text(content: bytes) -> str | Unusable:
    # Left to sqlite3, one text of a broken encoding ends the whole query.
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return Unusable(f"not utf-8: byte 0x{content[error.start]:02x} at position {error.start}")


def _table(database: sqlite3.Connection, path: Path, table: str | None) -> str:
    found = database.execute("select name, type from sqlite_master where type in ('table', 'view') order by name")
    types = {str(name): type for name, type in found if not str(name).startswith("sqlite_")}
    if table is not None:
        if table not in types:
            raise InvalidInput(f"{path} has no table {short(table)}", expected=f"one of {', '.join(map(short, types))}")
        return table
    tables = [name for name, type in types.items() if type == "table"]
    if len(tables) != 1:
        listed = ", ".join(map(short, tables)) or "none"
        raise InvalidInput(
            f"{path} has {len(tables)} tables ({listed})", expected="one", fix="name the table to read: table=, --table"
        )
    return tables[0]


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{path} cannot be read: {error}", expected="a whole, readable file")


def _memory_rows(source: Iterable[object]) -> Iterator[Row]:
    one_row = isinstance(source, Mapping | bytes | bytearray)
    if one_row or not (hasattr(source, "__iter__") or hasattr(source, "to_pylist")):
        raise InvalidInput(f"{_type(source)} as data", expected="a path, several rows, or a data frame")
    return (Row(number, value) for number, value in enumerate(_memory_values(source), 1))


def _memory_values(source: Iterable[object]) -> Iterable[object]:
    """The rows of an iterable or a data frame, told apart by methods so that no data-frame package is imported."""
    where = type(source).__name__
    for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if hasattr(source, method):
            check_names(getattr(source, "column_names", ()), where)
            return cast("Iterable[object]", getattr(source, method)())
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas
        check_names(source.columns, where)
        return map(_without_gaps, source.to_dict("records"))
    return source


def _without_gaps(row: Mapping[str, object]) -> dict[str, object]:
    """A row of pandas, where NaN, NaT and NA in a cell all mean that there is no value."""
    return {name: None if _is_gap(value) else value for name, value in row.items()}


def _is_gap(value: object) -> bool:
    return value != value if isinstance(value, float) else type(value).__name__ in ("NAType", "NaTType")


def _type(value: object) -> str:
    return f"{kind(value)} ({type(value).__name__})" if isinstance(value, Mapping) else type(value).__name__
