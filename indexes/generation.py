"""A generation: one immutable, published state of the derived files, in a directory of its own.

    INDEX/
      CURRENT              "gen-000007 <SHA-256 of its manifest>", replaced atomically
      gen-000007/          the files, and manifest.json, which names each of them with its size and SHA-256

Publishing writes everything under a temporary name, flushes each file, then the manifest, then the directory, renames
it, flushes the parent, and only then replaces CURRENT. A reader sees the old state or the new one. FORMAT.md has the
format byte by byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexes import files
from indexes.errors import Incompatible, IndexCorrupt, IndexMissing

FORMAT_VERSION = 1
"""What this version writes. It reads every version from 1 to this one."""

Scalar = TypeVar("Scalar", bound=np.generic)
Manifest: TypeAlias = "dict[str, object]"

_NAME = re.compile(r"gen-(\d{6,})")
_FILE_NAME = re.compile(r"[a-z0-9_]+\.(npy|bin|faiss)")
_MANIFEST = "manifest.json"
_REPAIR = "restore the index from a copy, or build it again"
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Generation:
    """A verified generation.

    Attributes:
        number: Counted from 1; each publication is one more than any before.
        path: Its directory.
        manifest: What it says of itself.
        buffers: The content of each file, memory-mapped.
        stands_in: Whether it answers in place of a newer one that is damaged.
    """

    number: int
    path: Path
    manifest: Manifest
    buffers: Mapping[str, files.Buffer] = field(repr=False)
    stands_in: bool = False

    def array(self, name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
        """The array in `NAME.npy`, in place, not writable.

        Raises:
            IndexCorrupt: There is no such file, or it is no plain array of that dtype.
        """
        path = self.path / f"{name}.npy"
        if path.name not in self.buffers:
            raise IndexCorrupt(path, "is not in the manifest", fix=_REPAIR)
        try:
            array = _parse_npy(self.buffers[path.name])
        except ValueError as error:
            raise IndexCorrupt(path, f"is no plain array: {error}", fix=_REPAIR) from error
        if array.dtype != dtype:
            raise IndexCorrupt(path, f"dtype {array.dtype}", expected=np.dtype(dtype).name, fix=_REPAIR)
        return array.view(dtype)


def npy(array: NDArray[np.generic]) -> list[files.Buffer]:
    """An array in NumPy's npy format: header, then its memory without a copy."""
    contiguous = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(contiguous))
    body = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    return [header.getvalue(), body]


def _parse_npy(buffer: files.Buffer) -> NDArray[np.generic]:
    head = io.BytesIO(bytes(buffer[:4096]))
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("npy version other than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    if fortran or dtype.hasobject:
        raise ValueError(f"dtype {dtype}, Fortran order {fortran}")
    count = int(np.prod(shape, dtype=np.int64))
    if len(buffer) != head.tell() + count * dtype.itemsize:
        raise ValueError(f"{len(buffer)} bytes for shape {shape} of {dtype}")
    return np.frombuffer(buffer, dtype=dtype, count=count, offset=head.tell()).reshape(shape)


def publish(root: Path, content: Mapping[str, Sequence[files.Buffer]], about: Manifest) -> Generation:
    """Writes a new generation and makes it the current one; durable when it returns.

    The caller holds the lock. Nothing in the files depends on when or where they are written.

    Args:
        root: The index directory; it exists.
        content: For each file name its content, in pieces.
        about: What the manifest shall say beyond the format, the number and the files.

    Raises:
        OSError: The disk is full or failed; the previous generation is still the current one.
    """
    number = 1 + max(map(_number_of, files.list_directory(root)), default=0)
    name = f"gen-{number:06d}"
    _check_space(root, content)
    temporary = root / f"{name}.tmp-{os.getpid()}"
    files.remove(temporary)
    try:
        files.make_directory(temporary)
        manifest = _write_files(temporary, content, {"format": FORMAT_VERSION, "generation": number, **about})
        files.sync_directory(temporary)
        files.rename(temporary, root / name)
    except BaseException:
        files.remove(temporary)
        raise
    files.sync_directory(root)
    _point_current(root, f"{name} {_digest(manifest)}\n".encode())
    return open_generation(root, name, verify=False)


def _check_space(root: Path, content: Mapping[str, Sequence[files.Buffer]]) -> None:
    needed = sum(memoryview(chunk).nbytes for chunks in content.values() for chunk in chunks) + _SPARE_BYTES
    free = files.free_bytes(root)
    if free < needed:
        raise OSError(f"{root}: {needed:,} bytes are needed and {free:,} are free; nothing was written")


def _write_files(directory: Path, content: Mapping[str, Sequence[files.Buffer]], manifest: Manifest) -> bytes:
    """Writes the files, then the manifest that names them, and returns the manifest's bytes."""
    listed: dict[str, dict[str, object]] = {}
    for name, chunks in sorted(content.items()):
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        size = files.write_bytes(directory / name, chunks)
        listed[name] = {"size": size, "sha256": digest.hexdigest()}
    body = json.dumps({**manifest, "files": listed}, ensure_ascii=False, indent=1, sort_keys=True).encode()
    files.write_bytes(directory / _MANIFEST, [body])
    return body


def _point_current(root: Path, line: bytes) -> None:
    temporary = root / f"CURRENT.tmp-{os.getpid()}"
    files.remove(temporary)
    files.write_bytes(temporary, [line])
    files.rename(temporary, root / "CURRENT")
    files.sync_directory(root)


def open_current(root: Path, *, verify: bool = True, note: Callable[[str], None]) -> Generation:
    """The generation that CURRENT names, checked file by file; the one before it when that one is damaged.

    Args:
        root: The index directory.
        verify: Whether to compare every file's hash; sizes and names are always checked.
        note: Told in one line when an older generation answers in place of a damaged one.

    Raises:
        IndexMissing: There is no CURRENT and no generation.
        IndexCorrupt: CURRENT, the manifest or a file is not what was published, and no older generation is intact.
        Incompatible: A newer format.
    """
    candidates = generations(root)
    try:
        name, digest = read_current(root)
        candidates = [older for older in candidates if _number_of(older) < _number_of(name)]
        return open_generation(root, name, manifest_digest=digest, verify=verify)
    except IndexMissing:
        if not candidates:
            raise
        damage = IndexCorrupt(root / "CURRENT", "is missing", fix=_REPAIR)
    except IndexCorrupt as error:
        damage = error
    return _open_previous(root, candidates, damage, verify=verify, note=note)


def _open_previous(
    root: Path, candidates: list[str], damage: IndexCorrupt, *, verify: bool, note: Callable[[str], None]
) -> Generation:
    """The newest intact one of the candidates."""
    for name in reversed(candidates):
        try:
            generation = open_generation(root, name, verify=verify)
        except IndexCorrupt:
            continue
        note(f"DAMAGED INDEX: {damage}. Answering from {name} instead.")
        return replace(generation, stands_in=True)
    raise damage


def read_current(root: Path) -> tuple[str, str]:
    """The name of the current generation and the SHA-256 of its manifest.

    Raises:
        IndexMissing: There is no CURRENT.
        IndexCorrupt: It is not one line of a name and a hash.
    """
    path = root / "CURRENT"
    try:
        line = bytes(files.read_bytes(path))
    except FileNotFoundError:
        raise IndexMissing(root) from None
    match = re.fullmatch(rb"(gen-\d{6,}) ([0-9a-f]{64})\n", line)
    if match is None:
        raise IndexCorrupt(path, f"holds {line[:80]!r}", expected="the name of a generation and a SHA-256", fix=_REPAIR)
    return match[1].decode(), match[2].decode()


def open_generation(root: Path, name: str, *, manifest_digest: str | None = None, verify: bool = True) -> Generation:
    """A generation by name, checked; see `open_current` for the errors."""
    path = root / name
    body = bytes(_read(path / _MANIFEST))
    if manifest_digest is not None and _digest(body) != manifest_digest:
        raise IndexCorrupt(path / _MANIFEST, "does not match the hash in CURRENT", fix=_REPAIR)
    manifest = _parse_manifest(path / _MANIFEST, body)
    buffers = {
        file_name: _checked(path / file_name, listed, verify=verify)
        for file_name, listed in _listed_files(path / _MANIFEST, manifest).items()
    }
    return Generation(_number_of(name), path, manifest, buffers)


def _read(path: Path) -> files.Buffer:
    try:
        return files.read_bytes(path)
    except FileNotFoundError:
        raise IndexCorrupt(path, "is missing", fix=_REPAIR) from None


def _parse_manifest(path: Path, body: bytes) -> Manifest:
    try:
        manifest = json.loads(body)
        version = manifest["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IndexCorrupt(path, f"is no manifest ({type(error).__name__})", fix=_REPAIR) from error
    if not isinstance(version, int) or version < 1:
        raise IndexCorrupt(path, f"format {version!r}", expected=f"1 to {FORMAT_VERSION}", fix=_REPAIR)
    if version > FORMAT_VERSION:
        raise Incompatible(
            f"{path}: format {version}",
            expected=f"at most {FORMAT_VERSION}",
            fix=f"upgrade to the version that wrote it, {manifest.get('created_by', 'which it does not name')}",
        )
    return dict(manifest)


def _listed_files(path: Path, manifest: Manifest) -> dict[str, tuple[int, str]]:
    listed = manifest.get("files")
    try:
        if not isinstance(listed, dict) or not all(_FILE_NAME.fullmatch(name) for name in listed):
            raise ValueError(f"file names {sorted(listed) if isinstance(listed, dict) else listed!r}")
        return {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise IndexCorrupt(path, f"lists its files wrongly: {error}", fix=_REPAIR) from error


def _checked(path: Path, listed: tuple[int, str], *, verify: bool) -> files.Buffer:
    size, digest = listed
    buffer = _read(path)
    if len(buffer) != size:
        raise IndexCorrupt(path, f"{len(buffer):,} bytes", expected=f"{size:,}", fix=_REPAIR)
    if verify and _digest(buffer) != digest:
        raise IndexCorrupt(path, "its content does not match its SHA-256", fix=_REPAIR)
    return buffer


def _digest(buffer: files.Buffer) -> str:
    return hashlib.sha256(buffer).hexdigest()


def _number_of(name: str) -> int:
    """The number in the name of a generation, or of one that was being written; 0 for any other name."""
    match = _NAME.match(name)
    return int(match[1]) if match else 0


def generations(root: Path) -> list[str]:
    """The names of the published generations, oldest first."""
    return sorted((name for name in files.list_directory(root) if _NAME.fullmatch(name)), key=_number_of)


def collect(root: Path, keep: int = 2) -> list[str]:
    """Removes generations older than the current one and the `keep` − 1 before it, and what a crash left behind.

    The caller holds the lock. A reader that has opened an older generation keeps its mappings and answers from them.

    Returns:
        The names that were removed.
    """
    current = _number_of(read_current(root)[0])
    older = [name for name in generations(root) if _number_of(name) < current]
    stale = [name for name in files.list_directory(root) if ".tmp-" in name]
    unpublished = [name for name in generations(root) if _number_of(name) > current]
    doomed = older[: max(0, len(older) - (keep - 1))] + unpublished + stale
    for name in doomed:
        files.remove(root / name)
    return doomed
