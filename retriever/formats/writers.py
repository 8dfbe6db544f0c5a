"""Writing records one by one, as JSON Lines, Parquet or CSV, into a binary file that the caller opened."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeAlias

from retriever.errors import InvalidInput, MissingDependency
from retriever.example import Json, render
from retriever.formats.values import short

WriterFormat: TypeAlias = Literal["jsonl", "parquet", "csv", "tsv"]
ROW_GROUP = 1000  # records per Parquet row group, and how many decide the types of its columns

_SUFFIXES: Mapping[str, WriterFormat] = {".jsonl": "jsonl", ".parquet": "parquet", ".csv": "csv", ".tsv": "tsv"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
# What a spreadsheet takes for the start of a formula (OWASP, "CSV Injection"), its full-width forms among them.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


class RecordWriter(Protocol):
    """Takes records; closing it completes the format and leaves the file open."""

    def write(self, record: Mapping[str, Json]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is still held back; the file stays open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, failed: object, *_: object) -> None: ...


def writer_format(path: str | os.PathLike[str]) -> WriterFormat:
    """The format to write at a path: by its suffix; `-`, standard output, is JSON Lines.

    Raises:
        InvalidInput: The suffix is another one.
    """
    if os.fspath(path) == "-":
        return "jsonl"
    if (suffix := Path(path).suffix.lower()) in _SUFFIXES:
        return _SUFFIXES[suffix]
    expected = f"a name in {' or '.join(', '.join(_SUFFIXES).rsplit(', ', 1))}, or -"
    raise InvalidInput(f"cannot tell what to write to {os.fspath(path)}", expected=expected)


def open_writer(file: BinaryIO, format: WriterFormat) -> RecordWriter:
    """A writer of records, to be used as a context manager.

    JSON Lines: one compact JSON object per line, UTF-8, LF; any character but those JSON escapes stands as it is.

    Parquet: the columns are the keys of the first record, in its order. Their types follow from the first 1,000
    records: booleans, 64-bit integers or doubles where all values are such, else text, in which a value that is not
    text stands as JSON, so that lists, objects and mixed values keep one stable schema. A missing key is a null.

    CSV and TSV: a header row with the keys of the first record, then a row per record; UTF-8, LF, RFC 4180 quoting
    around all but numbers. A value that is not text stands as JSON, a null or missing key as an empty cell. A text that
    a spreadsheet would take for a formula, for it begins with `=`, `+`, `-`, `@`, a tab or a line break, gets an
    apostrophe in front.

    Args:
        file: Open for binary writing; it is neither flushed, published nor closed here.
        format: `jsonl`, `parquet`, `csv` or `tsv`.

    Raises:
        InvalidInput: The format is another one; from `write` or `close`, a value that the format cannot hold.
        MissingDependency: Parquet without pyarrow.
    """
    if format == "jsonl":
        return JsonLinesWriter(file)
    if format == "parquet":
        return ParquetWriter(file)
    if format in _DELIMITERS:
        return CsvWriter(file, _DELIMITERS[format])
    raise InvalidInput(f"the format {short(format)} to write", expected="jsonl, parquet, csv or tsv")


def json_line(record: Mapping[str, Json]) -> bytes:
    """A record as a line of JSON Lines, with its line feed.

    Raises:
        InvalidInput: The record holds NaN, infinity, a lone surrogate or what is no JSON.
    """
    try:
        return json.dumps(dict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"a record that cannot be written as JSON: {error}") from error


def _check_keys(record: Mapping[str, Json], columns: tuple[str, ...]) -> None:
    if unknown := record.keys() - set(columns):
        raise InvalidInput(
            f"a record with the field {short(min(unknown))}",
            expected=f"the fields of the first one: {', '.join(columns)}",
        )


class JsonLinesWriter:
    """Writes JSON Lines; see `open_writer`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self.close()

    def write(self, record: Mapping[str, Json]) -> None:
        """Write one line.

        Raises:
            InvalidInput: The record holds NaN, infinity, a lone surrogate or what is no JSON.
        """
        self._file.write(json_line(record))

    def close(self) -> None:
        """Nothing is held back."""


class CsvWriter:
    """Writes CSV, or TSV with another delimiter; see `open_writer`."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        text = codecs.getwriter("utf-8")(file)
        # Quoting everything but numbers also covers a lone CR, which `csv` before Python 3.13 leaves bare.
        self._rows = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        self._columns: tuple[str, ...] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self.close()

    def write(self, record: Mapping[str, Json]) -> None:
        """Write one row, and the header before the first.

        Raises:
            InvalidInput: The record has a key that the first one lacks, or holds what JSON cannot hold.
        """
        json_line(record)  # refuses what is no JSON before anything of it is written
        if self._columns is None:
            self._columns = tuple(record)
            self._rows.writerow([_cell(name) for name in self._columns])
        _check_keys(record, self._columns)
        self._rows.writerow([_cell(record.get(name)) for name in self._columns])

    def close(self) -> None:
        """Nothing is held back."""


def _cell(value: Json) -> str | int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = "" if value is None else render(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


class ParquetWriter:
    """Writes Parquet in row groups of 1,000; see `open_writer`."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingDependency("pyarrow", "parquet", purpose="writing Parquet") from None
        self._arrow: Any = pyarrow
        self._parquet: Any = parquet
        self._file = file
        self._columns: tuple[str, ...] | None = None
        self._held: list[Mapping[str, Json]] = []
        self._writer: Any = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:  # perhaps over what is held back
            self._held.clear()
            self._closed = self._writer is None
        self.close()

    def write(self, record: Mapping[str, Json]) -> None:
        """Take one record; every 1,000th writes a row group.

        Raises:
            InvalidInput: The record has a key that the first one lacks, or a value does not fit its column.
        """
        if self._columns is None:
            self._columns = tuple(record)
        _check_keys(record, self._columns)
        self._held.append(dict(record))
        if len(self._held) == ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the footer.

        Raises:
            InvalidInput: A value does not fit its column.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._held or self._writer is None:
                self._write_group()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _write_group(self) -> None:
        columns = {name: [record.get(name) for record in self._held] for name in self._columns or ()}
        if self._writer is None:
            schema = self._arrow.schema([(name, self._type(values)) for name, values in columns.items()])
            self._writer = self._parquet.ParquetWriter(self._file, schema)
        schema = self._writer.schema
        arrays = [self._array(name, values, schema.field(name).type) for name, values in columns.items()]
        if arrays:
            self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=schema), row_group_size=ROW_GROUP)
        self._held.clear()

    def _type(self, values: list[Json]) -> object:
        kinds = {type(value) for value in values if value is not None}
        if kinds == {bool}:
            return self._arrow.bool_()
        if kinds == {int} and all(value is None or -(2**63) <= int(str(value)) < 2**63 for value in values):
            return self._arrow.int64()
        return self._arrow.float64() if kinds in ({float}, {int, float}) else self._arrow.string()

    def _array(self, name: str, values: list[Json], kind: object) -> object:
        if kind == self._arrow.string():
            values = [None if value is None else render(value) for value in values]
        try:
            return self._arrow.array(values, type=kind)
        except (self._arrow.ArrowException, ValueError, OverflowError) as error:
            raise InvalidInput(
                f"column {name}: {error}",
                expected=f"values of type {kind}, as in the first {ROW_GROUP} records",
                fix="write JSON Lines instead",
            ) from error
