"""What was verified before: so that opening a large index again does not read all of it again.

After the files of a generation were compared with their hashes, the user's cache directory notes what the file system
says of them: device, inode, size, time of modification, time of change of the inode. As long as all of it is the same,
nobody has written to them. Only the disk itself can have damaged them; for that a note counts for one day, and
`retriever verify` reads everything, whatever is noted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypeAlias

from retriever.cache import cache_directory

State: TypeAlias = "dict[str, list[int]]"

LASTS = 24 * 3600.0
"""Seconds for which a note counts."""

SETTLED = 2.0
"""Seconds that files must have been left alone: file systems tell times in steps, and a change within the step that
was noted would not show (the same care as of git's index)."""


def state(generation: Path) -> State:
    """What the file system says of each file of a generation, by name; empty where it cannot be looked at.

    Returns:
        Device, inode, size in bytes, and the times of modification and of change of the inode in nanoseconds.
    """
    try:
        looked = {path.name: path.lstat() for path in sorted(generation.iterdir())}
    except OSError:
        return {}  # whoever opens it says what is wrong
    return {n: [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for n, s in looked.items()}


def known(manifest: str, generation: Path, seen: State) -> bool:
    """Whether a generation was verified within a day and has not been written to since.

    Args:
        manifest: The SHA-256 of its manifest, as CURRENT gives it.
        generation: Its directory.
        seen: Its `state`.
    """
    try:
        noted = json.loads(_note(manifest, generation).read_bytes())
        return bool(0 <= time.time() - noted["time"] < LASTS and noted["files"] == seen)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing noted, or nothing that can be read: all is verified again


def note(manifest: str, generation: Path, seen: State) -> None:
    """Notes that a generation was verified, but for one that was written to just now, or where no cache can be kept.

    Args:
        manifest: The SHA-256 of its manifest.
        generation: Its directory.
        seen: Its `state` from before it was read.
    """
    now = time.time()
    if not seen or any(max(modified, changed) > (now - SETTLED) * 1e9 for *_, modified, changed in seen.values()):
        return
    path = _note(manifest, generation)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with contextlib.suppress(OSError):  # without the note, the next opening verifies again
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_old(path.parent, now)
        temporary.write_text(json.dumps({"time": now, "files": seen}), encoding="utf-8")
        temporary.replace(path)


def _forget_old(directory: Path, now: float) -> None:
    for path in directory.iterdir():
        if now - path.stat().st_mtime > LASTS:
            path.unlink(missing_ok=True)


def _note(manifest: str, generation: Path) -> Path:
    name = hashlib.sha256(f"{generation.resolve()}\0{manifest}".encode(errors="surrogateescape")).hexdigest()
    return cache_directory() / "verified" / f"{name}.json"
