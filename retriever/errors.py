"""Every error this project raises on purpose.

    RetrieverError                  root; exit code 1
    ├── InvalidInput                an argument, filter or recipe that cannot be used (also a ValueError); 2
    │   ├── TemplateError           a prompt template with an unknown, missing or malformed placeholder; 2
    │   └── DelimiterCollision      data contains a delimiter of the text prompt; 2
    ├── IndexMissing                no index at the path; 3
    ├── IndexCorrupt                a damaged, missing or foreign file; 4
    ├── Incompatible                a newer format, or another embedder; 5
    ├── IndexLocked                 another process is writing; 6
    ├── StorageError                the operating system refuses to read or write (also an OSError); 1
    │   └── OutOfSpace              the disk has no room for what is to be written; 1
    ├── BadRows                     rows that cannot be used, under strict reading; 7
    ├── MissingDependency           an optional package is not installed (also an ImportError); 1
    ├── EmbedderError               an embedder failed or returned something that is not a vector; 1
    └── BackendError                a language-model backend failed; 1

Each says what was seen, what was expected and what fixes it, and carries them as attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from indexes.errors import (
    Incompatible,
    IndexCorrupt,
    IndexLocked,
    IndexMissing,
    InvalidInput,
    OutOfSpace,
    RetrieverError,
    StorageError,
)

__all__ = [
    "BackendError",
    "BadRows",
    "DelimiterCollision",
    "EmbedderError",
    "Incompatible",
    "IndexCorrupt",
    "IndexLocked",
    "IndexMissing",
    "InvalidInput",
    "MissingDependency",
    "OutOfSpace",
    "RetrieverError",
    "StorageError",
    "TemplateError",
]


class TemplateError(InvalidInput):
    """A template names a placeholder that does not exist, or a value that is not there."""


class DelimiterCollision(InvalidInput):
    """Data contains a delimiter of the text prompt, and the policy is to raise, or leaves no other way.

    Attributes:
        where: What contains it: `example 'ID'`, `query 'ID'` or `a slot of template 'NAME'`.
        delimiter: The delimiter that was found.
        example_id: The demonstration that contains it; None when it is none, which cannot be dropped.
    """

    def __init__(self, where: str, delimiter: str, example_id: str | None = None) -> None:
        self.where = where
        self.delimiter = delimiter
        self.example_id = example_id
        policies = "'escape'" if example_id is None else "'escape' or 'drop'"
        super().__init__(
            f"{where} contains the delimiter {delimiter!r}", fix=f"use the messages form, or collisions={policies}"
        )


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside.

    Attributes:
        source: The path as it was given, `stdin`, or the type of the data in memory.
        line: The line of a text file where the row starts, else the number of the row; counted from 1.
        reason: Why it cannot be used.
    """

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


class BadRows(RetrieverError):
    """Rows were set aside while reading under `strict`, or no row could be used at all.

    Attributes:
        rows: What was set aside, with source, line and reason.
    """

    exit_code: ClassVar[int] = 7

    def __init__(self, rows: Sequence[BadRow], *, seen: str = "", fix: str = "") -> None:
        self.rows = tuple(rows)
        first = f", first {self.rows[0]}" if self.rows else ""
        super().__init__(seen or f"{len(self.rows)} bad rows{first}", fix=fix)


class MissingDependency(RetrieverError, ImportError):
    """An optional package is needed and not installed.

    Attributes:
        package: What could not be imported.
        extra: The extra of this distribution that installs it.
    """

    def __init__(self, package: str, extra: str, *, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            fix=f"pip install 'demonstration-retriever[{extra}]'",
        )


class EmbedderError(RetrieverError):
    """An embedder could not be loaded, failed, or returned something that is not a vector per text."""


class BackendError(RetrieverError):
    """A language-model backend failed or returned no text."""
