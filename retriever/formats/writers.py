"""Writing records one by one, as JSON Lines or Parquet, into a binary file that the caller opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeAlias

from retriever.errors import InvalidInput, MissingDependency
from retriever.example import Json, render
from retriever.formats.values import short

WriterFormat: TypeAlias = Literal["jsonl", "parquet"]
ROW_GROUP = 1000  # records per Parquet row group, and how many decide the types of its columns


class RecordWriter(Protocol):
    """Takes records; closing it completes the format and leaves the file open."""

    def write(self, record: Mapping[str, Json]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is still held back; the file stays open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, failed: object, *_: object) -> None: ...


def writer_format(path: str | os.PathLike[str]) -> WriterFormat:
    """The format to write at a path: by its suffix `.jsonl` or `.parquet`; `-` (standard output) is JSON Lines.

    Raises:
        InvalidInput: The suffix is another one.
    """
    suffix = Path(path).suffix.lower()
    if os.fspath(path) == "-" or suffix == ".jsonl":
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    raise InvalidInput(f"cannot tell what to write to {os.fspath(path)}", expected="a name in .jsonl or .parquet, or -")


def open_writer(file: BinaryIO, format: WriterFormat) -> RecordWriter:
    """A writer of records, to be used as a context manager.

    JSON Lines: one compact JSON object per line, UTF-8, LF; any character but those JSON escapes stands as it is.

    Parquet: the columns are the keys of the first record, in its order. Their types follow from the first 1,000
    records: booleans, 64-bit integers or doubles where all values are such, else text, in which a value that is not
    text stands as JSON, so that lists, objects and mixed values keep one stable schema. A missing key is a null.

    Args:
        file: Open for binary writing; it is neither flushed, published nor closed here.
        format: `jsonl` or `parquet`.

    Raises:
        InvalidInput: The format is another one; from `write` or `close`, a value that the format cannot hold.
        MissingDependency: Parquet without pyarrow.
    """
    if format == "jsonl":
        return JsonLinesWriter(file)
    if format == "parquet":
        return ParquetWriter(file)
    raise InvalidInput(f"the format {short(format)} to write", expected="jsonl or parquet")


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
        try:
            line = json.dumps(dict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"a record that cannot be written as JSON: {error}") from error
        self._file.write(line + b"\n")

    def close(self) -> None:
        """Nothing is held back."""


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
        if unknown := record.keys() - set(self._columns):
            raise InvalidInput(
                f"a record with the field {short(min(unknown))}",
                expected=f"the fields of the first one: {', '.join(self._columns)}",
            )
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
