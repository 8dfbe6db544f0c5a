"""A generation: one immutable, published state of the derived files, in a directory of its own.

    INDEX/
      CURRENT              which generation is current, and which state of the data beside it; replaced atomically
      gen-000007/          the files, and manifest.json, which names each of them with its size and SHA-256

Publishing writes everything under a temporary name, flushes each file, then the manifest, then the directory, renames
it, flushes the parent, and only then replaces CURRENT. A reader sees the old state or the new one. FORMAT.md has the
format byte by byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexes import files, parallel
from indexes.arrays import parse_npy
from indexes.current import Current, point
from indexes.errors import Incompatible, IndexCorrupt, OutOfSpace, to_repair

FORMAT_VERSION = 1
"""What this version writes. It reads every version from 1 to this one."""

Scalar = TypeVar("Scalar", bound=np.generic)
Manifest: TypeAlias = "dict[str, object]"

_NAME = re.compile(r"gen-(\d{6,})")
_TEMPORARY = re.compile(r"(gen-\d{6,}|CURRENT)\.tmp-\d+")
_FILE_NAME = re.compile(r"[a-z0-9_]+\.(npy|bin|faiss)")
_MANIFEST = "manifest.json"
_SPARE_BYTES = 1 << 20
_WORTH_THREADS = 1 << 24
"""Bytes from which hashing by several threads gains more than starting them costs, a millisecond or so."""
_MAX_MANIFEST_BYTES = 1 << 24


@dataclass(frozen=True)
class Generation:
    """A verified generation.

    Attributes:
        number: Counted from 1; each publication is one more than any before.
        path: Its directory.
        manifest: What it says of itself.
        buffers: The content of each file, memory-mapped.
        hold: Keeps `collect` from removing it.
        stands_in: Whether it answers in place of a newer one that is damaged.
    """

    number: int
    path: Path
    manifest: Manifest
    buffers: Mapping[str, files.Buffer] = field(repr=False)
    hold: files.Hold = field(repr=False, compare=False)
    stands_in: bool = False

    @property
    def name(self) -> str:
        """Its name, such as `gen-000007`."""
        return self.path.name

    def close(self) -> None:
        """Lets `collect` remove it; what was read from it stays readable."""
        self.hold.release()

    def array(self, name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
        """The array in `NAME.npy`, in place, not writable.

        Raises:
            IndexCorrupt: There is no such file, or it is no plain array of that dtype.
        """
        path = self.path / f"{name}.npy"
        if path.name not in self.buffers:
            raise _damaged(path, "is not in the manifest")
        try:
            array = parse_npy(self.buffers[path.name])
        except ValueError as error:
            raise _damaged(path, f"is no plain array: {error}") from error
        if array.dtype != dtype:
            raise _damaged(path, f"dtype {array.dtype}", expected=np.dtype(dtype).name)
        return array.view(dtype)


def publish(
    root: Path, content: Mapping[str, Sequence[files.Buffer]], about: Manifest, *, revision: int, chain: str
) -> Current:
    """Writes a new generation and makes it the current one; durable when it returns.

    The caller holds the lock. Nothing in the files depends on when or where they are written.

    Args:
        root: The index directory; it exists.
        content: For each file name its content, in pieces.
        about: What the manifest shall say beyond the format, the number and the files.
        revision: See `Current`.
        chain: See `Current`.

    Raises:
        OutOfSpace: There is not enough room for it; nothing was written.
        StorageError: The disk failed. The old generation or the new one is current, whole in either case.
    """
    name = f"gen-{1 + max(map(_number_of, files.list_directory(root)), default=0):06d}"
    _check_space(root, content)
    temporary = root / f"{name}.tmp-{os.getpid()}"
    try:
        files.make_directory(temporary)
        manifest = _write_files(temporary, content, {"format": FORMAT_VERSION, **about})
        files.sync_directory(temporary)
        files.rename(temporary, root / name)
    except BaseException:
        files.remove(temporary)
        raise
    files.sync_directory(root)
    current = Current(name, _digest(manifest), revision, chain)
    point(root, current)
    return current


def _check_space(root: Path, content: Mapping[str, Sequence[files.Buffer]]) -> None:
    needed = sum(memoryview(chunk).nbytes for chunks in content.values() for chunk in chunks) + _SPARE_BYTES
    free = files.free_bytes(root)
    if free < needed:
        raise OutOfSpace(root, needed, free)


def _write_files(directory: Path, content: Mapping[str, Sequence[files.Buffer]], manifest: Manifest) -> bytes:
    """Writes the files, then the manifest that names them, and returns the manifest's bytes."""
    listed: dict[str, dict[str, object]] = {}
    for name, chunks in sorted(content.items()):
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        size = files.write_bytes(directory / name, chunks)
        listed[name] = {"size": size, "sha256": digest.hexdigest()}
    body = _manifest_bytes({**manifest, "files": listed})
    files.write_bytes(directory / _MANIFEST, [body])
    return body


def _manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as JSON, with the SHA-256 of the same without it: CURRENT vouches for one generation only."""
    return _json({**manifest, "sha256": _digest(_json(manifest))})


def _json(manifest: Manifest) -> bytes:
    return json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()


def open_current(root: Path, current: Current, *, verify: bool = True) -> Generation:
    """The current generation, checked file by file.

    Args:
        root: The index directory.
        current: What CURRENT says.
        verify: Whether to compare every file's hash; sizes and names are always checked.

    Raises:
        IndexCorrupt: The manifest or a file is not what was published.
        Incompatible: A newer format.
        StorageError: A file cannot be read.
    """
    return open_generation(root, current.generation, current.manifest, verify=verify)


def open_substitute(
    root: Path, damage: IndexCorrupt, *, before: str | None = None, verify: bool = True, note: Callable[[str], None]
) -> Generation:
    """The newest intact generation, in place of what is damaged.

    Args:
        root: The index directory.
        damage: What was found; raised when no generation is intact.
        before: Only generations older than this one; None for any.
        verify: See `open_current`.
        note: Told in one line that an older generation answers.
    """
    for name in reversed(generations(root)):
        if before is not None and _number_of(name) >= _number_of(before):
            continue
        try:
            generation = open_generation(root, name, verify=verify)
        except (IndexCorrupt, Incompatible):
            continue
        note(f"DAMAGED INDEX: {damage.seen}. Answering from {name} instead; {damage.fix}.")
        return replace(generation, stands_in=True)
    raise damage


def open_generation(root: Path, name: str, digest: str | None = None, *, verify: bool = True) -> Generation:
    """A generation by name, whether CURRENT names it or not; arguments and errors as for `open_current`.

    Args:
        root: The index directory.
        name: Its name.
        digest: The SHA-256 of its manifest, where it is known from elsewhere.
        verify: Whether to compare every file's hash.
    """
    path = root / name
    if path.is_symlink():
        raise _damaged(path, "is a link", expected="a directory")
    hold = _held(path / _MANIFEST)
    try:
        manifest = read_manifest(root, name, digest)
        listed = _listed_files(path / _MANIFEST, manifest)
        buffers = {file_name: _sized(path / file_name, size) for file_name, (size, _) in listed.items()}
        if verify:
            _check_digests(path, buffers, listed)
    except BaseException:
        hold.release()
        raise
    return Generation(_number_of(name), path, manifest, buffers, hold)


def salvage(root: Path, name: str) -> Generation | None:
    """What is left of a generation: those of its files that are intact; None when its manifest is damaged."""
    path = root / name
    try:
        hold = _held(path / _MANIFEST)
        manifest = read_manifest(root, name)
    except (IndexCorrupt, Incompatible):
        return None
    buffers = {}
    for file_name, listed in _listed_files(path / _MANIFEST, manifest).items():
        with contextlib.suppress(IndexCorrupt):
            buffer = _sized(path / file_name, listed[0])
            _check_digests(path, {file_name: buffer}, {file_name: listed})
            buffers[file_name] = buffer
    return Generation(_number_of(name), path, manifest, buffers, hold)


def read_manifest(root: Path, name: str, digest: str | None = None) -> Manifest:
    """What a generation says of itself; the files it names are not looked at.

    Args:
        root: The index directory.
        name: The generation.
        digest: The SHA-256 that CURRENT gives; None for a generation that it does not name.

    Raises:
        IndexCorrupt: It is missing, damaged, or no manifest.
        Incompatible: A newer format.
        StorageError: It cannot be read.
    """
    path = root / name / _MANIFEST
    body = _read(path)
    if len(body) > _MAX_MANIFEST_BYTES:
        raise _damaged(path, f"{len(body):,} bytes", expected=f"at most {_MAX_MANIFEST_BYTES:,}")
    if digest is not None and _digest(body) != digest:
        raise _damaged(path, "does not match the hash in CURRENT")
    return _parse_manifest(path, bytes(body))


def _damaged(path: Path, seen: str, expected: str = "") -> IndexCorrupt:
    root = path.parents[1] if _NAME.fullmatch(path.parent.name) else path.parent
    return IndexCorrupt(path, seen, expected=expected, fix=to_repair(root))


def _held(path: Path) -> files.Hold:
    try:
        return files.Hold(path)
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None


def _read(path: Path) -> files.Buffer:
    try:
        return files.read_bytes(path)
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None


def _parse_manifest(path: Path, body: bytes) -> Manifest:
    try:
        manifest = dict(json.loads(body))
        version = int(manifest["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"is no manifest ({type(error).__name__})") from error
    if version > FORMAT_VERSION:
        raise Incompatible(
            f"{path}: format {version}",
            expected=f"at most {FORMAT_VERSION}",
            fix=f"upgrade to the version that wrote it, {manifest.get('created_by', 'which it does not name')}",
        )
    if version < 1 or manifest.pop("sha256", None) != _digest(_json(manifest)):
        raise _damaged(path, "its content does not match its own SHA-256")
    return manifest


def _listed_files(path: Path, manifest: Manifest) -> dict[str, tuple[int, str]]:
    listed = manifest.get("files")
    try:
        if not isinstance(listed, dict) or not all(_FILE_NAME.fullmatch(name) for name in listed):
            raise ValueError(f"file names {sorted(listed) if isinstance(listed, dict) else listed!r}")
        return {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"lists its files wrongly: {error}") from error


def _sized(path: Path, size: int) -> files.Buffer:
    buffer = _read(path)
    if len(buffer) != size:
        raise _damaged(path, f"{len(buffer):,} bytes", expected=f"{size:,}")
    return buffer


def _check_digests(directory: Path, buffers: Mapping[str, files.Buffer], listed: Mapping[str, tuple[int, str]]) -> None:
    """Compares the hashes of all files, several at a time; the first by name that is wrong is what is raised.

    Raises:
        IndexCorrupt: One does not match.
    """
    threads = min(len(buffers), parallel.cores()) if sum(map(len, buffers.values())) > _WORTH_THREADS else 1
    with ThreadPoolExecutor(threads) as workers:
        digests = workers.map(_digest, buffers.values()) if threads > 1 else map(_digest, buffers.values())
        for name, digest in zip(buffers, digests, strict=True):
            if digest != listed[name][1]:
                raise _damaged(directory / name, "its content does not match its SHA-256")


def _digest(buffer: files.Buffer) -> str:
    return hashlib.sha256(buffer).hexdigest()


def _number_of(name: str) -> int:
    """The number in the name of a generation, or of one that was being written; 0 for any other name."""
    match = _NAME.match(name)
    return int(match[1]) if match else 0


def generations(root: Path) -> list[str]:
    """The names of all generations, oldest first."""
    return sorted((name for name in files.list_directory(root) if _NAME.fullmatch(name)), key=_number_of)


def published(root: Path, current: Current | None) -> list[str]:
    """The names of the generations up to the current one, oldest first: later ones were never published."""
    names = generations(root)
    return names if current is None else [n for n in names if _number_of(n) <= _number_of(current.generation)]


def previous(root: Path, current: Current) -> str | None:
    """The name of the generation before the current one; None when there is none."""
    older = [name for name in generations(root) if _number_of(name) < _number_of(current.generation)]
    return older[-1] if older else None


def collect(root: Path, current: Current | None) -> list[str]:
    """Removes what nobody needs: all generations but the current one and the one before, and what a crash left behind.

    The caller holds the lock. A generation that a reader holds stays until a later call, and so does what cannot be
    removed. Generations that CURRENT never named go, too: whoever wrote them did not get that far.

    Args:
        root: The index directory.
        current: What CURRENT says; None before the first publication.

    Returns:
        The names that were removed.
    """
    keep = set() if current is None else {current.generation, previous(root, current)}
    removed = []
    for name in files.list_directory(root):
        if _TEMPORARY.fullmatch(name):
            gone = files.remove(root / name)
        elif _NAME.fullmatch(name) and name not in keep:
            gone = _retire(root, name)
        else:
            continue
        if gone:
            removed.append(name)
    return removed


def _retire(root: Path, name: str) -> bool:
    """Removes a generation unless a reader holds it; half of one never stands under its name."""
    doomed = root / f"{name}.tmp-{os.getpid()}"
    files.remove(doomed)  # see `publish`
    with files.unheld(root / name / _MANIFEST) as free:
        if not free:
            return False
        try:
            files.rename(root / name, doomed)
            # Without it a power cut could undo the renaming and not the removals.
            files.sync_directory(root)
        except OSError:
            return False
    return files.remove(doomed)
