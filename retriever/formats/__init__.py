"""Reading examples and queries, and writing records.

    read_examples, read_queries     a file, standard input or data in memory → examples, one by one
    FileSource                      a file, and how it is read where its name does not tell
    Fields, Limits                  where the attributes are in a row; how large a row may be
    BadRow, BadRowLog               a row that was set aside, and why; a collector of them
    open_writer, writer_format      records → JSON Lines, Parquet, CSV or TSV

Every row becomes an example or a `BadRow`; only blank lines of text files are neither.

| format | suffix | read | line of a bad row |
|---|---|---|---|
| jsonl | .jsonl .ndjson | streamed | line |
| json | .json, an array of objects | whole | number of the element |
| csv, tsv | .csv .tsv, with a header row | streamed | line where the record starts |
| parquet | .parquet | streamed | number of the row |
| sqlite | .sqlite .sqlite3 .db | streamed, opened read-only | number of the row |

Text formats may be gzipped (`.jsonl.gz`). Values of CSV and TSV are text. A null is a missing value everywhere, and so
are an empty CSV field and, in a pandas data frame, NaN, NaT and NA; elsewhere NaN makes a row bad.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from retriever.errors import BadRow, BadRows, InvalidInput
from retriever.example import Example
from retriever.formats.mapping import Fields, RowMapper
from retriever.formats.sources import FileSource, Rows, Source, open_rows
from retriever.formats.values import Limits, RowError, short
from retriever.formats.writers import RecordWriter, open_writer, writer_format

__all__ = [
    "BadRow",
    "BadRowLog",
    "Fields",
    "FileSource",
    "Limits",
    "RecordWriter",
    "Source",
    "open_writer",
    "read_examples",
    "read_queries",
    "writer_format",
]

_FIELDS = Fields()
_LIMITS = Limits()


class BadRowLog:
    """Collects bad rows: counts all, keeps the first ones.

    Args:
        keep: How many to keep.

    Attributes:
        rows: The first `keep` bad rows.
        count: How many there were.
    """

    def __init__(self, keep: int = 1000) -> None:
        if keep < 1:
            raise InvalidInput(f"keep is {keep}", expected="at least 1")
        self.rows: list[BadRow] = []
        self.count = 0
        self._keep = keep

    def __call__(self, row: BadRow) -> None:
        """Take one."""
        self.count += 1
        if len(self.rows) < self._keep:
            self.rows.append(row)

    def raise_if_any(self) -> None:
        """For strict reading, at its end.

        Raises:
            BadRows: There was at least one.
        """
        if self.count:
            seen = "1 bad row" if self.count == 1 else f"{self.count} bad rows, first"
            raise BadRows(self.rows, seen=f"{seen} {self.rows[0]}")


def read_examples(
    source: Source,
    *,
    fields: Fields = _FIELDS,
    format: str | None = None,
    table: str | None = None,
    encoding: str = "utf-8",
    limits: Limits = _LIMITS,
    usable: Callable[[Example], object] = lambda example: None,
    on_bad: Callable[[BadRow], None],
) -> Iterator[Example]:
    """The examples of a source, in its order.

    Whatever the row holds beside the mapped fields goes into `meta`: the fields of its `meta` object (in tables also
    the JSON text of one), and every other field that is not null. A field that was used as a whole is not repeated
    there; one that was used through a dotted path or a template is. A row without an id gets one from its content.

    Bad rows: not JSON, no object, a missing field, a key twice, NaN or infinity, a lone surrogate, bytes or another
    type that is no JSON, a broken encoding, another number of CSV fields than the header has, nesting or size over the
    limits, an id or a derived id that an earlier row has, a field that differs from the same one in `meta`.

    Memory: one row (one batch of 1,000 for Parquet), and the ids seen so far, about 150 bytes each. A JSON array and
    data in memory are held whole.

    Args:
        source: A path, a list of `Path`s, or a `FileSource`; `-` for standard input; an iterable of mappings or
            examples; a data frame of pandas, polars or pyarrow. An `Example` passes through as it is.
        fields: Where the attributes are in a row.
        format: One of jsonl, json, csv, tsv, parquet, sqlite; None tells it from the suffix, and takes jsonl for
            standard input.
        table: The SQLite table or view; None when there is only one table.
        encoding: Of a text file; any that extends ASCII.
        limits: How large a row may be.
        usable: Called with each example; one for which it raises `InvalidInput` is set aside.
        on_bad: Called with each row that is set aside, such as a `BadRowLog`.

    Returns:
        An iterator; the source is opened by its first step and closed by its last.

    Raises:
        InvalidInput: The source cannot be read as a whole, or an option does not suit it.
        MissingDependency: Parquet without pyarrow.
    """
    opened = [open_rows(one, format=format, table=table, encoding=encoding, limits=limits) for one in _parts(source)]
    return _mapped(opened, RowMapper(fields, limits, queries=False), usable, on_bad)


def read_queries(
    source: Source,
    *,
    fields: Fields = _FIELDS,
    format: str | None = None,
    table: str | None = None,
    encoding: str = "utf-8",
    limits: Limits = _LIMITS,
    usable: Callable[[Example], object] = lambda example: None,
    on_bad: Callable[[BadRow], None],
) -> Iterator[Example]:
    """The queries of a source, in its order; as `read_examples`, with three differences.

    An output may be absent, data in memory may hold plain texts, each of which is the input of a query, and the same
    content may come again: without ids of their own, its second and further queries get `-2`, `-3` and so on appended.

    Args:
        source: As for `read_examples`.
        fields: As for `read_examples`.
        format: As for `read_examples`.
        table: As for `read_examples`.
        encoding: As for `read_examples`.
        limits: As for `read_examples`.
        usable: As for `read_examples`.
        on_bad: As for `read_examples`.

    Raises:
        InvalidInput: The source cannot be read as a whole, or an option does not suit it.
        MissingDependency: Parquet without pyarrow.
    """
    opened = [open_rows(one, format=format, table=table, encoding=encoding, limits=limits) for one in _parts(source)]
    return _mapped(opened, RowMapper(fields, limits, queries=True), usable, on_bad)


def _parts(source: Source) -> Sequence[Source]:
    """The files of a list of paths; any other source is one part."""
    if isinstance(source, list | tuple) and source and all(isinstance(one, Path) for one in source):
        return source
    return [source]


def _mapped(
    sources: Sequence[Rows],
    mapper: RowMapper,
    usable: Callable[[Example], object],
    on_bad: Callable[[BadRow], None],
) -> Iterator[Example]:
    first_places: dict[str, tuple[str, int]] = {}
    repeats: Counter[str] = Counter()
    for source in sources:
        for row in source.rows:
            try:
                mapped = mapper.map(row.value)
                example = mapped.example
                if mapper.queries and not mapped.id_given:
                    repeats[example.id] += 1
                    times = repeats[example.id]
                    example = example if times == 1 else replace(example, id=f"{example.id}-{times}")
                first = first_places.setdefault(example.id, (source.name, row.line))
                if first != (source.name, row.line):
                    raise RowError(_repeated(example.id, first, source.name, given=mapped.id_given))
                usable(example)
            except (RowError, InvalidInput) as error:
                on_bad(BadRow(source.name, row.line, str(error)))
            else:
                yield example


def _repeated(identity: str, first: tuple[str, int], here: str, *, given: bool) -> str:
    place = f"line {first[1]}" if first[0] == here else f"{first[0]}:{first[1]}"
    return f"duplicate id {short(identity)}, first at {place}" if given else f"same content as {place}"
