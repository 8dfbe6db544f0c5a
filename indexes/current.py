"""CURRENT: the one file that says which state of an index readers see. To replace it is the moment of every change."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from indexes import files
from indexes.errors import IndexCorrupt, IndexMissing, to_repair

_LINE = re.compile(rb"((gen-\d{6,18}) ([0-9a-f]{64}) (\d{1,18}) ([0-9a-f]{64})) ([0-9a-f]{64})\n")


def current_path(root: Path) -> Path:
    """Where an index keeps it."""
    return root / "CURRENT"


@dataclass(frozen=True)
class Current:
    """What CURRENT says; to replace it is the moment at which a change takes place.

    Attributes:
        generation: The name of the current generation.
        manifest: The SHA-256 of its manifest.
        revision: The newest revision of the data beside the generations that readers may see.
        chain: The digest of that revision and all before it, as whoever keeps the data defines it, 64 hexadecimal
            digits.
    """

    generation: str
    manifest: str
    revision: int
    chain: str

    def line(self) -> bytes:
        """The file's content: the four, and the SHA-256 of what stands before it."""
        text = f"{self.generation} {self.manifest} {self.revision} {self.chain}".encode()
        return text + f" {_digest(text)}\n".encode()


def point(root: Path, current: Current) -> None:
    """Replaces CURRENT; durable when it returns. The caller holds the lock.

    Raises:
        StorageError: The disk is full or failed. CURRENT says the old or the new, whole in either case.
    """
    files.replace_file(current_path(root), [current.line()])


def read_current(root: Path) -> Current:
    """What CURRENT says.

    Raises:
        IndexMissing: There is no CURRENT.
        IndexCorrupt: It is damaged.
        StorageError: It cannot be read.
    """
    path = current_path(root)
    try:
        line = bytes(files.read_bytes(path)[:1000])
    except FileNotFoundError:
        raise IndexMissing(root) from None
    match = _LINE.fullmatch(line)
    if match is None or _digest(match[1]) != match[6].decode():
        raise IndexCorrupt(
            path,
            f"holds {line[:80]!r}",
            expected="what FORMAT.md says of CURRENT",
            fix=to_repair(root),
        )
    return Current(match[2].decode(), match[3].decode(), int(match[4]), match[5].decode())


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
